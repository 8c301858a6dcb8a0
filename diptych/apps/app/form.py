"""Lays out what all pages share: a header, the choice of models with their quality, fields, a button and examples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from diptych.apps.app.fields import Field, PictureField, TextField, read_picture
from diptych.apps.app.quality import quality
from diptych.apps.app.render import message, render
from diptych.predict import PooledModel

Answer = Callable[..., str]
"""Takes the chosen models (None where there is none to choose) and the fields' values, and returns HTML.

Raises ValueError for input that the models cannot use.
"""
ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_id": "models",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "preprocess": False,
    "show_progress": "minimal",
    "scroll_to_output": True,
}
"""Settings of events: all visitors share one queue to the models, and components pass on what was sent undecoded."""
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """Values for all fields of a page, which a click fills in: picture files and texts."""

    name: str
    values: tuple[Path | str | None, ...]

    @property
    def icon(self) -> Path | None:
        return next((value for value in self.values if isinstance(value, Path)), None)


@dataclass(frozen=True)
class Page:
    """The address and the texts of a page."""

    path: str
    """Path of its address; empty for the first page."""
    title: str
    question: str
    """The question that the page answers, as its heading."""
    help: str


@dataclass(frozen=True)
class Form:
    """A page's fields, models and answer."""

    page: Page
    models: Mapping[str, Sequence[PooledModel]]
    """The models to choose from, best first, by the label of the choice."""
    fields: tuple[Field, ...]
    button: str
    answer: Answer
    hint: str
    """Text in the answer's place before there is one."""
    examples: tuple[Example, ...] = ()
    missing: str | None = None
    """Why no model can answer, and what to train; None if one can."""


def lay_out(form: Form, pages: Sequence[Page]) -> None:
    """Builds a page within the current Gradio blocks."""
    gr.HTML(render("intro", page=form.page, pages=pages), elem_classes="bare")
    if form.missing is not None:
        gr.HTML(message("This page needs a model that is not here", form.missing, "missing"))
        return
    with gr.Row(elem_classes="desk"):
        with gr.Column(min_width=300, elem_classes="inputs"):
            choices = _model_choices(form)
            components = [field.make() for field in form.fields]
            button = gr.Button(form.button, variant="primary", elem_classes="run")
            examples = _example_buttons(form)
        with gr.Column(min_width=300, scale=2, elem_classes="outputs"):
            hint = Markup('<div class="empty"><p>{}</p></div>').format(form.hint)
            answer = gr.HTML(str(hint), elem_classes="result")
    _connect(form, choices, components, button, answer)
    for example, example_button in examples:
        example_button.click(
            _fill_in(form, example), choices, [*components, answer], show_progress_on=answer, **ONE_AT_A_TIME
        )


def _model_choices(form: Form) -> list[gr.Dropdown]:
    """Builds a dropdown where several models can answer, and below it the quality of the chosen one."""
    choices = []
    for label, models in form.models.items():
        if not models:
            continue
        if len(models) > 1:
            choice = gr.Dropdown([model.name for model in models], value=models[0].name, label=label)
            choices.append(choice)
        measured = gr.HTML(_measured(models[0], named=len(models) == 1), elem_classes="measured")
        if len(models) > 1:
            by_name = {model.name: model for model in models}
            choice.change(
                lambda name, by_name=by_name: _measured(by_name[name]) if name in by_name else "",
                choice, measured, queue=False, api_visibility="private", show_progress="hidden",
            )  # fmt: skip
    return choices


def _measured(model: PooledModel, named: bool = False) -> str:
    name = Markup("<b>{}</b> · ").format(model.name) if named else ""
    return str(Markup('<p class="quality">{}{}</p>').format(name, quality(model)))


# --------------------------------------------------------------------------- events


def _connect(
    form: Form, choices: Sequence[gr.Dropdown], components: Sequence[Any], button: gr.Button, answer: gr.HTML
) -> None:
    """Answers when the button is clicked or Enter is pressed in a text field, and checks pictures when uploaded."""

    def respond(*sent: Any) -> str:
        return answer_or_message(lambda: form.answer(*_chosen_models(form, sent), *_field_values(form, sent)))

    triggers = [button.click, *(field.submit for field in components if isinstance(field, gr.Textbox))]
    gr.on(triggers, respond, [*choices, *components], answer, **ONE_AT_A_TIME)
    for field, component in zip(form.fields, components, strict=True):
        if isinstance(field, PictureField):
            component.upload(_check_picture(field), component, answer, **ONE_AT_A_TIME)


def _check_picture(field: PictureField) -> Callable[[Any], Any]:
    """Reports an unusable picture at once. A usable one leaves the answer as it is."""

    def check(sent: Any) -> Any:
        try:
            field.read(sent)
        except ValueError as error:
            return message("That did not work", str(error))
        return gr.skip()

    return check


def _example_buttons(form: Form) -> list[tuple[Example, gr.Button]]:
    if not form.examples:
        return []
    gr.HTML("<h2>Or try one of these</h2>", elem_classes="bare")
    with gr.Column(elem_classes="examples"):
        return [
            (example, gr.Button(example.name, icon=example.icon, size="sm", min_width=0, elem_classes="example"))
            for example in form.examples
        ]


def _fill_in(form: Form, example: Example) -> Callable[..., list[Any]]:
    """Fills the fields with an example, and answers."""

    def fill(*sent: Any) -> list[Any]:
        try:
            values = [read_picture(value, value.name) if isinstance(value, Path) else value for value in example.values]
        except (ValueError, OSError) as error:
            return [*(gr.skip() for _ in example.values), message("That did not work", str(error))]
        inputs = [
            "" if value is None and isinstance(field, TextField) else value
            for field, value in zip(form.fields, values, strict=True)
        ]
        return [*values, answer_or_message(lambda: form.answer(*_chosen_models(form, sent), *inputs))]

    return fill


def answer_or_message(answer: Callable[[], str]) -> str:
    """Returns the answer, or a message about unusable input. Tracebacks go to the server's log only."""
    try:
        return answer()
    except ValueError as error:
        return message("That did not work", str(error))
    except Exception:
        LOG.exception("a page could not answer")
        return message("Something broke", "That is our fault, not yours. The server's log has the details.")


def _chosen_models(form: Form, sent: Sequence[Any]) -> list[PooledModel | None]:
    """Finds the models that the dropdowns name. Their values precede those of the fields."""
    names, chosen = iter(sent), list[PooledModel | None]()
    for models in form.models.values():
        if len(models) < 2:
            chosen.append(models[0] if models else None)
            continue
        name = next(names)
        model = next((model for model in models if model.name == name), None)
        if model is None:
            raise ValueError(f"no model '{name}' here. There are: {', '.join(model.name for model in models)}")
        chosen.append(model)
    return chosen


def _field_values(form: Form, sent: Sequence[Any]) -> list[Any]:
    values = sent[len(sent) - len(form.fields) :]
    return [field.read(value) for field, value in zip(form.fields, values, strict=True)]
