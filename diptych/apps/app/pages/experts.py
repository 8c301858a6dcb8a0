"""Shows which of VLMo's experts each token goes through, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
from diptych.predict import PooledModel
from diptych.predict.routing import Passed, Way, expert_ways, has_experts
from diptych.schema import VlmoConfig, VlmoPretrainConfig

PAGE = Page(
    "experts",
    "Experts",
    "Which expert does each token go through?",
    "VLMo shares one attention among all tokens, but has separate feed-forward networks, the experts: for pictures, "
    "for words and, in the upper layers, for both together. Give a picture and a text and follow the tokens in three "
    "passes through the model.",
)
NAMES = {"image": "vision expert", "text": "language expert", "fusion": "vision-language expert"}
LETTERS = {"image": "V", "text": "L", "fusion": "VL"}
TITLES = {
    "picture": "The picture alone",
    "text": "The text alone",
    "pair": "Picture and text together",
}
MOST = 48
"""Number of tokens of a kind in a table. Of more tokens, evenly spaced ones are shown."""


def form(site: Site) -> Form:
    models = [model for model in site.pool.able("match") if has_experts(model.predictor.model)]
    missing = f"no model here has experts: {training_hint([VlmoPretrainConfig], [VlmoConfig])}"
    return Form(
        PAGE,
        {"Model": models},
        (PictureField(), TextField("Text", "a whale to the left of a crab")),
        "Follow the tokens",
        answer,
        "Three tables, with a row for each layer and a column for each token, will appear here.",
        site.captioned(),
        None if models else missing,
    )


def answer(model: PooledModel, picture: Image.Image, text: str) -> str:
    tables = [table_of(route) for route in expert_ways(model.predictor, picture, text)]
    return render("experts", models=[model], tables=tables, names=NAMES, letters=LETTERS)


@dataclass(frozen=True)
class ExpertTable:
    """The experts of one pass: a row for each layer, the last layer first, and a column for each shown token."""

    title: str
    note: str
    tokens: list[str]
    layers: list[tuple[int, list[Passed | None]]]
    largest: float
    """The largest distance by which an expert moved a token, as a share of the token's length."""

    def strength(self, step: Passed) -> int:
        """The strength of a cell's colour in percent."""
        return 25 + round(75 * min(1.0, (step.moved / self.largest) ** 0.5))


def table_of(route: Way) -> ExpertTable:
    columns = [*spaced(range(route.text_tokens)), *spaced(range(route.text_tokens, len(route.tokens)))]
    left_out = len(route.tokens) - len(columns)
    note = summary(route) + (f" {left_out:,} of {len(route.tokens):,} tokens are left out here." if left_out else "")
    layers = [(number, [layer[column] for column in columns]) for number, layer in enumerate(route.layers, 1)]
    largest = max((step.moved for layer in route.layers for step in layer if step is not None), default=1.0)
    tokens = [route.tokens[column] for column in columns]
    return ExpertTable(TITLES[route.given], note, tokens, layers[::-1], largest)


def summary(route: Way) -> str:
    """Says in words which experts the tokens passed in which layers."""
    runs: list[tuple[int, int, tuple[str, ...]]] = []
    for number, layer in enumerate(route.layers, 1):
        experts = tuple(name for name in NAMES if any(step is not None and step.expert == name for step in layer))
        if runs and runs[-1][2] == experts:
            runs[-1] = (runs[-1][0], number, experts)
        else:
            runs.append((number, number, experts))
    parts = [
        f"{f'layer {first}' if first == last else f'layers {first} to {last}'}: "
        + (" and ".join(NAMES[expert] for expert in experts) or "nothing")
        for first, last, experts in runs
    ]
    return "; ".join(parts).capitalize() + "."


def spaced(positions: range) -> list[int]:
    """Returns all positions, or `MOST` evenly spaced ones with the first and the last."""
    if len(positions) <= MOST:
        return list(positions)
    return [positions[round(number * (len(positions) - 1) / (MOST - 1))] for number in range(MOST)]
