"""A run read from its folder: recipe, log, start weights, state of the newest checkpoint. No weights are loaded.

The log is split into lines of training and lines of validation. `late` means the last quarter of a logged number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.logged import read_data, read_metrics
from diptych.reading import expand_home, read_object, read_stored
from diptych.schema import Recipe
from diptych.serialize import from_dict

Point = tuple[int, float]
"""A step and a value logged there."""
FEWEST = 8
"""Lines that a curve needs at least to be judged, so that a quarter of it is more than one line."""
REGULARISERS = ("losses.uneven_use",)
"""Terms that only regularise, so that their course does not tell whether the run learns."""
EARLY = 200
"""Steps before which no loss is judged, or the warm-up if that is longer. The number is our own choice."""


@dataclass(frozen=True)
class Run:
    """A run as its folder describes it."""

    folder: Path
    recipe: Recipe
    lines: tuple[dict[str, float], ...]
    """Lines of training, with flat names such as `losses.itc`."""
    validations: tuple[dict[str, float], ...]
    start: dict[str, Any] | None
    """Content of `start.json` (train/start.py); None for runs of earlier versions, which did not write it."""
    state: dict[str, Any]
    """Content of `state.json` of the newest checkpoint; empty without a checkpoint."""
    data: tuple[dict[str, Any], ...] = ()
    """Content of `data.json` (run/known_data.py); empty for runs of earlier versions."""

    @property
    def step(self) -> int:
        """The last logged step."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @cached_property
    def warmup(self) -> int:
        """Number of warm-up steps."""
        schedule = self.recipe.schedule
        if schedule.warmup_share is not None:
            return int(schedule.warmup_share * (self.recipe.run.steps or self.step))
        return schedule.warmup_steps

    @property
    def terms(self) -> list[str]:
        """Names of the losses that are learnt, as in the log: `losses.itc` …"""
        names = dict.fromkeys(name for line in self.lines for name in line if name.startswith("losses."))
        return [name for name in names if name not in REGULARISERS]

    def points(self, name: str) -> list[Point]:
        """Gives a number of the training lines by step."""
        return [(int(line["step"]), line[name]) for line in self.lines if name in line]

    def late(self, name: str) -> float | None:
        """Computes the mean of the last quarter of a number's lines; None for fewer than `FEWEST` lines."""
        means = quarters([value for _, value in self.points(name)])
        return means[-1] if means else None

    def settled(self, since: int = 0) -> bool:
        """Tells whether a loss that is trained since a step has had time to learn something."""
        return self.step >= since + max(self.warmup, EARLY)


def quarters(values: list[float]) -> list[float]:
    """Computes the means of four equal parts of a curve, in order; none for a curve that is too short.

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
    """Reads a run. Raises ValueError for a folder without a run, or without a logged step."""
    folder = expand_home(folder)
    recipe = folder / "recipe.json"
    if not recipe.is_file():
        raise ValueError(f"{folder} holds no run: it has no recipe.json")
    lines = read_metrics(folder / "metrics.jsonl")
    training = tuple(line for line in lines if "loss" in line)
    if not training:
        raise ValueError(
            f"{folder} has logged no step yet: wait for the first line of its metrics.jsonl."
            " If the run has ended, its last message says why, and run.log_every=1 logs from the first step on"
        )
    validations = tuple(line for line in lines if "loss" not in line)
    return Run(
        folder=folder,
        recipe=from_dict(read_stored(recipe)),
        lines=training,
        validations=validations,
        start=_json(folder / "start.json"),
        state=_newest_state(folder) or {},
        data=tuple(read_data(folder)),
    )


def _newest_state(folder: Path) -> dict[str, Any] | None:
    checkpoints = [
        path for path in (folder / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()
    ]
    newest = max(checkpoints, key=lambda path: int(path.name.removeprefix("step-")), default=None)
    return _json(newest / "state.json") if newest else None


def _json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None for a missing or broken file, since resuming reports damaged checkpoints."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return None
