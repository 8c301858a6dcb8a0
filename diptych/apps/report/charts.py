"""Curves as inline SVG. The drawing stretches with the page; its labels are HTML, so that they stay readable on phones.

All places are in percent of the plot, from its left and from its top.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise

from diptych.apps.report.data import Chart, Series
from diptych.apps.report.html import Html, raw, tag

MOST_POINTS = 240
"""Points drawn of a curve; more are averaged in neighbouring groups."""


def draw(chart: Chart) -> Html:
    """A figure with legend (last values), axes and, with a pointer over it, the values at a step."""
    series = [thin(one) for one in chart.series if one.steps]
    x = ticks(0.0, max(one.steps[-1] for one in series), 5)
    shown = [value for one in series for value in one.values if math.isfinite(value)]
    y = ticks(*_range([*shown, *(value for _, value in chart.references)]), 4)
    return tag(
        "figure",
        tag("figcaption", tag("b", chart.title), " ", tag("span", chart.unit, class_="unit")),
        tag("ul", [_entry(number, one) for number, one in enumerate(series, 1)], class_="legend"),
        tag(
            "div",
            tag("div", [tag("span", number(v), style=f"top:{_down(v, y):.2f}%") for v in y], class_="y"),
            tag("div", _lines(chart, series, x, y), tag("div", class_="cursor"), class_="field"),
            tag("div", [tag("span", number(v), style=f"left:{_along(v, x):.2f}%") for v in x], class_="x"),
            tag("div", class_="tip"),
            class_="plot",
        ),
        tag("p", chart.note, class_="note") if chart.note else "",
        _values(chart, series, x),
        class_="chart",
    )


def _entry(number_: int, series: Series) -> Html:
    return tag("li", tag("i", class_=f"s{number_}"), series.name, " ", tag("b", number(series.values[-1])))


def _lines(chart: Chart, series: Sequence[Series], x: Sequence[float], y: Sequence[float]) -> list[Html]:
    grid = [tag("line", x1=0, x2=100, y1=round(_down(v, y), 2), y2=round(_down(v, y), 2), class_="grid") for v in y]
    grid += [
        tag("line", x1=0, x2=100, y1=round(_down(v, y), 2), y2=round(_down(v, y), 2), class_="reference")
        for _, v in chart.references
    ]
    curves = [
        tag("polyline", points=_points(one, x, y), class_=f"s{place}", fill="none")
        for place, one in enumerate(series, 1)
    ]
    labels = [
        tag("span", name, class_="reference", style=f"top:{_down(value, y):.2f}%") for name, value in chart.references
    ]
    drawing = tag(
        "svg", grid, curves, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_hidden="true"
    )
    return [drawing, *labels]


def _points(series: Series, x: Sequence[float], y: Sequence[float]) -> str:
    pairs = zip(series.steps, series.values, strict=True)
    points = [f"{_along(step, x):.2f},{_down(value, y):.2f}" for step, value in pairs if math.isfinite(value)]
    return " ".join(points * 2 if len(points) == 1 else points)  # a line from a point to itself is a dot


def _values(chart: Chart, series: Sequence[Series], x: Sequence[float]) -> Html:
    """The numbers behind the curves, for the pointer. `<` is written so that no text can end the script."""
    content = {
        "range": [x[0], x[-1]],
        "series": [{"name": s.name, "steps": s.steps, "values": [number(v) for v in s.values]} for s in series],
    }
    return tag("script", raw(json.dumps(content).replace("<", "\\u003c")), type="application/json")


def thin(series: Series) -> Series:
    """At most MOST_POINTS points; each is the mean of neighbours, and the last one stays as it is."""
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
    """Lowest and highest; 0 belongs to it when it is near."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if 0 < low < 0.5 * high:
        low = 0.0
    return low, high


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, evenly spaced, the first not above `low` and the last not below `high`.

    >>> ticks(0.3, 9.2, 4)
    [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power * about >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [place * step for place in range(first, last + 1)]
    assert all(b > a for a, b in pairwise(found))
    return found


def _along(value: float, x: Sequence[float]) -> float:
    return 100 * (value - x[0]) / (x[-1] - x[0])


def _down(value: float, y: Sequence[float]) -> float:
    return 100 - 100 * (value - y[0]) / (y[-1] - y[0])


def number(value: float) -> str:
    """A value with three digits that count, without needless zeros.

    >>> [number(v) for v in (0.0, 0.123456, 12.5, 1500.0, 200000.0, -2.5e7, 0.00001)]
    ['0', '0.123', '12.5', '1500', '200k', '-25M', '1e-05']
    """
    if not math.isfinite(value):
        return "–"
    for least, unit, sign in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e9:
            return f"{float(f'{value:.3g}') / unit:g}{sign}"
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent, with three digits at most.

    >>> percent(0.1234), percent(0.00012)
    ('12.3\\xa0%', '0.012\\xa0%')
    """
    return f"{number(100 * share)}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> duration(42.0), duration(605.0), duration(7322.0)
    ('42 s', '10 min 5 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def operations(flops: float | None) -> str:
    """Floating-point operations, in units of 10¹² (TFLOP).

    >>> operations(2.5e15), operations(None)
    ('2500 TFLOP', '–')
    """
    return "–" if flops is None else f"{number(flops / 1e12)} TFLOP"
