"""Says whether a statement about two pictures is true."""

from __future__ import annotations

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
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
    pictures = [entry.picture for entry in site.album.pictures]
    pairs = zip(pictures[::2], pictures[1::2], STATEMENTS, strict=False)
    return Form(
        PAGE,
        {"Model": site.pool.able("compare")},
        (PictureField("Left picture"), PictureField("Right picture"), TextField("Statement", STATEMENTS[0])),
        "Is it true?",
        answer,
        "Whether the statement is true of both pictures will appear here.",
        tuple(Example(statement, (left, right, statement)) for left, right, statement in pairs),
        site.missing("compare"),
    )


def answer(model: PooledModel, left: Image.Image, right: Image.Image, statement: str) -> str:
    choice = model.predictor.compare(left, right, statement)
    return render(
        "choice", models=[model], title="The statement and the two pictures", choice=choice, text=statement,
        verdict=f"“{statement}” is {choice.label}.",
    )  # fmt: skip
