"""A comparison for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.apps.report.compared import Comparison, Rate, Score
from diptych.apps.report.numbers import duration, number, operations

Line = tuple[str, ...]


def as_text(found: Comparison) -> str:
    """Quality, speed, parameters and training, a table each, with a column for each run."""
    names = [run.name for run in found.runs]
    quality = [
        (one.task, one.measure, _chance(one.chance), *map(_score, one.scores), "" if one.apart else "overlap")
        for one in found.quality
    ]
    speed = [(one.what, one.unit, *map(_rate, one.rates)) for one in found.speed]
    parameters = [(one.what, *map(_count, one.counts)) for one in found.parameters]
    training = [
        (run.name, one.recipe, f"{one.steps:,}", f"{one.records:,}", operations(one.flops), duration(one.seconds))
        for run in found.runs
        for one in run.trained
    ]
    return "\n\n".join(
        [
            _table("Quality in %, with 95 % intervals", ("task", "measure", "no look", *names, ""), quality),
            _table("Speed: training by the log, the rest measured now in turns", ("", "", *names), speed),
            _table("Parameters that a result depends on", ("", *names), parameters),
            _table("Training", ("model", "run", "steps", "records", "computation", "time"), training),
        ]
    )


def _table(title: str, head: Line, body: Sequence[Line]) -> str:
    widths = [max(len(line[place]) for line in (head, *body)) for place in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (head, *body)]
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def _score(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.1f} ({score.interval})"


def _chance(chance: float | None) -> str:
    return "" if chance is None else f"{chance:.1f}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    spread = "" if rate.least == rate.most else f" ({number(rate.least)} … {number(rate.most)})"
    return f"{number(rate.value)}{spread}"


def _count(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"
