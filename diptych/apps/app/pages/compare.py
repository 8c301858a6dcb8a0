"""Is a statement about two pictures true?"""

from __future__ import annotations

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html
from diptych.predict import PooledModel

PAGE = Page(
    "compare",
    "Compare",
    "Is it true of these two pictures?",
    "Give a left and a right picture and a statement about both, such as “there is a whale in only one picture”.",
)
STATEMENTS = (
    "there is a whale in only one picture",
    "the right picture has a pink background",
    "there is a church in the right picture",
    "there are more whales in the left picture than in the right one",
)


def form(site: Site) -> Form:
    pictures = [one.picture for one in site.album.pictures]
    pairs = zip(pictures[::2], pictures[1::2], STATEMENTS, strict=False)
    return Form(
        PAGE,
        {"Model": site.pool.able("compare")},
        (PictureField("Left picture"), PictureField("Right picture"), TextField("Statement", STATEMENTS[0])),
        "Is it true?",
        ask,
        "Whether the statement is true of both pictures will stand here.",
        tuple(Example(said, (left, right, said)) for left, right, said in pairs),
        site.missing("compare"),
    )


def ask(model: PooledModel, left: Image.Image, right: Image.Image, statement: str) -> Html:
    found = model.predictor.compare(left, right, statement)
    return parts.answer(
        parts.card(
            "What the two pictures say of it",
            parts.verdict(found.probability, f"“{statement}” is {found.label}."),
            parts.bars(found.probabilities.items()),
            parts.unknown_words(model, statement),
        ),
        parts.asked((model.name, quality(model))),
    )
