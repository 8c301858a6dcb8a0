"""Recorded envelopes: the range in which the losses of a recipe have been, step by step.

`record` computes a band from one or several runs:
1. At each logged step, it pools the values of all runs at steps from (1 − t) to (1 + t) times this one, and the values
   on the curve at both ends, because a run may learn the same a little sooner or later. t is 0.25 divided by the root
   of the number of runs. Steps of a term that joins later (`task.fuse_start`) count from where it joins.
2. The 5 % and 95 % quantiles of the pool are the band. It is widened by 5 % of its value on either side, which is
   divided by the same root.
t and 5 % are our own choices, since one run does not tell how another seed differs. More runs narrow the band.

A band holds for runs whose recipes agree in all fields that matter to the loss, which are all but `WITHOUT_WEIGHT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych.apps.doctor.chance import chances
from diptych.apps.doctor.finding import Finding
from diptych.apps.doctor.run import FEWEST, Point, Run
from diptych.reading import read_object
from diptych.schema import Recipe
from diptych.serialize import from_dict, to_dict

RECORDED = Path(__file__).parent / "envelopes"
"""Folder of the envelopes that come with the package."""
SOONER = 0.25
"""t for one run."""
WIDER = 0.05
"""Share of its value by which the band of one run is widened."""
QUANTILES = (0.05, 0.95)
WITHOUT_WEIGHT = (
    "name", "data.workers", "data.bad_share", "data.held_out", "data.validation_path", "data.test_path",
    "run.seed", "run.device", "run.precision", "run.parallel", "run.activation_checkpointing", "run.compile",
    "run.threads", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.validate_every",
    "run.validation_items", "run.patience", "run.tensorboard", "run.trackers",
    "evaluation",
)  # fmt: skip
"""Fields that move a training loss no more than another seed does. A group's name stands for all its fields."""
PLACES = ("init_from", "task.tokenizer")
"""Fields that name other runs. It matters only whether they name one."""
OUTSIDE = 0.2
"""Share of the lines above the band from which on a loss counts as outside."""
LAST = 3
"""A loss also counts as outside if this many last lines lie above the band. Lines are smoothed over as many."""


@dataclass(frozen=True)
class Band:
    """The band of a term: `low` and `high` at each of `steps`."""

    steps: Sequence[int]
    low: Sequence[float]
    high: Sequence[float]

    def at(self, step: int) -> tuple[float, float]:
        """Interpolates the band linearly at a step. Beyond its ends the band stays constant."""
        low, high = (list(zip(self.steps, values, strict=True)) for values in (self.low, self.high))
        return _between(low, step), _between(high, step)


@dataclass(frozen=True)
class Envelope:
    """The bands of a recipe."""

    recipe: Recipe
    runs: int
    bands: Mapping[str, Band]
    """Band of each term by its name in the log, such as `losses.itc`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "sooner": SOONER / self.runs**0.5,
            "wider": WIDER / self.runs**0.5,
            "quantiles": QUANTILES,
            "recipe": to_dict(self.recipe),
            "bands": {name: asdict(band) for name, band in self.bands.items()},
        }

    @classmethod
    def read(cls, file: Path) -> Envelope:
        """Reads an envelope. Raises ValueError for any other file."""
        try:
            content = read_object(file)
            bands = {name: Band(**band) for name, band in content["bands"].items()}
            return cls(from_dict(content["recipe"]), content["runs"], bands)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{file} is no envelope: make one with `diptych doctor --record RUN --to {file}`"
            ) from error


# --------------------------------------------------------------------------- recording


def record(runs: Sequence[Run]) -> Envelope:
    """Records the envelope of finished runs of one recipe. Raises ValueError for runs that differ or have not ended."""
    first = runs[0]
    for run in runs:
        if differing := differences(first.recipe, run.recipe):
            fields = ", ".join(differing)
            raise ValueError(f"{run.folder} has another recipe than {first.folder}: {fields} differ")
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
    """Computes the band of a term that was trained from step `since` on."""
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
    """Computes a quantile by linear interpolation, as numpy does by default.

    >>> _quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _between(curve: Sequence[Point], step: int | float) -> float:
    """Interpolates a curve linearly at a step. Beyond its ends it stays constant.

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


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """Lists the dotted names of the fields that matter to a loss and differ between two recipes."""
    fields, others = dict(_flat(to_dict(recipe))), dict(_flat(to_dict(other)))
    return sorted(name for name in {*fields, *others} if fields.get(name) != others.get(name))


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Lists the fields that matter to a loss by their dotted names."""
    for key, value in content.items():
        name = f"{above}{key}"
        if name in WITHOUT_WEIGHT:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, bool(value) if name in PLACES else value


