"""Recorded envelopes: where a loss of this very recipe has been, step by step.

A band is made of one or several runs (`record`):
1. At each logged step, the values of all runs at steps from (1 − t) to (1 + t) times this one are pooled, and those on
   the curve at these two: a run may learn the same a little sooner or later. t is 0.25 divided by the root of the
   number of runs. Of a term that joins later (`task.fuse_start`), steps count from there.
2. Their 5 % and 95 % quantiles are the band, which is widened by 5 % of its value on either side, divided likewise.
t and 5 % are our own choices: one run says nothing of how another seed differs. More runs narrow them.

A band holds for runs whose recipe is equal in all that matters to the loss: all fields but those of `WITHOUT_WEIGHT`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych.apps.doctor.chance import chances
from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import FEWEST, Point, Run
from diptych.schema import Recipe
from diptych.serialize import from_dict, to_dict

RECORDED = Path(__file__).parent / "envelopes"
"""Those that come with the package."""
SOONER = 0.25
"""t of one run."""
WIDER = 0.05
"""Share of the value that a band of one run is widened by."""
QUANTILES = (0.05, 0.95)
WITHOUT_WEIGHT = (
    "name", "data.workers", "data.bad_share", "data.held_out", "data.validation_path", "data.test_path",
    "run.seed", "run.device", "run.precision", "run.parallel", "run.activation_checkpointing", "run.compile",
    "run.threads", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.validate_every",
    "run.validation_items", "run.patience", "run.tensorboard", "evaluation",
)  # fmt: skip
"""Fields that do not move a training loss by more than another seed does, whole groups by their name."""
PLACES = ("init_from", "task.tokenizer")
"""Fields that name other runs: only whether they do matters."""
OUTSIDE = 0.2
"""Share of the lines above the band from which on a loss is outside."""
LAST = 3
"""So many last lines above the band say so too. A line that is compared is the mean of as many."""


@dataclass(frozen=True)
class Band:
    """A term's band: `low` and `high` at each of `steps`."""

    steps: Sequence[int]
    low: Sequence[float]
    high: Sequence[float]

    def at(self, step: int) -> tuple[float, float]:
        """Between two recorded steps, on the line between them; beyond the ends, as at the end."""
        low, high = (list(zip(self.steps, values, strict=True)) for values in (self.low, self.high))
        return _between(low, step), _between(high, step)


@dataclass(frozen=True)
class Envelope:
    """The bands of a recipe."""

    recipe: Recipe
    runs: int
    bands: Mapping[str, Band]
    """By the names of the log, such as `losses.itc`."""

    def to_json(self) -> dict[str, Any]:
        made = {"runs": self.runs, "sooner": SOONER / self.runs**0.5, "wider": WIDER / self.runs**0.5}
        bands = {name: asdict(band) for name, band in self.bands.items()}
        return {**made, "quantiles": QUANTILES, "recipe": to_dict(self.recipe), "bands": bands}

    @classmethod
    def read(cls, file: Path) -> Envelope:
        """Raises ValueError for a file that is no envelope."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            bands = {name: Band(**band) for name, band in content["bands"].items()}
            return cls(from_dict(content["recipe"]), content["runs"], bands)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{file} is no envelope: make one with `diptych doctor --record RUN --to {file}`"
            ) from error


# --------------------------------------------------------------------------- recording


def record(runs: Sequence[Run]) -> Envelope:
    """The envelope of runs of one recipe that have ended. Raises ValueError for others."""
    first = runs[0]
    for run in runs:
        if differing := differences(first.recipe, run.recipe):
            raise ValueError(f"{run.folder} is of another recipe than {first.folder}: {', '.join(differing)} differ")
        if len(run.lines) < FEWEST:
            raise ValueError(f"{run.folder} has logged {len(run.lines)} lines; an envelope needs {FEWEST}")
        if (
            run.recipe.run.steps is not None
            and run.lines[-1]["step"] + run.recipe.run.log_every <= run.recipe.run.steps
        ):
            raise ValueError(f"{run.folder} has not ended: it is at step {run.step} of {run.recipe.run.steps}")
    joins = {f"losses.{level.term}": level.since for level in chances(first.recipe)}
    bands = {name: _band([run.points(name) for run in runs], joins.get(name, 0)) for name in first.terms}
    return Envelope(first.recipe, len(runs), bands)


def _band(curves: Sequence[Sequence[Point]], since: int = 0) -> Band:
    """`since`: steps before which the term did not train; sooner and later count from there."""
    share = len(curves) ** -0.5
    sooner, wider = SOONER * share, WIDER * share
    points = sorted(point for curve in curves for point in curve)
    steps = sorted({step for step, _ in points})
    low, high = [], []
    for step in steps:
        first, last = step - sooner * (step - since), step + sooner * (step - since)
        near = [value for at, value in points if first <= at <= last]
        near += [_between(curve, at) for curve in curves for at in (first, last)]
        down, up = (_quantile(sorted(near), share) for share in QUANTILES)
        low.append(round(down - wider * abs(down), 4))
        high.append(round(up + wider * abs(up), 4))
    return Band(steps, low, high)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values, as numpy's default.

    >>> _quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _between(curve: Sequence[Point], step: int | float) -> float:
    """On the line between the two nearest points; beyond the ends, as at the end.

    >>> _between([(10, 1.0), (20, 3.0)], 15), _between([(10, 1.0), (20, 3.0)], 99)
    (2.0, 3.0)
    """
    if step <= curve[0][0]:
        return curve[0][1]
    for (before, low), (after, high) in pairwise(curve):
        if step <= after:
            return low + (step - before) / (after - before) * (high - low)
    return curve[-1][1]


# --------------------------------------------------------------------------- comparing


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Dotted names of the fields that matter to a loss and differ."""
    mine, theirs = dict(_flat(to_dict(one))), dict(_flat(to_dict(other)))
    return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that matters, by its dotted name."""
    for key, value in content.items():
        name = f"{above}{key}"
        if name in WITHOUT_WEIGHT:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, bool(value) if name in PLACES else value


def known(name: str, files: Iterable[Path] = ()) -> list[Envelope]:
    """The given ones, then the package's for recipes of that name, if it has one. Raises ValueError as `read` does."""
    own = RECORDED / f"{name}.json"
    return [Envelope.read(file) for file in (*files, *([own] if own.is_file() else []))]


