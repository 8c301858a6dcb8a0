"""What answers are made of, as HTML that is escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image

from diptych.apps.report.html import Content, Html, picture, tag
from diptych.apps.report.numbers import percent
from diptych.predict import PooledModel
from diptych.predict import unknown_words as find_unknown
from diptych.predict.explain import enlarged

SIDE = 320
"""Pictures in answers are this large; smaller ones are enlarged, so that marks on them can be read."""


def card(title: Content, *content: Content, note: Content = "", kind: str = "") -> Html:
    """A titled part of an answer."""
    head = tag("header", tag("h3", title), tag("p", note, class_="note") if note else "")
    return tag("section", head, *content, class_=f"card {kind}".strip())


def message(title: str, text: str, kind: str = "problem") -> Html:
    """What went wrong or is not there, and the way out. Screen readers say it at once."""
    return tag("div", tag("strong", title), tag("p", sentence(text)), class_=f"message {kind}", role="alert")


def sentence(text: str) -> str:
    """An error's words as a sentence; a name that it begins with stays as it is.

    >>> sentence("no picture yet"), sentence("a.png: picture empty")
    ('No picture yet.', 'a.png: picture empty.')
    """
    begin = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return begin + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")


def empty(text: str) -> Html:
    """What stands in the place of an answer before there is one."""
    return tag("div", tag("p", text), class_="empty")


def answer(*content: Content) -> Html:
    return tag("div", *content, class_="answer")


def asked(*pairs: tuple[str, str]) -> Html:
    """Who answered, and how good it is: the last line of every answer."""
    said = [tag("span", tag("b", name), f" · {quality}") for name, quality in pairs]
    return tag("p", "Answered by ", said, class_="asked")


def verdict(share: float, words: str) -> Html:
    """A probability as the first thing that one sees."""
    return tag(
        "div",
        tag("strong", percent(share), class_="large"),
        tag("div", tag("i", style=f"width:{100 * share:.1f}%"), class_="track"),
        tag("p", words),
        class_="verdict",
    )


def bars(items: Iterable[tuple[str, float]], framed: str | None = None) -> Html:
    """Names with their probability. The `framed` one is the label."""
    rows = [
        tag(
            "li",
            tag("i", style=f"width:{100 * share:.1f}%"),
            tag("span", name),
            tag("b", percent(share)),
            class_="is-label" if name == framed else None,
        )
        for name, share in items
    ]
    return tag("ol", rows, class_="bars")


def shown(image: Image.Image, alt: str, *caption: Content, side: int = SIDE) -> Html:
    """A picture with its caption below."""
    label = tag("figcaption", *caption) if caption else ""
    return tag("figure", picture(enlarged(image, side), alt), label)


def gallery(figures: Sequence[Content]) -> Html:
    return tag("ol", [tag("li", figure) for figure in figures], class_="gallery")


def heat_scale() -> Html:
    """What the colours of a heat map mean."""
    return tag("p", "no heat ", tag("i"), " most heat", class_="scale")


def unknown_words(model: PooledModel, text: str) -> Html:
    """Names the words that the model cannot read; nothing where it reads all of them."""
    unknown = find_unknown(text, model.predictor.tokenizer)
    return (
        tag("p", "Words that the model cannot read: ", tag("b", ", ".join(unknown)), class_="unknown")
        if unknown
        else Html()
    )