def known(name: str, files: Iterable[Path] = ()) -> list[Envelope]:
    """Reads the envelopes in `files`, then that of the package for recipes of this name, if there is one."""
    packaged = RECORDED / f"{name}.json"
    return [Envelope.read(file) for file in (*files, *([packaged] if packaged.is_file() else []))]


def envelope(run: Run, envelopes: Sequence[Envelope]) -> Iterator[Finding]:
    """Compares each term of the loss with the first envelope that holds for the run's recipe."""
    fitting = next((candidate for candidate in envelopes if not differences(candidate.recipe, run.recipe)), None)
    if fitting is None:
        yield _without_envelope(run, envelopes)
        return
    for name, band in fitting.bands.items():
        if points := run.points(name):
            yield _compared(name.removeprefix("losses."), smoothed(points), band, fitting)


def _without_envelope(run: Run, envelopes: Sequence[Envelope]) -> Finding:
    name = run.recipe.name
    namesakes = [candidate for candidate in envelopes if candidate.recipe.name == name]
    what = f"no envelope is recorded for {name}"
    if namesakes:
        differing = differences(namesakes[0].recipe, run.recipe)
        rest = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        what = f"the envelope of {name} does not hold for this run: {', '.join(differing[:5])}{rest} differ"
    return Finding(
        "envelope",
        "unknown",
        f"{what}, so only the general checks apply",
        f"record an envelope from runs that you trust with `diptych doctor --record RUN RUN … --to {name}.json`, then "
        f"pass it as --envelope {name}.json",
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Gives each step the mean of its value and the two before it.

    >>> smoothed([(1, 3.0), (2, 6.0), (3, 0.0)])
    [(1, 3.0), (2, 4.5), (3, 3.0)]
    """
    values = [value for _, value in points]
    groups = [values[max(0, end - LAST) : end] for end in range(1, len(values) + 1)]
    return [(step, sum(group) / len(group)) for (step, _), group in zip(points, groups, strict=True)]


def _compared(term: str, points: Sequence[Point], band: Band, recorded: Envelope) -> Finding:
    values_and_bands = [(value, *band.at(step)) for step, value in points]
    above = [value > high for value, _, high in values_and_bands]
    below = [value < low for value, low, _ in values_and_bands]
    value, low, high = values_and_bands[-1]
    origin = f"{recorded.runs} {'run' if recorded.runs == 1 else 'runs'} of {recorded.recipe.name}"
    what = f"{value:.3g} at step {points[-1][0]:,}, where the recorded band is {low:.3g} … {high:.3g} ({origin})"
    if sum(above) > OUTSIDE * len(above) or all(above[-LAST:]):
        return Finding(
            f"envelope: {term}",
            "wrong",
            f"{what}; {sum(above)} of {len(above)} lines are above the band",
            "this recipe has learnt faster before: see the other findings, then look for what else differs, such as "
            "data, start weights or versions",
        )
    if sum(below) > OUTSIDE * len(below):
        return Finding(
            f"envelope: {term}",
            "note",
            f"{what}; {sum(below)} of {len(below)} lines are below the band",
            "the run is better than recorded or its data are easier: check that no test picture is among the training "
            "pictures (`diptych data validate`)",
        )
    return Finding(f"envelope: {term}", "fine", what)
