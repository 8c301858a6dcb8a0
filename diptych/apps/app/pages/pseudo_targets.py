"""Shows the pseudo-targets of ALBEF's momentum encoder beside the labels."""

from __future__ import annotations

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
from diptych.predict import PooledModel
from diptych.predict.pseudo_targets import MomentumEncoder
from diptych.schema import AlbefPretrainConfig

PAGE = Page(
    "pseudo-targets",
    "Pseudo-targets",
    "What would the momentum encoder predict?",
    "While ALBEF is pre-trained, its momentum encoder, a slowly moving average of the model, predicts what fits beside "
    "the label. Mask a word and compare what the model and its momentum encoder predict in its place, and see which "
    "captions the momentum encoder finds fitting for the picture.",
)


def form(site: Site) -> Form:
    models = [model for model in site.pool.models if model.name in site.momentum_encoders]
    examples = [
        Example(f"{entry.caption} · mask “{word}”", (entry.picture, entry.caption, word))
        for entry, thing in site.things()
        for word in thing.lower().split()[-1:]
    ]
    missing = f"no model here has a momentum encoder: {training_hint([AlbefPretrainConfig])}"
    return Form(
        PAGE,
        {"Model": models},
        (
            PictureField(),
            TextField("Text", "a whale to the left of a crab"),
            TextField("Word to mask", "optional: whale; without one, each word in turn", optional=True),
        ),
        "Show the pseudo-targets",
        lambda model, picture, text, word: answer(
            site.momentum_encoders[model.name], site.album.captions, model, picture, text, word
        ),
        "The masked word, with what the model and its momentum encoder predict in its place, will appear here.",
        tuple(examples),
        None if models else missing,
    )


def answer(
    momentum_encoder: MomentumEncoder, captions: tuple[str, ...], model: PooledModel, picture: Image.Image, text: str,
    word: str,
) -> str:  # fmt: skip
    """Shows predictions for masked words, and the captions that the momentum encoder finds most fitting."""
    pieces = momentum_encoder.words(picture, text, word or None)
    candidates = tuple(dict.fromkeys((text, *captions)))
    return render(
        "pseudo_targets", models=[model], pieces=pieces, captions=momentum_encoder.texts(picture, candidates),
        text=text, others=len(candidates) - 1,
    )  # fmt: skip
