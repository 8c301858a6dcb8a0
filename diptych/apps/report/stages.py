"""The runs that made a run, found by what its recipe says that it started from, and what each of them measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.charts import number
from diptych.apps.report.data import Trained
from diptych.logged import read_metrics
from diptych.serialize import KIND

IN_TRAINING = {
    "code_perplexity": ("perplexity of the codes' use", 1.0, ""),
    "code_accuracy": ("visual tokens guessed", 100.0, " %"),
    "commonest_code": ("always the commonest code", 100.0, " %"),
    "mlm_accuracy": ("hidden words guessed", 100.0, " %"),
    "perplexity": ("perplexity of a hidden word", 1.0, ""),
}
"""Measures of a log by their key: their name, factor and unit."""
COMPUTE = "compute.json"
"""What a training took, in a run's folder, where it was counted."""


def trained(folder: Path) -> tuple[Trained, ...]:
    """The runs that led to this one, in their order, itself last; those that are gone are left out."""
    return tuple(dict.fromkeys(_trained(folder)))


def earlier(folder: Path) -> tuple[Trained, ...]:
    """The runs that led to this one."""
    return trained(folder)[:-1]


def _trained(folder: Path) -> Iterator[Trained]:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    for named in (recipe.get("task", {}).get("tokenizer"), recipe.get("init_from")):
        if named and (Path(named) / "recipe.json").is_file() and (Path(named) / "metrics.jsonl").is_file():
            yield from _trained(Path(named))
    lines = read_metrics(folder / "metrics.jsonl")
    last: Mapping[str, float] = lines[-1] if lines else {}
    yield Trained(
        recipe["name"], str(folder), int(last.get("step", 0)), int(last.get("pairs", 0)), last.get("seconds", 0.0),
        tuple(_evaluated(folder, recipe) or _logged(lines)), _flops(folder),
    )  # fmt: skip


def _flops(folder: Path) -> float | None:
    file = folder / COMPUTE
    return json.loads(file.read_text(encoding="utf-8"))["flops"] if file.is_file() else None


def _evaluated(folder: Path, recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of a run that was judged record by record: on unseen ones, what did not look, and other figures."""
    file, task = folder / "eval.json", dict(catalog.reports()).get(recipe.get("task", {}).get(KIND, ""))
    if not file.is_file() or task is None:
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    shares = {"accuracy": task.measure} | {f"references.{key}": name for key, name in task.references.items()}
    return [
        *((name, f"{found[key]:.1f} %") for key, name in shares.items() if key in found),
        *((name, number(found[key])) for key, name in task.figures.items() if key in found),
    ]


def _logged(lines: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """As of the last line that has them."""
    for key, (name, factor, unit) in IN_TRAINING.items():
        values = [line[f"measures.{key}"] for line in lines if f"measures.{key}" in line]
        if values:
            yield f"{name}, in training", f"{number(factor * values[-1])}{unit}"


def training_rate(folder: Path) -> float | None:
    """Records a second over all steps of a run, without its validations; None where nothing was logged."""
    lines = [{"pairs": 0.0}, *(line for line in read_metrics(folder / "metrics.jsonl") if "pairs_per_second" in line)]
    steps = [(new["pairs"] - old["pairs"], new["pairs_per_second"]) for old, new in pairwise(lines)]
    seconds = sum(pairs / rate for pairs, rate in steps)
    return sum(pairs for pairs, _ in steps) / seconds if seconds else None