def envelope(run: Run, envelopes: Sequence[Envelope]) -> Iterator[Finding]:
    """Each term of the loss against the first envelope that holds for the run's recipe."""
    fitting = next((one for one in envelopes if not differences(one.recipe, run.recipe)), None)
    if fitting is None:
        yield _none(run, envelopes)
        return
    for name, band in fitting.bands.items():
        if points := run.points(name):
            yield _inside(name.removeprefix("losses."), smoothed(points), band, fitting)


def _none(run: Run, envelopes: Sequence[Envelope]) -> Finding:
    name = run.recipe.name
    own = [one for one in envelopes if one.recipe.name == name]
    what = f"none is recorded for {name}"
    if own:
        differing = differences(own[0].recipe, run.recipe)
        rest = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        what = f"that of {name} does not hold here: {', '.join(differing[:5])}{rest} differ"
    return Finding(
        "envelope",
        "unknown",
        f"{what}; judged by general rules only",
        f"record one of runs that you trust: diptych doctor --record RUN RUN … --to {name}.json, then --envelope it",
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each step with the mean of its line and the two before it.

    >>> smoothed([(1, 3.0), (2, 6.0), (3, 0.0)])
    [(1, 3.0), (2, 4.5), (3, 3.0)]
    """
    values = [value for _, value in points]
    groups = [values[max(0, end - LAST) : end] for end in range(1, len(values) + 1)]
    return [(step, sum(group) / len(group)) for (step, _), group in zip(points, groups, strict=True)]


def _inside(term: str, points: Sequence[Point], band: Band, recorded: Envelope) -> Finding:
    where = [(value, *band.at(step)) for step, value in points]
    above, below = [value > high for value, _, high in where], [value < low for value, low, _ in where]
    value, low, high = where[-1]
    of = f"{recorded.runs} {'run' if recorded.runs == 1 else 'runs'} of {recorded.recipe.name}"
    known = f"{value:.3g} at step {points[-1][0]:,}, recorded {low:.3g} … {high:.3g} ({of})"
    if sum(above) > OUTSIDE * len(above) or all(above[-LAST:]):
        return Finding(
            f"envelope: {term}",
            "wrong",
            f"{known}; above at {sum(above)} of {len(above)} lines",
            "this very recipe has learnt faster before: see the other findings, then what else is not the same: data, "
            "start weights, versions",
        )
    if sum(below) > OUTSIDE * len(below):
        return Finding(
            f"envelope: {term}",
            "note",
            f"{known}; below at {sum(below)} of {len(below)} lines",
            "better than recorded, or easier data: see that test pictures are not among those trained on "
            "(`diptych data validate`)",
        )
    return Finding(f"envelope: {term}", "fine", known)
