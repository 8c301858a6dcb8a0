"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.apps.report.compared import Comparison, Rate, Score
from diptych.apps.report.numbers import columns, duration, number, operations

Line = tuple[str, ...]


def as_text(comparison: Comparison) -> str:
    """Formats quality, speed, parameters and training as a table each, with a column for each run."""
    names = [run.name for run in comparison.runs]
    quality = [
        (row.task, row.measure, _chance(row.chance), *map(_score, row.scores), "" if row.apart else "overlap")
        for row in comparison.quality
    ]
    speed = [(row.what, row.unit, *map(_rate, row.rates)) for row in comparison.speed]
    parameters = [(row.what, *map(_count, row.counts)) for row in comparison.parameters]
    training = [
        (
            run.name, stage.recipe, f"{stage.steps:,}", f"{stage.records:,}", operations(stage.flops),
            duration(stage.seconds),
        )
        for run in comparison.runs
        for stage in run.trained
    ]  # fmt: skip
    return "\n\n".join(
        [
            _table("Quality in %, with 95 % intervals", ("task", "measure", "no look", *names, ""), quality),
            _table("Speed: training from the log, all else measured now in turns", ("", "", *names), speed),
            _table("Parameters that a result depends on", ("", *names), parameters),
            _table("Training", ("model", "run", "steps", "records", "computation", "time"), training),
        ]
    )


def _table(title: str, head: Line, body: Sequence[Line]) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in columns([head, *body]))])


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
