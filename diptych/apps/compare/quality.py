"""Measures of runs and of the task runs in their folders, provided that all were taken on the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.compared import Quality, Score
from diptych.apps.report.task_evaluation import measure_names
from diptych.logged import EVALUATION, read_evaluation
from diptych.metrics.intervals import Interval
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe

TRAINING_ONLY = frozenset(
    ("validation_path", "crop", "flip", "randaugment", "max_tokens", "max_tokens_evaluation", "partial_captions",
     "single_phrases", "bad_share", "workers", "lanes", "window", "cache", "cache_bytes", "timeout", "retries",
     "normalise", "count", "complete", "noise", "mismatch")
)  # fmt: skip
"""Fields of `data` that no test record depends on. The number of tokens that a model reads may differ, too."""
COUNTS = ("images", "texts", "examples", "labelled")
LEVELS = (1, 10)
WAYS = (("text_to_image", "text → picture"), ("image_to_text", "picture → text"))
REFERENCES = ("references.commonest", "references.any_proposal")
"""Measures of predictions that ignore the pictures."""


def places(run: Path) -> dict[str, Path]:
    """Lists the run itself, under the name "", and the measured runs in its `tasks`, under their folders' names."""
    return {"": run} | {file.parent.name: file.parent for file in sorted(run.glob("tasks/*/eval.json"))}


def same_data(runs: Sequence[Path]) -> dict[str, Any]:
    """Describes the data that the runs were measured on. Raises ValueError naming each field in which two differ."""
    folders_by_task = [places(run) for run in runs]
    shared: dict[str, Any] = {}
    for task in dict.fromkeys(name for folders in folders_by_task for name in folders):
        folders = [folders[task] for folders in folders_by_task if task in folders]
        data = [_data_of(folder) for folder in folders]
        names = dict.fromkeys(name for fields in data for name in fields)
        differing = [name for name in names if any(fields.get(name) != data[0].get(name) for fields in data)]
        if differing:
            lines = [f"{name}: {' and '.join(str(fields.get(name)) for fields in data)}" for name in differing]
            named = " and ".join(map(str, folders))
            raise ValueError("\n  ".join([f"{named} were measured on different data:", *lines]))
        if not task:
            shared = data[0]
    return shared


def _data_of(run: Path) -> dict[str, Any]:
    """Describes the data of a run's measures: fields of its recipe by dotted names, and the number of records."""
    evaluation, recipe = _evaluation(run), stored_recipe(run)
    kind = {"records": catalog.record_kind(recipe.task).__name__}
    return kind | dict(data_fields(recipe)) | {name: evaluation[name] for name in COUNTS if name in evaluation}


def data_fields(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Yields the fields of a recipe's data that its test records depend on, by their dotted names."""
    data = to_dict(recipe)["data"]
    scenes = data.pop("scenes")
    if recipe.data.source == "scenes":
        yield from ((f"data.scenes.{name}", value) for name, value in scenes.items() if name not in TRAINING_ONLY)
    yield from ((f"data.{name}", value) for name, value in data.items() if name not in TRAINING_ONLY)


def _evaluation(run: Path) -> dict[str, Any]:
    file = run / EVALUATION
    for needed in (run / "recipe.json", file):
        if not needed.is_file():
            raise ValueError(f"{needed} does not exist: a comparison needs runs that `diptych evaluate` has measured")
    return read_evaluation(run) or {}


def quality(runs: Sequence[Path]) -> tuple[Quality, ...]:
    """Lists all measures that one of the runs has, task by task."""
    rows: list[Quality] = []
    folders_by_task = [places(run) for run in runs]
    for task in dict.fromkeys(name for folders in folders_by_task for name in folders):
        evaluations = [_evaluation(folders[task]) if task in folders else {} for folders in folders_by_task]
        for key, name in _measures(evaluations):
            scores = tuple(_score(evaluation, key) for evaluation in evaluations)
            rows.append(Quality(task or "the run itself", name, scores, _chance(evaluations, key)))
    return tuple(rows)


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Lists the keys of the measures in eval.json with their readable names."""
    keys = dict.fromkeys(key.removesuffix(".interval") for each in evaluations for key in each if _is_measure(key))
    if "text_to_image.recall@1" not in keys:
        names = measure_names()
        return [(key, names.get(key, key)) for key in keys]
    ranked = [
        (f"contrastive.{way}.recall@{k}", f"{name}, recall@{k}, dual encoder") for way, name in WAYS for k in LEVELS
    ]
    if any("rerank_gain.recall@1" in evaluation for evaluation in evaluations):
        ranked += [(f"{way}.recall@{k}", f"{name}, recall@{k}, re-ranked") for way, name in WAYS for k in LEVELS]
    return ranked


def _is_measure(key: str) -> bool:
    return key.endswith(".interval") and not key.startswith(("references.", "nouns_only.", "rerank_gain"))


def _score(evaluation: Mapping[str, Any], key: str) -> Score | None:
    reranked = key.startswith(("text_to_image", "image_to_text"))
    if evaluation.get(key) is None or f"{key}.interval" not in evaluation:
        return None
    if reranked and "rerank_gain.recall@1" not in evaluation:
        return None
    return Score(evaluation[key], Interval(*evaluation[f"{key}.interval"]))


def _chance(evaluations: Sequence[Mapping[str, Any]], key: str) -> float | None:
    names = [f"chance.{key.removeprefix('contrastive.')}", *(REFERENCES if key == "accuracy" else ())]
    known = [evaluation[name] for evaluation in evaluations for name in names if evaluation.get(name) is not None]
    return known[0] if known else None
