"""What ALBEF's momentum teacher says beside the labels."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html, tag
from diptych.predict import PooledModel
from diptych.predict.teaching import HiddenPiece, Teacher
from diptych.schema import AlbefPretrainConfig

PAGE = Page(
    "teacher",
    "Teacher",
    "What would the teacher have said?",
    "While ALBEF is pre-trained, a slowly moving copy of it, the momentum teacher, says what else would fit beside the "
    "label. Hide a word and see what student and teacher expect in its place, and which captions the teacher finds "
    "fitting for the picture.",
)


def form(site: Site) -> Form:
    taught = [one for one in site.pool.models if one.name in site.teachers]
    examples = [
        Example(f"{one.caption} · hide “{word}”", (one.picture, one.caption, word))
        for one, thing in site.things()
        for word in thing.lower().split()[-1:]
    ]
    why = f"no model here has a teacher: {training_hint([AlbefPretrainConfig])}"
    return Form(
        PAGE,
        {"Model": taught},
        (
            PictureField(),
            TextField("Text", "a whale to the left of a crab"),
            TextField("Word to hide", "optional: whale; without one, each word in turn", optional=True),
        ),
        "Ask the teacher",
        lambda model, picture, text, word: ask(site.teachers, site.album.captions, model, picture, text, word),
        "The hidden word with what student and teacher expect in its place will stand here.",
        tuple(examples),
        None if taught else why,
    )


def ask(
    teachers: Mapping[str, Teacher], captions: tuple[str, ...], model: PooledModel, picture: Image.Image, text: str,
    word: str,
) -> Html:  # fmt: skip
    teacher = teachers[model.name]
    pieces = teacher.words(picture, text, word or None)
    candidates = tuple(dict.fromkeys((text, *captions)))
    near = teacher.texts(picture, candidates)
    return parts.answer(
        parts.card(
            "Hidden words", [_hidden(one) for one in pieces],
            note="The label is framed. Where another word stands above it, judge for yourself which fits better.",
        ),
        parts.card(
            "Captions that the teacher finds fitting", parts.bars(near, framed=text),
            note=f"Shares among your text, framed, and {len(candidates) - 1:,} captions of the example pictures.",
        ),
        parts.asked((model.name, quality(model))),
    )  # fmt: skip


def _hidden(piece: HiddenPiece) -> Html:
    sentence = tag("p", piece.before, " ", tag("mark", piece.label), " ", piece.after, class_="sentence")
    columns = [
        tag("div", tag("h4", name), parts.bars(guesses, framed=piece.label))
        for name, guesses in (("Student", piece.student), ("Teacher", piece.teacher))
    ]
    return tag("div", sentence, tag("div", columns, class_="two"), class_="hidden-word")
