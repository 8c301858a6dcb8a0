"""Does a picture make a sentence true, false, or neither?"""

from __future__ import annotations

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html
from diptych.predict import PooledModel

PAGE = Page(
    "entail",
    "Entail",
    "Is it true, false, or left open?",
    "Give a picture and a sentence about it. The picture can make it true (entailment), make it false (contradiction), "
    "or not tell (neutral).",
)


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("entail")},
        (PictureField(), TextField("Sentence", "there is a whale")),
        "Is it true?",
        ask,
        "The three verdicts with their probabilities will stand here.",
        site.captioned(),
        site.missing("entail"),
    )


def ask(model: PooledModel, picture: Image.Image, sentence: str) -> Html:
    found = model.predictor.entail(picture, sentence)
    said = {"entailment": "true", "contradiction": "false", "neutral": "left open"}[found.label]
    return parts.answer(
        parts.card(
            "What the picture says of it",
            parts.verdict(found.probability, f"“{sentence}” is {said} here ({found.label})."),
            parts.bars(found.probabilities.items()),
            parts.unknown_words(model, sentence),
        ),
        parts.asked((model.name, quality(model))),
    )
