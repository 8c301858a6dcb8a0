"""A run as its folder tells it: recipe, log, what it began with, what its newest checkpoint says. No weights are read.

A log is cut into lines of training and lines of validation; `late` is the last quarter of what was logged of a number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.logged import read_metrics
from diptych.schema import Recipe
from diptych.serialize import from_dict

Point = tuple[int, float]
"""A step and what was logged there."""
FEWEST = 8
"""Lines below which nothing is said of a curve's course: its quarters would be single lines."""
REGULARISERS = ("losses.uneven_use",)
"""Terms that only keep something in bounds: their course says nothing of what is learnt."""
EARLY = 200
"""Steps that a loss is given at least before it is judged, or the warm-up if that is longer. Our own choice."""


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    folder: Path
    recipe: Recipe
    lines: tuple[dict[str, float], ...]
    """Of training, with flat names (`losses.itc`)."""
    validations: tuple[dict[str, float], ...]
    start: dict[str, Any] | None
    """`start.json` (train/start.py); None for a run from before there was one."""
    state: dict[str, Any]
    """`state.json` of the newest checkpoint; empty for none."""

    @property
    def step(self) -> int:
        """The last one logged."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @cached_property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        schedule = self.recipe.schedule
        if schedule.warmup_share is not None:
            return int(schedule.warmup_share * (self.recipe.run.steps or self.step))
        return schedule.warmup_steps

    @property
    def terms(self) -> list[str]:
        """What is learnt, as the log names it: `losses.itc` …"""
        names = dict.fromkeys(name for line in self.lines for name in line if name.startswith("losses."))
        return [name for name in names if name not in REGULARISERS]

    def points(self, name: str) -> list[Point]:
        """A number of the training lines by step."""
        return [(int(line["step"]), line[name]) for line in self.lines if name in line]

    def late(self, name: str) -> float | None:
        """The mean of the last quarter of a number's lines; None where fewer than `FEWEST` were logged."""
        found = quarters([value for _, value in self.points(name)])
        return found[-1] if found else None

    def settled(self, since: int = 0) -> bool:
        """Whether what has been trained since a step is expected to have learnt something."""
        return self.step >= since + max(self.warmup, EARLY)


def quarters(values: list[float]) -> list[float]:
    """The means of four equal parts, in order; none of a curve that is too short.

    >>> quarters([8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0])
    [8.0, 4.0, 2.0, 1.0]
    >>> quarters([1.0, 2.0])
    []
    """
    if len(values) < FEWEST:
        return []
    size = len(values) // 4
    parts = [values[:size], values[size : 2 * size], values[2 * size : -size], values[-size:]]
    return [sum(part) / len(part) for part in parts]


def read_run(folder: Path) -> Run:
    """Raises ValueError for a folder that holds no run, or one that has logged nothing."""
    recipe = folder / "recipe.json"
    if not recipe.is_file():
        raise ValueError(f"{folder} holds no run: it has no recipe.json")
    lines = read_metrics(folder / "metrics.jsonl")
    training = tuple(line for line in lines if "loss" in line)
    if not training:
        raise ValueError(f"{folder} has logged no step yet: wait for the first line of its metrics.jsonl")
    validations = tuple(line for line in lines if "loss" not in line)
    built = from_dict(json.loads(recipe.read_text(encoding="utf-8")))
    return Run(folder, built, training, validations, _json(folder / "start.json"), _newest_state(folder) or {})


def _newest_state(folder: Path) -> dict[str, Any] | None:
    found = [path for path in (folder / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    newest = max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)
    return _json(newest / "state.json") if newest else None


def _json(path: Path) -> dict[str, Any] | None:
    """None for a file that is not there or not whole: a damaged checkpoint is for resuming to say."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
