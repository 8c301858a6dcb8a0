"""The runs that led to a run, followed back through the recipes, with the measures of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.data import Stage
from diptych.apps.report.numbers import number
from diptych.logged import read_compute, read_evaluation, read_metrics
from diptych.places import StoredPlace, is_allowed
from diptych.reading import read_stored
from diptych.serialize import KIND

IN_TRAINING = {
    "code_perplexity": ("perplexity of the codes' use", 1.0, ""),
    "code_accuracy": ("visual tokens guessed", 100.0, " %"),
    "commonest_code": ("always the commonest code", 100.0, " %"),
    "mlm_accuracy": ("masked words guessed", 100.0, " %"),
    "perplexity": ("perplexity of a masked word", 1.0, ""),
}
"""Measures of a log by their key, with their name, factor and unit."""


def training_stages(folder: Path) -> tuple[Stage, ...]:
    """Lists the runs that led to this one in their order, itself last. Runs whose folders are gone are left out."""
    return tuple(dict.fromkeys(_stages(folder, set())))


def earlier_stages(folder: Path) -> tuple[Stage, ...]:
    """Lists the runs that led to this one, without itself."""
    return training_stages(folder)[:-1]


def _stages(folder: Path, seen: set[Path]) -> Iterator[Stage]:
    """Yields a run after those that it began with."""
    seen.add(folder.resolve())
    recipe = read_stored(folder / "recipe.json")
    task = recipe["task"] if isinstance(recipe.get("task"), Mapping) else {}
    for start in (task.get("tokenizer"), recipe.get("init_from")):
        if isinstance(start, str) and _is_run(start) and Path(start).resolve() not in seen:
            yield from _stages(Path(start), seen)
    lines = read_metrics(folder / "metrics.jsonl")
    last: Mapping[str, float] = lines[-1] if lines else {}
    compute = read_compute(folder)
    yield Stage(
        recipe=str(recipe.get("name")),
        folder=str(folder),
        steps=int(last.get("step", 0)),
        records=int(last.get("pairs", 0)),
        seconds=last.get("seconds", 0.0),
        measures=tuple(_evaluated(folder, task) or _logged(lines)),
        flops=compute["flops"] if compute else None,
    )


def _is_run(place: str) -> bool:
    """Says whether the place that a recipe names is a run that is still there, and that may be looked at."""
    names = ("recipe.json", "metrics.jsonl")
    return is_allowed(StoredPlace(place)) and all((Path(place) / name).is_file() for name in names)


def _evaluated(folder: Path, task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Reads the measures of a run that was evaluated record by record; empty for other runs."""
    evaluation, report = read_evaluation(folder), dict(catalog.reports()).get(str(task.get(KIND)))
    if evaluation is None or report is None:
        return []
    shares = {"accuracy": report.measure} | {f"references.{key}": name for key, name in report.references.items()}
    return [
        *((name, f"{evaluation[key]:.1f} %") for key, name in shares.items() if evaluation.get(key) is not None),
        *((name, number(evaluation[key])) for key, name in report.figures.items() if evaluation.get(key) is not None),
    ]


def _logged(lines: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Gives each measure of IN_TRAINING as the last line that has it logged it."""
    for key, (name, factor, unit) in IN_TRAINING.items():
        values = [line[f"measures.{key}"] for line in lines if f"measures.{key}" in line]
        if values:
            yield f"{name}, in training", f"{number(factor * values[-1])}{unit}"


def training_rate(folder: Path) -> float | None:
    """Computes the records a second over all steps of a run, without its validations; None without a log."""
    logged = (line for line in read_metrics(folder / "metrics.jsonl") if line.get("pairs_per_second", 0) > 0)
    lines = [{"pairs": 0.0}, *(line for line in logged if "pairs" in line)]
    steps = [(new["pairs"] - old["pairs"], new["pairs_per_second"]) for old, new in pairwise(lines)]
    seconds = sum(pairs / rate for pairs, rate in steps)
    return sum(pairs for pairs, _ in steps) / seconds if seconds else None
