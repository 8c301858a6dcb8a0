"""Does a text fit a picture, and which words decide it?"""

from __future__ import annotations

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html
from diptych.predict import PooledModel
from diptych.predict.explain import explain

PAGE = Page(
    "match",
    "Match",
    "Does the text fit the picture?",
    "Give a picture and a sentence. The model says how likely they belong together, and shows for every word which "
    "parts of the picture speak for it.",
)


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("match")},
        (PictureField(), TextField("Text", "a whale to the left of a crab")),
        "Does it fit?",
        ask,
        "The probability and a heat map of every word will stand here.",
        site.captioned(),
        site.missing("match"),
    )


def ask(model: PooledModel, picture: Image.Image, text: str) -> Html:
    found = explain(model.predictor, picture, text)
    words = [
        parts.shown(drawn, f"where “{one.word}” looks", one.word, side=parts.SIDE)
        for drawn, one in zip(found.draw(parts.SIDE), found.words, strict=True)
    ]
    unknown = parts.unknown_words(model, text)
    return parts.answer(
        parts.card("How likely they belong together", parts.verdict(found.match, f"“{text}”"), unknown),
        parts.card(
            "Where each word looks",
            parts.heat_scale(),
            parts.gallery(words),
            note=f"Grad-CAM of the match by the attention of fusion layer {found.layer + 1}, all words on one scale.",
        ),
        parts.asked((model.name, quality(model))),
    )
