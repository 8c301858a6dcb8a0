"""Questions about a picture, answered from a fixed list and in own words."""

from __future__ import annotations

from PIL import Image

from diptych import catalog
from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html
from diptych.predict import PooledModel
from diptych.schema import TaskConfig

PAGE = Page(
    "ask",
    "Ask",
    "What do you want to know about the picture?",
    "Give a picture and a question. A closed model picks from the answers it was trained with; an open one writes an "
    "answer, or chooses among those that you offer.",
)
MOST = 5
"""Answers shown."""


def form(site: Site) -> Form:
    able = site.pool.able("answer")
    closed = [one for one in able if _chooses(one.predictor.recipe.task)]
    opened = [one for one in able if not _chooses(one.predictor.recipe.task)]
    questions = (
        "what is to the left of the crab?", "what color is the background?", "is there a drum in the picture?",
        "in which quarter of the picture is the sheep?",
    )  # fmt: skip
    examples = [
        Example(question, (one.picture, question, ""))
        for one, question in zip(site.album.pictures, questions, strict=False)
    ]
    return Form(
        PAGE,
        {"Closed model": closed, "Open model": opened},
        (
            PictureField(),
            TextField("Question", "what is to the left of the crab?"),
            TextField("Answers to choose from, for the open model", "optional: whale, crab, robot", optional=True),
        ),
        "Ask",
        ask,
        "The likeliest answers will stand here.",
        tuple(examples),
        site.missing("answer"),
    )


def ask(
    closed: PooledModel | None, opened: PooledModel | None, picture: Image.Image, question: str, offered: str
) -> Html:
    return parts.answer(
        _card("Closed: from its own list", closed, True, opened, picture, question, ()),
        _card("Open: in words", opened, False, closed, picture, question, _list(offered)),
        parts.asked(*((one.name, quality(one)) for one in (closed, opened) if one is not None)),
    )


def _card(
    title: str, model: PooledModel | None, closed: bool, other: PooledModel | None, picture: Image.Image,
    question: str, offered: tuple[str, ...],
) -> Html:  # fmt: skip
    if model is None:
        assert other is not None
        recipe = other.predictor.recipe
        answer = catalog.abilities()["answer"]
        able = [kind for kind, task in catalog.TASKS.items() if answer in task.abilities]
        kinds = [kind for kind in able if _chooses(kind()) == closed]
        hint = training_hint(kinds, [type(recipe.model)], recipe.model.width)
        return parts.card(title, parts.message("Not here", f"No model for this is loaded: {hint}", "missing"))
    found = model.predictor.answer(picture, question, MOST, offered or None)
    return parts.card(title, parts.bars((one.text, one.probability) for one in found), note=_note(model, offered))


def _chooses(config: TaskConfig) -> bool:
    """Whether answers are classes of a fixed list."""
    return catalog.task_class(config).classes(config) is not None


def _note(model: PooledModel, offered: tuple[str, ...]) -> str:
    """What the probabilities are of."""
    config = model.predictor.recipe.task
    return catalog.task_class(config).meaning(config, answers=offered)


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.strip() for one in text.replace(";", ",").split(",") if one.strip()))
