"""The page: from ReportData to one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.apps.report import task_evaluation_page
from diptych.apps.report.charts import draw, duration, operations, percent
from diptych.apps.report.data import (
    NegativeExample,
    QueryExample,
    ReportData,
    Shown,
    TeacherExample,
    TextGuess,
    Trained,
    WordGuess,
)
from diptych.apps.report.html import Content, Html, picture, tag
from diptych.apps.report.shell import Section, page, write_whole

FILE = "report.html"
LEVELS = (1, 5, 10)
WAYS = (("text_to_image", "Text → image"), ("image_to_text", "Image → text"))


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes `folder/report.html`, whole or not at all, and returns its path."""
    return write_whole(folder / FILE, render(data))


def render(data: ReportData) -> str:
    """The page."""
    return page(data.title, [section for section in _sections(data) if section], script="hover.js")


def _sections(data: ReportData) -> list[Section | None]:
    examples, judgement = data.examples, data.judgement
    return [
        ("run", "The run", _run(data)),
        ("result", "Result", task_evaluation_page.result(judgement)) if judgement and judgement.scores else None,
        ("said", "What it said", task_evaluation_page.said(judgement))
        if judgement and task_evaluation_page.counts(judgement)
        else None,
        ("examples", "Examples", task_evaluation_page.examples(judgement))
        if judgement and judgement.examples
        else None,
        ("retrieval", "Retrieval", _retrieval(data)) if data.evaluation else None,
        ("queries", "Queries", _queries(examples.queries)) if examples.queries else None,
        ("stages", "Stages", _stages(data.stages)) if data.stages else None,
        ("training", "Training", _training(data)) if data.charts else None,
        ("negatives", "Hard negatives", _negatives(examples.negatives)) if examples.negatives else None,
        ("teacher", "The teacher", _teacher(examples.teacher)) if examples.teacher else None,
        ("recipe", "Recipe", _recipe(data.recipe)) if data.recipe else None,
    ]


# --------------------------------------------------------------------------- summary and recipe


def _run(data: ReportData) -> list[Html]:
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in data.facts]
    parts = [tag("dl", facts, class_="facts")]
    if data.judgement and data.judgement.scores:
        parts.insert(0, task_evaluation_page.tiles(data.judgement))
    if data.evaluation:
        gain = [_gain(data.evaluation)] if _reranked(data.evaluation) else []
        parts.insert(0, tag("div", [_tile(data.evaluation, *way) for way in WAYS], gain, class_="tiles"))
    return parts


def _tile(evaluation: Mapping[str, Any], way: str, title: str) -> Html:
    name = f"{way}.recall@10"
    low, high = evaluation[f"{name}.interval"]
    return tag(
        "div",
        tag("span", f"{title}, recall@10", class_="label"),
        tag("strong", f"{evaluation[name]:.1f}", tag("small", " %")),
        tag("span", f"95 % interval {low:.1f} … {high:.1f} · chance {evaluation[f'chance.{name}']:.1f}", class_="sub"),
        class_="tile",
    )


def _reranked(evaluation: Mapping[str, Any]) -> bool:
    """Whether there was a second stage."""
    return "rerank_gain.recall@1" in evaluation


def _gain(evaluation: Mapping[str, Any]) -> Html:
    low, high = evaluation["rerank_gain.interval"]
    return tag(
        "div",
        tag("span", "Re-ranking, change of recall@1", class_="label"),
        tag("strong", f"{evaluation['rerank_gain.recall@1']:+.1f}", tag("small", " points")),
        tag("span", f"95 % interval {low:+.1f} … {high:+.1f} · {gain_verdict(low, high)}", class_="sub"),
        class_="tile",
    )


def gain_verdict(low: float, high: float) -> str:
    """What an interval of a difference says.

    >>> gain_verdict(-0.4, 1.2)
    'inside the noise'
    """
    if low > 0:
        return "above 0"
    return "below 0" if high < 0 else "inside the noise"


def _recipe(recipe: Mapping[str, Any]) -> list[Html]:
    rows = [tag("tr", tag("td", tag("code", name)), tag("td", tag("code", value))) for name, value in _flat(recipe)]
    return [tag("details", tag("summary", f"All {len(rows)} fields"), tag("table", rows, class_="recipe"))]


