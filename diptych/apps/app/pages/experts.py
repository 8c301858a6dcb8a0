"""Which of VLMo's experts each token goes through, layer by layer."""

from __future__ import annotations

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Form, Page
from diptych.apps.app.missing import training_hint
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.report.html import Html, tag
from diptych.predict import PooledModel
from diptych.predict.routing import Passed, Way, expert_ways, has_experts
from diptych.schema import VlmoConfig, VlmoPretrainConfig

PAGE = Page(
    "experts",
    "Experts",
    "Which expert does each token go through?",
    "VLMo has one attention for everything, but a feed-forward of its own, an expert, for pictures, for words, and, in "
    "the upper layers, for both together. Give a picture and a text and watch three passes through the model.",
)
NAMES = {"image": "vision expert", "text": "language expert", "fusion": "vision-language expert"}
LETTERS = {"image": "V", "text": "L", "fusion": "VL"}
TITLES = {
    "picture": "The picture alone",
    "text": "The text alone",
    "pair": "Picture and text together",
}
MOST = 48
"""Tokens of a kind in a table; of more, as many evenly spaced ones."""


def form(site: Site) -> Form:
    models = [one for one in site.pool.able("match") if has_experts(one.predictor.model)]
    why = f"no model here has experts: {training_hint([VlmoPretrainConfig], [VlmoConfig])}"
    return Form(
        PAGE,
        {"Model": models},
        (PictureField(), TextField("Text", "a whale to the left of a crab")),
        "Follow the tokens",
        ask,
        "Three tables, a row for each layer and a column for each token, will stand here.",
        site.captioned(),
        None if models else why,
    )


def ask(model: PooledModel, picture: Image.Image, text: str) -> Html:
    ways = expert_ways(model.predictor, picture, text)
    key = [tag("span", tag("i", LETTERS[name], class_=f"cell {name}"), said) for name, said in NAMES.items()]
    return parts.answer(
        tag("p", key, tag("span", "The stronger the colour, the further the expert moved the token."), class_="key"),
        *(_way(one) for one in ways),
        parts.asked((model.name, quality(model))),
    )


def _way(way: Way) -> Html:
    columns = [*spaced(range(way.text_tokens)), *spaced(range(way.text_tokens, len(way.tokens)))]
    left_out = len(way.tokens) - len(columns)
    heads = [tag("th", tag("span", way.tokens[place]), scope="col") for place in columns]
    top = max((one.moved for layer in way.layers for one in layer if one is not None), default=1.0)
    rows = [
        tag("tr", tag("th", f"layer {number}", scope="row"), [_cell(layer[place], top) for place in columns])
        for number, layer in reversed(list(enumerate(way.layers, 1)))
    ]
    table = tag("table", tag("thead", tag("tr", tag("td"), heads)), tag("tbody", rows), class_="experts")
    note = summary(way) + (f" {left_out:,} of {len(way.tokens):,} tokens are left out here." if left_out else "")
    scroller = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=TITLES[way.given])
    return parts.card(TITLES[way.given], scroller, note=note)


def summary(way: Way) -> str:
    """Which experts were passed in which layers, in words."""
    runs: list[tuple[int, int, tuple[str, ...]]] = []
    for number, layer in enumerate(way.layers, 1):
        names = tuple(name for name in NAMES if any(one is not None and one.expert == name for one in layer))
        if runs and runs[-1][2] == names:
            runs[-1] = (runs[-1][0], number, names)
        else:
            runs.append((number, number, names))
    said = [
        f"{f'layer {first}' if first == last else f'layers {first} to {last}'}: "
        + (" and ".join(NAMES[name] for name in names) or "nothing")
        for first, last, names in runs
    ]
    return "; ".join(said).capitalize() + "."


def spaced(places: range) -> list[int]:
    """All of them, or `MOST` evenly spaced ones with the first and the last."""
    if len(places) <= MOST:
        return list(places)
    return [places[round(number * (len(places) - 1) / (MOST - 1))] for number in range(MOST)]


def _cell(passed: Passed | None, top: float) -> Html:
    if passed is None:
        return tag("td", tag("i", "–", class_="cell"))
    strength = 25 + round(75 * min(1.0, (passed.moved / top) ** 0.5))
    moved = f"{NAMES[passed.expert]}, moved it by {passed.moved:.0%} of its length"
    return tag(
        "td",
        tag("i", LETTERS[passed.expert], class_=f"cell {passed.expert}", style=f"--strength:{strength}%", title=moved),
    )
