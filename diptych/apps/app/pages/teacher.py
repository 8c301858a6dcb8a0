"""Shows what ALBEF's momentum teacher predicts beside the labels."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
from diptych.predict import PooledModel
from diptych.predict.teaching import Teacher
from diptych.schema import AlbefPretrainConfig

PAGE = Page(
    "teacher",
    "Teacher",
    "What would the teacher have said?",
    "While ALBEF is pre-trained, a slowly moving copy of it, the momentum teacher, predicts what else would fit beside "
    "the label. Hide a word and see what student and teacher expect in its place, and which captions the teacher finds "
    "fitting for the picture.",
)


def form(site: Site) -> Form:
    models = [model for model in site.pool.models if model.name in site.teachers]
    examples = [
        Example(f"{entry.caption} · hide “{word}”", (entry.picture, entry.caption, word))
        for entry, thing in site.things()
        for word in thing.lower().split()[-1:]
    ]
    missing = f"no model here has a teacher: {training_hint([AlbefPretrainConfig])}"
    return Form(
        PAGE,
        {"Model": models},
        (
            PictureField(),
            TextField("Text", "a whale to the left of a crab"),
            TextField("Word to hide", "optional: whale; without one, each word in turn", optional=True),
        ),
        "Ask the teacher",
        lambda model, picture, text, word: answer(site.teachers, site.album.captions, model, picture, text, word),
        "The hidden word, with what student and teacher expect in its place, will appear here.",
        tuple(examples),
        None if models else missing,
    )


def answer(
    teachers: Mapping[str, Teacher], captions: tuple[str, ...], model: PooledModel, picture: Image.Image, text: str,
    word: str,
) -> str:  # fmt: skip
    teacher = teachers[model.name]
    pieces = teacher.words(picture, text, word or None)
    candidates = tuple(dict.fromkeys((text, *captions)))
    return render(
        "teacher", models=[model], pieces=pieces, captions=teacher.texts(picture, candidates), text=text,
        others=len(candidates) - 1,
    )  # fmt: skip
