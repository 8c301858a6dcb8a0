"""Renders HTML from the templates in `templates/`, which escape all text."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from diptych.apps.app.quality import quality
from diptych.apps.report.html import picture
from diptych.apps.report.numbers import percent
from diptych.predict import PooledModel, unknown_words
from diptych.predict.explain import enlarged

SIDE = 320
"""Side of pictures in answers. Smaller pictures are enlarged to it, so that marks on them can be seen."""


def render(template: str, **values: Any) -> str:
    """Fills a template."""
    return ENVIRONMENT.get_template(f"{template}.html.j2").render(values)


def message(title: str, text: str, kind: str = "problem") -> str:
    """Renders a message about a problem, with its solution."""
    return render("message", title=title, text=text, kind=kind)


def sentence(text: str) -> str:
    """Turns an error's message into a sentence. A name at its beginning keeps its case.

    >>> sentence("no picture yet"), sentence("a.png: picture empty")
    ('No picture yet.', 'a.png: picture empty.')
    """
    begin = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return begin + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")


def _picture(image: Image.Image, alt: str, side: int) -> Markup:
    return Markup(picture(enlarged(image, side), alt))


def _unknown_words(model: PooledModel, text: str) -> tuple[str, ...]:
    return unknown_words(text, model.predictor.tokenizer)


ENVIRONMENT = Environment(
    loader=PackageLoader("diptych.apps.app"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
ENVIRONMENT.filters |= {
    "percent": percent, "quality": quality, "sentence": sentence, "unknown_words": _unknown_words,
}  # fmt: skip
ENVIRONMENT.globals |= {"picture": _picture, "SIDE": SIDE}
