"""Where in a picture is what a phrase names?"""

from __future__ import annotations

import torch
from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html
from diptych.data.heatmap import BAR, heat_picture
from diptych.predict import Located, PooledModel
from diptych.predict.explain import enlarged

PAGE = Page(
    "locate",
    "Locate",
    "Where is it?",
    "Give a picture and a phrase. The model shows where it looks for the thing, and draws a box around it. There is a "
    "box for whatever you ask: how well phrase and picture fit says whether to believe it.",
)


def form(site: Site) -> Form:
    return Form(
        PAGE,
        {"Model": site.pool.able("locate")},
        (PictureField(), TextField("Phrase", "the crab")),
        "Where is it?",
        ask,
        "The heat map with the box will stand here.",
        tuple(Example(thing, (one.picture, thing)) for one, thing in site.things()),
        site.missing("locate"),
    )


def ask(model: PooledModel, picture: Image.Image, phrase: str) -> Html:
    found = model.predictor.locate(picture, phrase)
    x, y, width, height = (round(edge) for edge in found.box)
    fit = f"probability of a match {found.score:.0%}" if 0 <= found.score <= 1 else f"similarity {found.score:.2f}"
    return parts.answer(
        parts.card(
            f"“{phrase}”",
            parts.shown(
                draw(found, picture), f"heat map of “{phrase}” with a box",
                f"{width} × {height} pixels, {x} from the left and {y} from the top", side=2 * parts.SIDE,
            ),
            parts.heat_scale(),
            parts.unknown_words(model, phrase),
            note=f"How well phrase and picture fit: {fit}.",
            kind="located",
        ),
        parts.asked((model.name, quality(model))),
    )  # fmt: skip


def draw(found: Located, picture: Image.Image) -> Image.Image:
    """The heat map over the picture with the box, large enough for its lines."""
    image = enlarged(picture, parts.SIDE)
    x, y, width, height = found.box
    across, down = image.width / picture.width, image.height / picture.height
    box = (x * across, y * down, width * across, height * down)
    drawn = heat_picture(image, torch.from_numpy(found.heat), box)
    return drawn.crop((0, 0, drawn.width, drawn.height - BAR))
