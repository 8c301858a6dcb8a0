"""The parts of the page on a task that is judged record by record."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from diptych.apps.report.charts import number, percent
from diptych.apps.report.data import RIGHT, Confusion, ExampleGroup, GivenAnswer, JudgedExample, Judgement
from diptych.apps.report.html import Html, picture, tag
from diptych.metrics.accuracy import Estimate

# --------------------------------------------------------------------------- tiles and measures


def tiles(judged: Judgement) -> Html:
    """The official measure, how far it is from the best reference, and one more measure where there is one."""
    (name, official), *others = judged.scores.items()
    shown = [_tile(f"{judged.title}: {name}", official, f"{official.count:,} of the {judged.split} split")]
    if judged.references:
        shown.append(_above(official, judged.references))
    return tag("div", shown, [_tile(name, score, "") for name, score in others[:1]], class_="tiles")


def _tile(label: str, score: Estimate, more: str) -> Html:
    sub = " · ".join(filter(None, (f"95 % interval {score.interval}", more)))
    value = tag("strong", f"{score.value:.1f}", tag("small", " %"))
    return tag("div", tag("span", label, class_="label"), value, tag("span", sub, class_="sub"), class_="tile")


def _above(official: Estimate, references: Mapping[str, Estimate]) -> Html:
    """The best of those who do not look; apart only if the intervals do not overlap."""
    name, best = max(references.items(), key=lambda one: one[1].value)
    low, high = official.interval
    apart = low > best.interval[1] or high < best.interval[0]
    value = tag("strong", f"{official.value - best.value:+.1f}", tag("small", " points"))
    sub = f"{best.value:.1f} %, {best.interval} · the intervals {'do not overlap' if apart else 'overlap'}"
    label = f"Beside: {name[0].lower()}{name[1:]}"
    return tag("div", tag("span", label, class_="label"), value, tag("span", sub, class_="sub"), class_="tile")


def result(judged: Judgement) -> list[Html]:
    """All measures and references with their intervals."""
    heads = [*map(_cell, ("", "Value", "95 % interval", "Of")), tag("th", "0", tag("span", "100 %"), class_="scale")]
    rows = [_row(name, score, "final") for name, score in judged.scores.items()]
    if judged.references:
        rows.append(tag("tr", tag("th", "Without looking", colspan=5), class_="way"))
        rows += [_row(name, score, "first") for name, score in judged.references.items()]
    intro = f"{judged.how} In percent; intervals by bootstrap: what shares a picture or a statement stays together."
    figures = [tag("div", tag("dt", name), tag("dd", number(value))) for name, value in judged.figures.items()]
    return [
        tag("p", intro, class_="intro"),
        tag("div", tag("table", tag("tr", heads), rows, class_="measures"), class_="scroll"),
        *([tag("dl", figures, class_="facts")] if figures else []),
    ]


def _row(name: str, score: Estimate, kind: str) -> Html:
    low, high = score.interval
    marks = [
        tag("i", class_="interval", style=f"left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"),
        tag("i", class_=kind, style=f"left:{score.value:.2f}%"),
    ]
    cells = [name, tag("b", f"{score.value:.1f}"), str(score.interval), f"{score.count:,}"]
    return tag("tr", [tag("td", cell) for cell in cells], tag("td", tag("div", marks, class_="track"), class_="wide"))


# --------------------------------------------------------------------------- what was said


def counts(judged: Judgement) -> bool:
    """Whether there is something to count."""
    return judged.confusion is not None or bool(judged.answers)


def said(judged: Judgement) -> list[Html]:
    """Classes against each other, or the answers given most often."""
    parts = []
    if judged.confusion is not None:
        parts += _confusion(judged.confusion)
    if judged.answers:
        parts += _answers(judged.answers, judged.records)
    return parts


def _confusion(table: Confusion) -> list[Html]:
    intro = (
        "Rows are what is right, columns what was said: the darker a field, the larger its share of the row. At the "
        "end of a row, how much of the class was found; below a column, how often saying it was right."
    )
    columns = [sum(column) for column in zip(*table.counts, strict=True)]
    heads = [_cell(""), *(_cell(f"said {name}") for name in table.names), _cell("found")]
    rows = []
    for place, (name, row) in enumerate(zip(table.names, table.counts, strict=True)):
        total = sum(row)
        fields = [_field(count, total, column == place) for column, count in enumerate(row)]
        rows.append(tag("tr", tag("th", name, scope="row"), fields, tag("td", _ratio(row[place], total))))
    right = [tag("td", _ratio(table.counts[place][place], total)) for place, total in enumerate(columns)]
    rows.append(tag("tr", tag("th", "right", scope="row"), right, tag("td")))
    body = tag("table", tag("tr", heads), rows, class_="confusion")
    return [tag("p", intro, class_="intro"), tag("div", body, class_="scroll")]


def _field(count: int, total: int, right: bool) -> Html:
    share = 100 * count / total if total else 0
    return tag("td", f"{count:,}", class_="is-right" if right else "is-wrong", style=f"--share:{share:.0f}%")


def _ratio(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"


def _answers(answers: tuple[GivenAnswer, ...], records: int) -> list[Html]:
    intro = "The answers given most often, and the mean score of the questions that got them."
    heads = [_cell(head) for head in ("Answer", "Given", "Share", "Mean score")]
    rows = [
        tag(
            "tr",
            tag("th", one.text, scope="row"),
            tag("td", f"{one.times:,}"),
            tag("td", percent(one.times / records)),
            tag("td", "–" if one.score is None else percent(one.score)),
        )
        for one in answers
    ]
    body = tag("table", tag("tr", heads), rows, class_="confusion")
    return [tag("p", intro, class_="intro"), tag("div", body, class_="scroll")]


def _cell(text: str) -> Html:
    return tag("th", text, scope="col") if text else tag("td")


# --------------------------------------------------------------------------- examples


def examples(judged: Judgement) -> list[Html]:
    """Single records, the wrong ones first."""
    intro = f"Records of the {judged.split} split in its own order, evenly spaced, not chosen by how well they do."
    if any("map" in name for group in judged.examples for one in group.examples for name, _ in one.pictures):
        intro += (
            " On the map, white is the box found and orange the right one; each map has its own scale. The "
            "score is their overlap (IoU)."
        )
    return [tag("p", intro, class_="intro"), *chain.from_iterable(map(_group, judged.examples))]


def _group(group: ExampleGroup) -> list[Html]:
    title = tag("h3", group.title, " ", tag("small", f"{len(group.examples)} of {group.total:,}"), class_="group")
    return [title, tag("div", [_example(one) for one in group.examples], class_="cards judged")]


def _example(one: JudgedExample) -> Html:
    figures = [
        tag("figure", picture(image, name), tag("figcaption", name) if len(one.pictures) > 1 else "")
        for name, image in one.pictures
    ]
    lines = [tag("p", one.text, class_="label")]
    if one.said:
        probability = "" if one.probability is None else tag("b", percent(one.probability))
        bar = "" if one.probability is None else tag("i", style=f"width:{100 * one.probability:.1f}%")
        answer = tag("li", bar, tag("span", one.said), probability, class_=_kind(one.score))
        lines.append(tag("ul", answer, class_="bars"))
    if one.right:
        lines.append(tag("p", tag("small", "right: "), one.right, class_="truth"))
    lines.append(tag("p", _verdict(one.score), class_=f"verdict {_kind(one.score) or ''}".strip()))
    return tag("article", tag("div", figures, class_="figures"), tag("div", lines, class_="texts"), class_="card")


def _kind(score: float | None) -> str | None:
    if score is None:
        return None
    return "is-label" if score >= RIGHT else "is-wrong"


def _verdict(score: float | None) -> str:
    """In a word, so that no colour is needed, and a score that lies between.

    >>> _verdict(1.0), _verdict(0.3), _verdict(None)
    ('✓ right', '✗ wrong, score 0.30', 'nobody tells')
    """
    if score is None:
        return "nobody tells"
    word = "✓ right" if score >= RIGHT else "✗ wrong"
    return word if score in (0.0, 1.0) else f"{word}, score {score:.2f}"
