"""The runs that led to a run, followed back through the recipes, with the measures of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.data import Stage
from diptych.apps.report.numbers import number
from diptych.logged import read_metrics
from diptych.serialize import KIND

IN_TRAINING = {
    "code_perplexity": ("perplexity of the codes' use", 1.0, ""),
    "code_accuracy": ("visual tokens guessed", 100.0, " %"),
    "commonest_code": ("always the commonest code", 100.0, " %"),
    "mlm_accuracy": ("masked words guessed", 100.0, " %"),
    "perplexity": ("perplexity of a masked word", 1.0, ""),
}
"""Measures of a log by their key, with their name, factor and unit."""
COMPUTE = "compute.json"
"""File in a run's folder with the operations of its training, where they were counted."""


def training_stages(folder: Path) -> tuple[Stage, ...]:
    """Lists the runs that led to this one in their order, itself last. Runs whose folders are gone are left out."""
    return tuple(dict.fromkeys(_stages(folder)))


def earlier_stages(folder: Path) -> tuple[Stage, ...]:
    """Lists the runs that led to this one, without itself."""
    return training_stages(folder)[:-1]


def _stages(folder: Path) -> Iterator[Stage]:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    for start in (recipe.get("task", {}).get("tokenizer"), recipe.get("init_from")):
        if start and (Path(start) / "recipe.json").is_file() and (Path(start) / "metrics.jsonl").is_file():
            yield from _stages(Path(start))
    lines = read_metrics(folder / "metrics.jsonl")
    last: Mapping[str, float] = lines[-1] if lines else {}
    compute = folder / COMPUTE
    yield Stage(
        recipe=recipe["name"],
        folder=str(folder),
        steps=int(last.get("step", 0)),
        records=int(last.get("pairs", 0)),
        seconds=last.get("seconds", 0.0),
        measures=tuple(_evaluated(folder, recipe) or _logged(lines)),
        flops=json.loads(compute.read_text(encoding="utf-8"))["flops"] if compute.is_file() else None,
    )


def _evaluated(folder: Path, recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Reads the measures of a run that was evaluated record by record; empty for other runs."""
    file, report = folder / "eval.json", dict(catalog.reports()).get(recipe.get("task", {}).get(KIND, ""))
    if not file.is_file() or report is None:
        return []
    evaluation = json.loads(file.read_text(encoding="utf-8"))
    shares = {"accuracy": report.measure} | {f"references.{key}": name for key, name in report.references.items()}
    return [
        *((name, f"{evaluation[key]:.1f} %") for key, name in shares.items() if key in evaluation),
        *((name, number(evaluation[key])) for key, name in report.figures.items() if key in evaluation),
    ]


def _logged(lines: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Gives each measure of IN_TRAINING as the last line that has it logged it."""
    for key, (name, factor, unit) in IN_TRAINING.items():
        values = [line[f"measures.{key}"] for line in lines if f"measures.{key}" in line]
        if values:
            yield f"{name}, in training", f"{number(factor * values[-1])}{unit}"


def training_rate(folder: Path) -> float | None:
    """Computes the records a second over all steps of a run, without its validations; None without a log."""
    lines = [{"pairs": 0.0}, *(line for line in read_metrics(folder / "metrics.jsonl") if "pairs_per_second" in line)]
    steps = [(new["pairs"] - old["pairs"], new["pairs_per_second"]) for old, new in pairwise(lines)]
    seconds = sum(pairs / rate for pairs, rate in steps)
    return sum(pairs for pairs, _ in steps) / seconds if seconds else None
