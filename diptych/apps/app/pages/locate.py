"""Locates in a picture what a phrase names."""

from __future__ import annotations

import torch
from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.render import SIDE, render
from diptych.apps.app.site import Site
from diptych.data.heatmap import BAR, heat_picture, scaled_box
from diptych.predict import Located, PooledModel
from diptych.predict.explain import enlarged
from diptych.predict.inputs import open_to_draw

PAGE = Page(
    "locate",
    "Locate",
    "Where is it?",
    "Give a picture and a phrase. The model shows where it looks for the thing, and draws a box around it. There is "
    "always a box, even for a thing that is not in the picture: how well phrase and picture fit says whether to trust "
    "it.",
)


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("locate")},
        (PictureField(), TextField("Phrase", "the crab")),
        "Where is it?",
        answer,
        "The heat map with the box will appear here.",
        tuple(Example(thing, (entry.picture, thing)) for entry, thing in site.things()),
        site.missing("locate"),
    )


def answer(model: PooledModel, picture: Image.Image, phrase: str) -> str:
    located = model.predictor.locate(picture, phrase)
    x, y, width, height = (round(edge) for edge in located.box)
    score = located.score
    fit = f"probability of a match {score:.0%}" if 0 <= score <= 1 else f"similarity {score:.2f}"
    return render(
        "locate", models=[model], phrase=phrase, image=draw(located, picture), fit=fit,
        x=x, y=y, width=width, height=height,
    )  # fmt: skip


def draw(located: Located, picture: Image.Image) -> Image.Image:
    """Draws the heat map and the box over the picture at the size that is shown, so that their lines can be seen."""
    image = enlarged(open_to_draw(picture, SIDE)[0], SIDE)
    box = scaled_box(located.box, picture.size, image.size)
    drawn = heat_picture(image, torch.from_numpy(located.heat), box)
    return drawn.crop((0, 0, drawn.width, drawn.height - BAR))
