"""Says whether a text fits a picture, and where the picture shows its words."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.render import SIDE, render
from diptych.apps.app.site import Site
from diptych.predict import PooledModel
from diptych.predict.explain import Maps, explain

PAGE = Page(
    "match",
    "Match",
    "Does the text fit the picture?",
    "Give a picture and a sentence. The model says how likely they belong together, and shows where in the picture "
    "it finds each word.",
)

ABOUT: Mapping[Maps, str] = {
    "similarity": "Which patches make the picture more similar to this word on its own (Grad-CAM of the similarity), "
    "above the mean of all words. Weaker words are darker.",
    "attention": "The word's attention to the picture in the fusion layers, above the mean of all words. Weaker words "
    "are darker.",
}


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("match")},
        (PictureField(), TextField("Text", "a whale to the left of a crab")),
        "Does it fit?",
        answer,
        "The probability and a heat map of every word will appear here.",
        site.captioned(),
        site.missing("match"),
    )


def answer(model: PooledModel, picture: Image.Image, text: str) -> str:
    explanation = explain(model.predictor, picture, text)
    images = explanation.draw(SIDE)
    words = [(image, word.word) for image, word in zip(images, explanation.words, strict=True)]
    return render(
        "match", models=[model], explanation=explanation, text=text, words=words, about=ABOUT[explanation.maps]
    )
