"""What all pages have: a header, the model with its measured quality, fields, a button, an answer, and examples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from diptych.apps.app import parts
from diptych.apps.app.fields import Field, PictureField, read_picture
from diptych.apps.app.quality import quality
from diptych.apps.report.html import MARK, Html, tag
from diptych.predict import PooledModel

Asked = Callable[..., Html]
"""Takes the chosen models (None where there is none to choose) and the fields' values; raises ValueError."""
ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_id": "models",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "preprocess": False,
    "show_progress": "minimal",
    "scroll_to_output": True,
}
"""Models answer one question at a time, whoever asks; components hand over what was sent as it is."""
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """Values of all fields that a click puts in: files of pictures, and texts."""

    name: str
    values: tuple[Path | str | None, ...]

    @property
    def icon(self) -> Path | None:
        return next((value for value in self.values if isinstance(value, Path)), None)


@dataclass(frozen=True)
class Page:
    """A page's name and words."""

    path: str
    """Of its address; the first page has none."""
    title: str
    question: str
    """What people want to know who open it."""
    help: str


@dataclass(frozen=True)
class Form:
    """What a page asks for, and who answers."""

    page: Page
    models: Mapping[str, Sequence[PooledModel]]
    """Whom one can ask, the best first, by the name of the choice."""
    fields: tuple[Field, ...]
    button: str
    ask: Asked
    hint: str
    """What stands in the answer's place before there is one."""
    examples: tuple[Example, ...] = ()
    missing: str | None = None
    """Why nobody can be asked, with what to train."""


def lay_out(form: Form, pages: Sequence[Page]) -> None:
    """The page, within the blocks that are being built."""
    gr.HTML(header(form.page, pages), elem_classes="bare")
    gr.HTML(_intro(form), elem_classes="bare")
    if form.missing is not None:
        gr.HTML(parts.message("This page needs a model that is not here", form.missing, "missing"))
        return
    with gr.Row(elem_classes="desk"):
        with gr.Column(min_width=300, elem_classes="inputs"):
            choices = _choices(form)
            fields = [field.make() for field in form.fields]
            run = gr.Button(form.button, variant="primary", elem_classes="run")
            examples = _example_buttons(form)
        with gr.Column(min_width=300, scale=2, elem_classes="outputs"):
            answer = gr.HTML(parts.empty(form.hint), elem_classes="result")
    _connect(form, choices, fields, run, answer)
    for example, button in examples:
        button.click(
            _filling(form, example), _there(choices), [*fields, answer], show_progress_on=answer, **ONE_AT_A_TIME
        )


def header(page: Page, pages: Sequence[Page]) -> Html:
    """Who we are, and the way to the other pages."""
    links = [tag("a", one.title, href=f"./{one.path}", aria_current="page" if one is page else None) for one in pages]
    brand = tag("a", MARK, tag("b", "diptych"), href="./", class_="brand", aria_label="diptych, first page")
    tagline = tag("p", "Models that learnt from captioned pictures which words belong to which pictures. Try them.")
    return tag("div", tag("div", brand, tagline, class_="who"), tag("nav", links, aria_label="Pages"), class_="top")


def _intro(form: Form) -> Html:
    return tag("div", tag("h1", form.page.question), tag("p", form.page.help), class_="intro")


def _choices(form: Form) -> dict[str, gr.Dropdown | None]:
    """A choice of models where there is one to make; below it, how good the chosen one is."""
    made: dict[str, gr.Dropdown | None] = {}
    for name, models in form.models.items():
        made[name] = None
        if not models:
            continue
        if len(models) > 1:
            made[name] = gr.Dropdown([one.name for one in models], value=models[0].name, label=name)
        measured = gr.HTML(_measured(models[0], named=len(models) == 1), elem_classes="measured")
        if (choice := made[name]) is not None:
            by_name = {one.name: one for one in models}
            choice.change(
                lambda chosen, by_name=by_name: _measured(by_name[chosen]) if chosen in by_name else "",
                choice, measured, queue=False, api_visibility="private", show_progress="hidden",
            )  # fmt: skip
    return made


def _measured(one: PooledModel, named: bool = False) -> Html:
    return tag("p", [tag("b", one.name), " · "] if named else "", quality(one), class_="quality")


# --------------------------------------------------------------------------- events


def _connect(
    form: Form, choices: Mapping[str, gr.Dropdown | None], fields: Sequence[Any], run: gr.Button, answer: gr.HTML
) -> None:
    given = [*_there(choices), *fields]

    def ask(*sent: Any) -> str:
        return answered(lambda: form.ask(*_chosen(form, sent), *_read(form, sent)))

    triggers = [run.click, *(field.submit for field in fields if isinstance(field, gr.Textbox))]
    gr.on(triggers, ask, given, answer, **ONE_AT_A_TIME)
    for field, component in zip(form.fields, fields, strict=True):
        if isinstance(field, PictureField):
            component.upload(_checking(field), component, answer, **ONE_AT_A_TIME)


def _checking(field: PictureField) -> Callable[[Any], Any]:
    """Says at once that a picture cannot be used; a good one leaves the answer as it is."""

    def check(sent: Any) -> Any:
        try:
            field.read(sent)
        except ValueError as error:
            return parts.message("That did not work", str(error))
        return gr.skip()

    return check


def _example_buttons(form: Form) -> list[tuple[Example, gr.Button]]:
    if not form.examples:
        return []
    gr.HTML(tag("h2", "Or try one of these"), elem_classes="bare")
    with gr.Column(elem_classes="examples"):
        return [
            (one, gr.Button(one.name, icon=one.icon, size="sm", min_width=0, elem_classes="example"))
            for one in form.examples
        ]


def _filling(form: Form, example: Example) -> Callable[..., list[Any]]:
    def fill(*sent: Any) -> list[Any]:
        try:
            values = [read_picture(one, one.name) if isinstance(one, Path) else one for one in example.values]
        except (ValueError, OSError) as error:
            return [*(gr.skip() for _ in example.values), parts.message("That did not work", str(error))]
        read = [
            "" if value is None and not _pictured(field) else value
            for field, value in zip(form.fields, values, strict=True)
        ]
        return [*values, answered(lambda: form.ask(*_chosen(form, sent), *read))]

    return fill


def _pictured(field: Field) -> bool:
    return isinstance(field, PictureField)


def answered(ask: Callable[[], Html]) -> str:
    """The answer, or what is wrong with the question. Nobody meets a traceback: those go to the server's log."""
    try:
        return ask()
    except ValueError as error:
        return parts.message("That did not work", str(error))
    except Exception:
        LOG.exception("a page could not answer")
        return parts.message("Something broke", "That is our fault, not yours. The server's log says more.")


def _there(choices: Mapping[str, gr.Dropdown | None]) -> list[gr.Dropdown]:
    return [choice for choice in choices.values() if choice is not None]


def _chosen(form: Form, sent: Sequence[Any]) -> list[PooledModel | None]:
    """The models by what the choices sent, which come before the fields."""
    waiting, found = iter(sent), list[PooledModel | None]()
    for models in form.models.values():
        if len(models) < 2:
            found.append(models[0] if models else None)
            continue
        name = next(waiting)
        model = next((one for one in models if one.name == name), None)
        if model is None:
            raise ValueError(f"no model '{name}' here. There are: {', '.join(one.name for one in models)}")
        found.append(model)
    return found


def _read(form: Form, sent: Sequence[Any]) -> list[Any]:
    own = sent[len(sent) - len(form.fields) :]
    return [field.read(value) for field, value in zip(form.fields, own, strict=True)]
