"""Measures of runs and of the tasks below them, where they were taken on the same data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.compared import Quality, Score
from diptych.apps.report.task_evaluation import measure_names
from diptych.metrics.intervals import Interval
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe

TRAINING_ONLY = frozenset(
    ("validation_path", "crop", "flip", "flip_directional", "randaugment", "augmentation", "max_tokens",
     "max_tokens_evaluation", "bad_share", "workers", "normalise", "count", "complete", "noise")
)  # fmt: skip
"""Fields of `data` that no test record depends on; how many tokens a model reads of a text is its own affair."""
COUNTS = ("images", "texts", "examples", "labelled")
LEVELS = (1, 10)
WAYS = (("text_to_image", "text → picture"), ("image_to_text", "picture → text"))
REFERENCES = ("references.commonest", "references.any_proposal")
"""What is reached without looking."""


def places(run: Path) -> dict[str, Path]:
    """The run itself, named "", and the tasks below it that have been measured, by their folder's name."""
    return {"": run} | {file.parent.name: file.parent for file in sorted(run.glob("tasks/*/eval.json"))}


def same_data(runs: Sequence[Path]) -> dict[str, Any]:
    """What the runs were measured on. Raises ValueError naming each field in which two of them differ."""
    below = [places(run) for run in runs]
    shared: dict[str, Any] = {}
    for place in dict.fromkeys(name for one in below for name in one):
        held = [one[place] for one in below if place in one]
        described = [_described(folder) for folder in held]
        fields = dict.fromkeys(name for one in described for name in one)
        differing = [name for name in fields if any(one.get(name) != described[0].get(name) for one in described)]
        if differing:
            lines = [f"{name}: {' and '.join(str(one.get(name)) for one in described)}" for name in differing]
            named = " and ".join(map(str, held))
            raise ValueError("\n  ".join([f"{named} were measured on different data:", *lines]))
        if not place:
            shared = described[0]
    return shared


def _described(run: Path) -> dict[str, Any]:
    """The data of a run's measures: fields of its recipe by dotted names, and how much there was of it."""
    found, recipe = _evaluation(run), stored_recipe(run)
    described = {"records": catalog.record_kind(recipe.task).__name__}
    return described | dict(_data_fields(recipe)) | {name: found[name] for name in COUNTS if name in found}


def _data_fields(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    data = to_dict(recipe)["data"]
    scenes = data.pop("scenes")
    if recipe.data.source == "scenes":
        yield from ((f"data.scenes.{name}", value) for name, value in scenes.items() if name not in TRAINING_ONLY)
    yield from ((f"data.{name}", value) for name, value in data.items() if name not in TRAINING_ONLY)


def _evaluation(run: Path) -> dict[str, Any]:
    file = run / "eval.json"
    for needed in (run / "recipe.json", file):
        if not needed.is_file():
            raise ValueError(f"{needed} does not exist: a comparison needs runs that `diptych evaluate` has measured")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def quality(runs: Sequence[Path]) -> tuple[Quality, ...]:
    """All measures that one of the runs has, task by task."""
    found: list[Quality] = []
    below = [places(run) for run in runs]
    for place in dict.fromkeys(name for one in below for name in one):
        evaluations = [_evaluation(one[place]) if place in one else {} for one in below]
        for key, name in _measures(evaluations):
            scores = tuple(_score(one, key) for one in evaluations)
            found.append(Quality(place or "the run itself", name, scores, _chance(evaluations, key)))
    return tuple(found)


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Key in eval.json, and name for people."""
    keys = dict.fromkeys(key.removesuffix(".interval") for one in evaluations for key in one if _is_measure(key))
    if "text_to_image.recall@1" not in keys:
        names = measure_names()
        return [(key, names.get(key, key)) for key in keys]
    ranked = [
        (f"contrastive.{way}.recall@{k}", f"{name}, recall@{k}, dual encoder") for way, name in WAYS for k in LEVELS
    ]
    if any("rerank_gain.recall@1" in one for one in evaluations):
        ranked += [(f"{way}.recall@{k}", f"{name}, recall@{k}, re-ranked") for way, name in WAYS for k in LEVELS]
    return ranked


def _is_measure(key: str) -> bool:
    return key.endswith(".interval") and not key.startswith(("references.", "nouns_only.", "rerank_gain"))


def _score(evaluation: Mapping[str, Any], key: str) -> Score | None:
    reranked = key.startswith(("text_to_image", "image_to_text"))
    if key not in evaluation or (reranked and "rerank_gain.recall@1" not in evaluation):
        return None
    return Score(evaluation[key], Interval(*evaluation[f"{key}.interval"]))


def _chance(evaluations: Sequence[Mapping[str, Any]], key: str) -> float | None:
    names = [f"chance.{key.removeprefix('contrastive.')}", *(REFERENCES if key == "accuracy" else ())]
    return next((one[name] for one in evaluations for name in names if name in one), None)
