"""Several runs side by side: the values that `diptych compare` finds, as its page and its table show them.

A row has a cell for each run, in the order of `Comparison.runs`; None: the run has no such thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from diptych.apps.report.data import Trained
from diptych.metrics.intervals import Interval


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
    """What is reached without looking; the same for all runs, since the data are."""

    @property
    def apart(self) -> bool:
        """Whether no two intervals overlap."""
        ends = sorted(score.interval for score in self.scores if score)
        return all(one.high < other.low for one, other in pairwise(ends))


@dataclass(frozen=True)
class Rate:
    """Items a second: the median of the rounds, the least and the most. Of a log there is one number."""

    value: float
    least: float
    most: float


@dataclass(frozen=True)
class Speed:
    """How fast one thing goes."""

    what: str
    unit: str
    rates: tuple[Rate | None, ...]


@dataclass(frozen=True)
class Parameters:
    """How many parameters a result depends on."""

    what: str
    counts: tuple[int | None, ...]


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    name: str
    """Its recipe, with the folder where two have the same."""
    folder: str
    trained: tuple[Trained, ...]
    """The runs that made it, itself last."""


@dataclass(frozen=True)
class Comparison:
    """All that is compared."""

    runs: tuple[ComparedRun, ...]
    data: Mapping[str, Any]
    """What the runs were measured on: fields of a recipe, with the counts of their evaluations."""
    quality: tuple[Quality, ...]
    speed: tuple[Speed, ...]
    parameters: tuple[Parameters, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
