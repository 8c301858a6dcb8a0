"""Where the curves of a chart stand: all places are in percent of the plot, from its left and from its top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diptych.apps.report.data import Chart, Series
from diptych.apps.report.numbers import number

MOST_POINTS = 240
"""Points drawn of a curve; more are averaged in neighbouring groups."""


def axes(chart: Chart) -> dict[str, Any]:
    """Computes what the template of a chart needs: its thinned curves, the ticks of both axes, the places of values."""
    curves = [thin(series) for series in chart.series if series.steps]
    x = ticks(0.0, max(curve.steps[-1] for curve in curves), 5)
    finite = [value for curve in curves for value in curve.values if math.isfinite(value)]
    y = ticks(*_range([*finite, *(value for _, value in chart.references)]), 4)

    def along(step: float) -> float:
        return 100 * (step - x[0]) / (x[-1] - x[0])

    def down(value: float) -> float:
        return 100 - 100 * (value - y[0]) / (y[-1] - y[0])

    def points(curve: Series) -> str:
        pairs = zip(curve.steps, curve.values, strict=True)
        places = [f"{along(step):.2f},{down(value):.2f}" for step, value in pairs if math.isfinite(value)]
        return " ".join(places * 2 if len(places) == 1 else places)  # a line from a point to itself is a dot

    numbers = {
        "range": [x[0], x[-1]],
        "series": [
            {"name": curve.name, "steps": curve.steps, "values": list(map(number, curve.values))} for curve in curves
        ],
    }
    return {"curves": curves, "x": x, "y": y, "along": along, "down": down, "points": points, "numbers": numbers}


def reliability_points(bins: Sequence[Sequence[float | int]]) -> str:
    """Computes the points of a reliability plot from bins of (count, mean probability, share that is right).

    >>> reliability_points([(10, 0.25, 0.5), (10, 0.75, 1.0)])
    '25.00,50.00 75.00,0.00'
    """
    return " ".join(f"{100 * probability:.2f},{100 - 100 * right:.2f}" for _, probability, right in bins)


def thin(series: Series) -> Series:
    """Averages neighbours until at most MOST_POINTS points are left. The last point stays as it is."""
    size = math.ceil(len(series.steps) / MOST_POINTS)
    if size == 1:
        return series
    starts = range(0, len(series.steps) - 1, size)
    steps = [_mean(series.steps[i : i + size]) for i in starts] + [series.steps[-1]]
    values = [_mean(series.values[i : i + size]) for i in starts] + [series.values[-1]]
    return Series(series.name, tuple(steps), tuple(values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Gives the lowest and the highest value. 0 is included where it is near."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return 0.0 if 0 < low < 0.5 * high else low, high


def ticks(low: float, high: float, about: int) -> list[float]:
    """Gives round numbers, evenly spaced, the first not above `low` and the last not below `high`.

    >>> ticks(0.3, 9.2, 4)
    [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power * about >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [place * step for place in range(first, last + 1)]
    assert all(after > before for before, after in pairwise(values))
    return values
