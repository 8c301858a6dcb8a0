"""Answers questions about a picture, from a closed set of answers and in free words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from diptych import catalog
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
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
"""Number of answers shown."""


def form(site: Site) -> Form:
    models = site.pool.able("answer")
    closed = [model for model in models if _chooses(model.predictor.recipe.task)]
    opened = [model for model in models if not _chooses(model.predictor.recipe.task)]
    questions = (
        "what is to the left of the crab?", "what color is the background?", "is there a drum in the picture?",
        "in which quarter of the picture is the sheep?",
    )  # fmt: skip
    examples = [
        Example(question, (entry.picture, question, ""))
        for entry, question in zip(site.album.pictures, questions, strict=False)
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
        answer,
        "The likeliest answers will appear here.",
        tuple(examples),
        site.missing("answer"),
    )


def answer(
    closed: PooledModel | None, opened: PooledModel | None, picture: Image.Image, question: str, offered: str
) -> str:
    """Shows the answers of both kinds of models side by side. `offered` are candidates for the open model."""
    candidates = tuple(dict.fromkeys(word.strip() for word in offered.replace(";", ",").split(",") if word.strip()))
    return render(
        "ask",
        models=[model for model in (closed, opened) if model is not None],
        cards=[
            _card("Closed: from its own list", closed, True, opened, picture, question, ()),
            _card("Open: in words", opened, False, closed, picture, question, candidates),
        ],
    )


def _card(
    title: str, model: PooledModel | None, closed: bool, other: PooledModel | None, picture: Image.Image,
    question: str, candidates: tuple[str, ...],
) -> Mapping[str, Any]:  # fmt: skip
    """Collects a model's answers or, if it is missing, a hint how to train one like the other model."""
    if model is None:
        assert other is not None
        recipe = other.predictor.recipe
        answer = catalog.abilities()["answer"]
        able = [kind for kind, task in catalog.TASKS.items() if answer in task.abilities]
        kinds = [kind for kind in able if _chooses(kind()) == closed]
        hint = training_hint(kinds, [type(recipe.model)], recipe.model.width)
        return {"title": title, "note": "", "hint": hint}
    best = model.predictor.answer(picture, question, MOST, candidates or None)
    answers = [(answer.text, answer.probability) for answer in best]
    return {"title": title, "note": _note(model, candidates), "hint": None, "answers": answers}


def _chooses(config: TaskConfig) -> bool:
    """Says whether the answers are classes of a fixed list."""
    return catalog.task_class(config).classes(config) is not None


def _note(model: PooledModel, candidates: tuple[str, ...]) -> str:
    """Explains the probabilities."""
    config = model.predictor.recipe.task
    return catalog.task_class(config).meaning(config, answers=candidates)