def _flat(recipe: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in recipe.items():
        place = f"{above}{name}"
        found += _flat(value, f"{place}.") if isinstance(value, Mapping) else [(place, _shortened(value))]
    return found


def _shortened(value: Any, most: int = 12) -> str:
    """As it is, but for long lists, such as all the answers to choose from."""
    if not isinstance(value, list | tuple) or len(value) <= most:
        return str(value)
    return f"{', '.join(map(str, value[:most]))} … {len(value)} in all"


# --------------------------------------------------------------------------- retrieval


def _retrieval(data: ReportData) -> list[Html]:
    evaluation = data.evaluation
    assert evaluation is not None
    reranked = _reranked(evaluation)
    stages = "The similarity of pictures' and texts' vectors ranks all of them. "
    if reranked:
        stages = (
            "First the similarity of the two encoders ranks all of them; then the fusion encoder re-ranks the best "
            f"{evaluation['text_to_image.candidates']} pictures of a text and the best "
            f"{evaluation['image_to_text.candidates']} texts of a picture. "
        )
    intro = (
        f"{evaluation['images']:,} unseen pictures and {evaluation['texts']:,} captions. {stages}Share of the queries, "
        "in percent, whose right answer is among the first 1, 5 and 10; 95 % intervals by bootstrap over pictures."
    )
    measured = ["Contrastive", "Re-ranked"] if reranked else ["Contrastive"]
    heads = ["", "Chance", *measured, "95 % interval", *(["Nouns alone"] if data.ceiling else [])]
    head = tag("tr", [tag("th", text) for text in heads], tag("th", "0", tag("span", "100 %"), class_="scale"))
    rows: list[Html] = []
    for way, title in WAYS:
        rows.append(tag("tr", tag("th", title, colspan=len(heads) + 1), class_="way"))
        rows += [_recall_row(data, f"{way}.recall@{k}", f"recall@{k}") for k in LEVELS]
    return [
        tag("p", intro, class_="intro"),
        tag("div", tag("table", head, rows, class_="recalls"), class_="scroll"),
        tag("p", _keys(reranked, bool(data.ceiling)), class_="keys"),
        *([tag("p", _gain_sentence(evaluation), class_="intro")] if reranked else []),
    ]


def _recall_row(data: ReportData, name: str, title: str) -> Html:
    evaluation = data.evaluation
    assert evaluation is not None
    chance, first, final = evaluation[f"chance.{name}"], evaluation[f"contrastive.{name}"], evaluation[name]
    reranked = _reranked(evaluation)
    low, high = evaluation[f"{name}.interval"]
    ceiling = data.ceiling.get(name)
    marks = [
        tag("i", class_="interval", style=f"left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"),
        tag("i", class_="chance", style=f"left:{chance:.2f}%"),
        *([tag("i", class_="first", style=f"left:{first:.2f}%")] if reranked else []),
        tag("i", class_="final", style=f"left:{final:.2f}%"),
    ]
    if ceiling is not None:
        marks.insert(0, tag("i", class_="ceiling", style=f"left:{ceiling:.2f}%"))
    bold = tag("b", f"{final:.1f}")
    found: list[Content] = [f"{first:.1f}", bold] if reranked else [bold]
    cells: list[Content] = [title, f"{chance:.1f}", *found, f"{low:.1f} … {high:.1f}"]
    if data.ceiling:
        cells.append("–" if ceiling is None else f"{ceiling:.1f}")
    return tag("tr", [tag("td", cell) for cell in cells], tag("td", tag("div", marks, class_="track"), class_="wide"))


def _keys(reranked: bool, ceiling: bool) -> list[Html]:
    final = [("final", "re-ranked, with its interval"), ("first", "contrastive")]
    keys = [*(final if reranked else [("final", "contrastive, with its interval")]), ("chance", "chance")]
    if ceiling:
        keys.append(("ceiling", "what a matcher reaches that sees only which nouns occur, not how they relate"))
    return [tag("span", tag("i", class_=kind), text) for kind, text in keys]


def _gain_sentence(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["rerank_gain.interval"]
    gain = evaluation["rerank_gain.recall@1"]
    verdict = {
        "above 0": "the fusion encoder finds what the similarity misses",
        "below 0": "the fusion encoder does harm here: it has not learnt enough yet",
        "inside the noise": "so this run does not tell whether re-ranking helps",
    }[gain_verdict(low, high)]
    return (
        f"Re-ranking changes recall@1, the mean of both directions, by {gain:+.1f} points (paired 95 % interval "
        f"{low:+.1f} … {high:+.1f}): {gain_verdict(low, high)}, {verdict}."
    )


# --------------------------------------------------------------------------- queries


def _queries(queries: Sequence[QueryExample]) -> list[Html]:
    intro = (
        "Captions of the test split in its own order, not chosen by how well they do, and the pictures found for them, "
        "best first. The right picture is framed; where it is not among the first, it stands apart at the end. "
    )
    reranked = any(shown.match is not None for query in queries for shown in query.found)
    intro += (
        "Below each: the logit of a match, which decides the order, and the cosine similarity of the first stage."
        if reranked
        else "Below each: the cosine similarity, which decides the order."
    )
    return [tag("p", intro, class_="intro"), *map(_query, queries)]


def _query(query: QueryExample) -> Html:
    found = [_shown(one, place) for place, one in enumerate(query.found, 1)]
    if not any(one.right for one in query.found):
        label = tag("figcaption", tag("b", f"place {query.rank + 1}"), " of ", str(query.candidates))
        image = picture(query.right_picture, "the right picture")
        found.append(tag("figure", image, label, class_="right apart"))
    place = f"right picture at place {query.rank + 1}"
    if query.contrastive_rank != query.rank:
        place += f" (by similarity alone: {query.contrastive_rank + 1})"
    verdict = "good" if query.rank == 0 else ""
    return tag(
        "article",
        tag("h3", f"“{query.text}”"),
        tag("span", place, class_=f"place {verdict}".strip()),
        tag("div", found, class_="found"),
        class_="query",
    )


def _shown(one: Shown, place: int) -> Html:
    match = [] if one.match is None else [tag("b", f"{one.match:+.1f}"), " · "]
    caption = tag("figcaption", *match, f"{one.similarity:.2f}")
    alt = f"place {place}, the right picture" if one.right else f"place {place}"
    return tag("figure", picture(one.picture, alt), caption, class_="right" if one.right else None)


# --------------------------------------------------------------------------- training


def _training(data: ReportData) -> list[Html]:
    intro = (
        "By optimiser step; each point is a mean since the one before, and the legend gives the last. "
        "Point at a curve to read it."
    )
    drawn = [draw(chart) for chart in data.charts if any(one.steps for one in chart.series)]
    return [tag("p", intro, class_="intro"), tag("div", drawn, class_="charts")]


# --------------------------------------------------------------------------- stages


def _stages(stages: Sequence[Trained]) -> list[Html]:
    intro = "The runs that this one started from, in their order, each with its own measures at its end."
    heads = tag("tr", [tag("th", name) for name in ("", "Steps", "Records seen", "Computation", "Time", "Measures")])
    return [
        tag("p", intro, class_="intro"),
        tag("div", tag("table", heads, map(_stage, stages), class_="plain"), class_="scroll"),
    ]


def _stage(one: Trained) -> Html:
    measures = [tag("div", f"{name} ", tag("b", value)) for name, value in one.measures]
    cells: list[Content] = [
        [tag("b", one.recipe), tag("small", one.folder, class_="below")], f"{one.steps:,}", f"{one.records:,}",
        operations(one.flops), duration(one.seconds), measures or "–",
    ]  # fmt: skip
    return tag("tr", [tag("td", cell) for cell in cells])


# --------------------------------------------------------------------------- negatives


def _negatives(negatives: Sequence[NegativeExample]) -> list[Html]:
    intro = (
        "For image-text matching each picture gets a wrong caption, and each caption a wrong picture, from the same "
        "batch: the more the model confuses them, the likelier they are drawn. Under each, the probability with which "
        f"it was drawn; an even draw would give {percent(1 / max(negatives[0].batch - 1, 1))}."
    )
    return [tag("p", intro, class_="intro"), tag("div", [_negative(one) for one in negatives], class_="cards")]


def _negative(one: NegativeExample) -> Html:
    pair = tag("figure", picture(one.picture, "training picture"), class_="right")
    wrong = tag("figure", picture(one.negative_picture, "wrong picture"), class_="wrong")
    texts = tag(
        "div",
        tag("p", one.caption, class_="label"),
        tag("p", one.negative_caption, _drawn(one.caption_probability), class_="wrong"),
        class_="texts",
    )
    other = tag("div", wrong, _drawn(one.picture_probability), class_="other")
    return tag("article", pair, texts, other, class_="card negative")


def _drawn(probability: float) -> Html:
    return tag("small", f"drawn with {percent(probability)}")


# --------------------------------------------------------------------------- the teacher


def _teacher(examples: Sequence[TeacherExample]) -> list[Html]:
    intro = (
        "A slowly moving copy of the model, the momentum teacher, says what else would fit: words for hidden words, "
        "and captions of the batch for a picture. Its answers are mixed into the training targets (ALBEF §3.3). "
        "Labels are framed; where another answer stands above one, judge for yourself which fits the picture better."
    )
    return [tag("p", intro, class_="intro"), tag("div", [_lesson(one) for one in examples], class_="cards")]


def _lesson(example: TeacherExample) -> Html:
    clean = tag("p", tag("small", "without its noise: "), example.clean, class_="clean") if example.clean else ""
    return tag(
        "article",
        tag("figure", picture(example.picture, "training picture")),
        tag(
            "div",
            tag("p", example.caption, class_="label"),
            clean,
            [_word(word) for word in example.words],
            _texts(example.texts) if example.texts else "",
            class_="texts",
        ),
        class_="card lesson",
    )


def _word(word: WordGuess) -> Html:
    blank = tag("mark", word.label, title="hidden from the model")
    sentence = tag("p", word.before, " ", blank, " ", word.after, class_="sentence")
    bars = [_bar(text, probability, text == word.label) for text, probability in word.guesses]
    return tag("div", sentence, tag("ol", bars, class_="bars words"), class_="guess")


def _texts(texts: Sequence[TextGuess]) -> Html:
    bars = [_bar(one.text, one.probability, one.label) for one in texts]
    return tag("div", tag("p", "captions that fit", class_="sentence"), tag("ol", bars, class_="bars"), class_="guess")


def _bar(text: str, probability: float, label: bool) -> Html:
    return tag(
        "li",
        tag("i", style=f"width:{100 * probability:.1f}%"),
        tag("span", text),
        tag("b", percent(probability)),
        class_="is-label" if label else None,
    )
