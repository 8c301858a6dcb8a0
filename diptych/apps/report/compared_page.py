"""`comparison.html`: runs side by side, on one page like a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from diptych.apps.report.charts import duration, number, operations
from diptych.apps.report.compared import Comparison, Parameters, Quality, Rate, Score, Speed
from diptych.apps.report.html import Content, Html, tag
from diptych.apps.report.shell import Section, page, write_whole

FILE = "comparison.html"


def write_comparison(folder: Path, found: Comparison) -> Path:
    """Writes the page, whole or not at all, and returns its path."""
    return write_whole(folder / FILE, render(found))


def render(found: Comparison) -> str:
    """The page."""
    sections: list[Section] = [
        ("quality", "Quality", _quality(found)),
        ("speed", "Speed", _speed(found)),
        ("parameters", "Parameters", _parameters(found)),
        ("training", "Training", _training(found)),
        ("data", "Data", _data(found)),
    ]
    return page(" and ".join(run.name for run in found.runs), sections)


def _names(found: Comparison) -> list[Html]:
    """Column heads, each in its run's colour."""
    return [tag("th", tag("i", class_=f"dot s{place}"), run.name) for place, run in enumerate(found.runs, 1)]


def _table(head: Content, rows: Content) -> Html:
    return tag("div", tag("table", tag("tr", head), rows, class_="plain"), class_="scroll")


# --------------------------------------------------------------------------- quality


def _quality(found: Comparison) -> list[Html]:
    intro = (
        "In percent, on the same records of the test split, with 95 % intervals by bootstrap. Without looking: what "
        "chance or the commonest answer reaches. Where the intervals of all runs lie apart, the best is in bold."
    )
    head = [
        tag("th"),
        tag("th", "Without looking"),
        *_names(found),
        tag("th", "0", tag("span", "100 %"), class_="scale"),
    ]
    rows: list[Html] = []
    for task, measures in groupby(found.quality, key=lambda one: one.task):
        rows.append(tag("tr", tag("th", task, colspan=len(head)), class_="way"))
        rows += map(_measure, measures)
    return [tag("p", intro, class_="intro"), _table(head, rows)]


def _measure(one: Quality) -> Html:
    best = max((score.value for score in one.scores if score), default=None) if one.apart else None
    scores = [tag("td", _score(score, bold=score is not None and score.value == best)) for score in one.scores]
    marks = [] if one.chance is None else [tag("i", class_="chance", style=f"left:{one.chance:.2f}%")]
    marks += [mark for place, score in enumerate(one.scores, 1) if score for mark in _marks(score, place)]
    chance = "–" if one.chance is None else f"{one.chance:.1f}"
    track = tag("td", tag("div", marks, class_="track"), class_="wide")
    return tag("tr", tag("td", one.measure), tag("td", chance, class_="soft"), scores, track)


def _score(score: Score | None, bold: bool) -> Content:
    if score is None:
        return "–"
    value = f"{score.value:.1f}"
    return [tag("b", value) if bold else value, tag("small", str(score.interval), class_="below")]


def _marks(score: Score, place: int) -> list[Html]:
    low, high = score.interval
    return [
        tag("i", class_=f"interval s{place}", style=f"left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"),
        tag("i", class_=f"final s{place}", style=f"left:{score.value:.2f}%"),
    ]


# --------------------------------------------------------------------------- speed and parameters


def _speed(found: Comparison) -> list[Html]:
    intro = (
        "Training as each run's log says, without validations, whatever else the machine did then. The rest was "
        "measured for this page on one machine, every model in turn, in several rounds: the median, the least and the "
        "most. A query is one text among encoded test pictures."
    )
    return [tag("p", intro, class_="intro"), _table(_bar_heads(found), [_rates(one) for one in found.speed])]


def _bar_heads(found: Comparison) -> list[Html]:
    return [tag("th"), *_names(found), *([tag("th", "Ratio")] if len(found.runs) == 2 else []), tag("th")]


def _rates(one: Speed) -> Html:
    label = [one.what, tag("small", one.unit, class_="below")]
    return _bars(label, [None if rate is None else rate.value for rate in one.rates], map(_rate, one.rates))


def _rate(rate: Rate | None) -> Content:
    if rate is None:
        return "–"
    spread = (
        [] if rate.least == rate.most else [tag("small", f"{number(rate.least)} … {number(rate.most)}", class_="below")]
    )
    return [number(rate.value), *spread]


def _parameters(found: Comparison) -> list[Html]:
    intro = (
        "Those that the result has a gradient for, each table or matrix counted whole: of the vector of a picture "
        "alone, of a text alone, and of the match of a pair. All: what has to be kept, teachers left out."
    )
    return [tag("p", intro, class_="intro"), _table(_bar_heads(found), [_counts(one) for one in found.parameters])]


def _counts(one: Parameters) -> Html:
    return _bars([one.what], one.counts, ["–" if count is None else f"{count:,}" for count in one.counts])


def _bars(label: Content, values: Sequence[float | int | None], shown: Iterable[Content]) -> Html:
    """A row of numbers, with their ratio where there are two, and bars as long as they are large."""
    most = max((value for value in values if value is not None), default=0.0)
    bars = [
        tag("i", class_=f"bar s{place}", style=f"width:{100 * value / most:.1f}%" if value else None)
        for place, value in enumerate(values, 1)
        if value is not None
    ]
    ratio = [tag("td", _ratio(*values), class_="soft")] if len(values) == 2 else []
    cells = [tag("td", one) for one in shown]
    return tag("tr", tag("td", label), cells, ratio, tag("td", bars, class_="wide"))


def _ratio(one: float | int | None, other: float | int | None) -> str:
    return f"1 : {other / one:.2f}" if one and other else "–"


# --------------------------------------------------------------------------- training and data


def _training(found: Comparison) -> list[Html]:
    intro = (
        "All runs that made each model, in their order, with the operations of their steps where they were counted. "
        "Times are of the machine that each ran on."
    )
    head = [tag("th", name) for name in ("", "Steps", "Records seen", "Computation", "Time")]
    rows: list[Html] = []
    for place, run in enumerate(found.runs, 1):
        total = sum(one.seconds for one in run.trained)
        name = [tag("i", class_=f"dot s{place}"), f"{run.name}, {duration(total)} in all"]
        rows.append(tag("tr", tag("th", name, colspan=len(head)), class_="way"))
        for one in run.trained:
            cells: list[Content] = [
                [one.recipe, tag("small", one.folder, class_="below")], f"{one.steps:,}", f"{one.records:,}",
                operations(one.flops), duration(one.seconds),
            ]  # fmt: skip
            rows.append(tag("tr", [tag("td", cell) for cell in cells]))
    return [tag("p", intro, class_="intro"), _table(head, rows)]


def _data(found: Comparison) -> list[Html]:
    rows = [
        tag("tr", tag("td", tag("code", name)), tag("td", tag("code", str(value))))
        for name, value in found.data.items()
    ]
    intro = "What all runs were measured on. Runs that differ in any of it are not compared."
    fields = tag("details", tag("summary", f"All {len(rows)} fields"), tag("table", rows, class_="recipe"))
    return [tag("p", intro, class_="intro"), fields]
