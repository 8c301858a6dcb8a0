"""Says whether a picture makes a sentence true, false, or neither."""

from __future__ import annotations

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
from diptych.predict import PooledModel

PAGE = Page(
    "entail",
    "Entail",
    "Is it true, false, or undecided?",
    "Give a picture and a sentence about it. The picture can make it true (entailment), make it false (contradiction), "
    "or not tell (neutral).",
)


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("entail")},
        (PictureField(), TextField("Sentence", "there is a whale")),
        "Is it true?",
        answer,
        "The three verdicts with their probabilities will appear here.",
        site.captioned(),
        site.missing("entail"),
    )


def answer(model: PooledModel, picture: Image.Image, sentence: str) -> str:
    choice = model.predictor.entail(picture, sentence)
    verdict = {"entailment": "true", "contradiction": "false", "neutral": "undecided"}[choice.label]
    return render(
        "choice", models=[model], title="The sentence and the picture", choice=choice, text=sentence,
        verdict=f"“{sentence}” is {verdict} here ({choice.label}).",
    )  # fmt: skip
