"""Several runs side by side: the measures of `diptych compare`, and the page that shows them.

A row has a value for each run, in the order of `Comparison.runs`; None where a run lacks it. The names of the fields
are those of comparison.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych.apps.report.data import Stage
from diptych.apps.report.page import fill
from diptych.metrics.intervals import Interval
from diptych.writing import write_text

FILE = "comparison.html"


@dataclass(frozen=True)
class Score:
    """A measure in percent with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Quality:
    """One measure of one task."""

    task: str
    measure: str
    scores: tuple[Score | None, ...]
    chance: float | None
    """The score of predictions that ignore the pictures. It is the same for all runs, since the data are the same."""

    @property
    def apart(self) -> bool:
        """Whether no two intervals overlap."""
        intervals = sorted(score.interval for score in self.scores if score)
        return all(lower.high < higher.low for lower, higher in pairwise(intervals))

    @property
    def best(self) -> float | None:
        """The highest value where all intervals lie apart, else None."""
        return max((score.value for score in self.scores if score), default=None) if self.apart else None


@dataclass(frozen=True)
class Rate:
    """Items a second: median, least and most of the rounds, or three times the one number that a log gives."""

    value: float
    least: float
    most: float


@dataclass(frozen=True)
class Speed:
    """The rates of one activity."""

    what: str
    unit: str
    rates: tuple[Rate | None, ...]

    @property
    def numbers(self) -> tuple[float | None, ...]:
        return tuple(None if rate is None else rate.value for rate in self.rates)


@dataclass(frozen=True)
class Parameters:
    """The number of parameters that a result depends on."""

    what: str
    counts: tuple[int | None, ...]

    @property
    def numbers(self) -> tuple[int | None, ...]:
        return self.counts


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    name: str
    """Name of its recipe, with its folder where two runs have the same recipe."""
    folder: str
    trained: tuple[Stage, ...]
    """The runs that made its model, itself last."""


@dataclass(frozen=True)
class Comparison:
    """All measures of a comparison."""

    runs: tuple[ComparedRun, ...]
    data: Mapping[str, Any]
    """The data that the runs were measured on: fields of a recipe, with the counts of their evaluations."""
    quality: tuple[Quality, ...]
    speed: tuple[Speed, ...]
    parameters: tuple[Parameters, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Writes `folder/comparison.html`, whole or not at all, and returns its path."""
    return write_text(folder / FILE, render(comparison))


def render(comparison: Comparison) -> str:
    """Renders the page of a comparison."""
    return fill("comparison.html.j2", comparison=comparison)
