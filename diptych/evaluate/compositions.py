"""Measures whether a model reads how words are combined: foils and quadruples of generated scenes, and published tests.

I items, two texts each. `similarity` is that of the dual encoder, `match` the probability by the fusion encoder, and
`blind` the match with a gray picture, which shows what the texts alone give away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych.data.compositions import Item
from diptych.predict import Predictor
from diptych.schema import Split
from diptych.synthetic.compositions import FOILS, foils, quadruples
from diptych.synthetic.generator import render

TOGETHER = 256
"""Items that are scored at once."""
GRAY = (128, 128, 128)


def evaluate_compositions(predictor: Predictor, number: int = 1000, split: Split = "test") -> dict[str, float]:
    """Scores `number` foils of each kind and as many quadruples, made of scenes as the model's recipe has them.

    The result has, in percent, `KIND.similarity`, `KIND.match` and `KIND.blind` for each kind of foil: how often the
    true text scores above the false one (ties count half; 50 by chance); and for quadruples the measures of
    `quadruple_measures`. Models without fusion have `similarity` only.
    """
    config = predictor.recipe.data.scenes
    measures: dict[str, float] = {}
    for kind in FOILS:
        made = foils(kind, number, config, split)
        pictures = [(render(foil.scene, config),) for foil in made]
        measures |= _measures(kind, _scores(predictor, pictures, [(foil.true, foil.false) for foil in made]))
    both = quadruples(number, config, split)
    pairs = [tuple(render(scene, config) for scene in each.scenes) for each in both]
    return measures | _measures("quadruples", _scores(predictor, pairs, [each.texts for each in both]))


def evaluate_items(predictor: Predictor, items: Sequence[Item]) -> dict[str, float]:
    """Scores the items of a published test: foils if each has one picture, quadruples if each has two.

    The names are those of `evaluate_compositions` without kind. Raises ValueError if some have one and some two.
    """
    if len({len(item.pictures) for item in items}) != 1:
        raise ValueError("some items have one picture and some have two: pass one test at a time")
    parts = []
    for start in range(0, len(items), TOGETHER):
        here = items[start : start + TOGETHER]
        pictures = [tuple(_opened(predictor, item, place) for place in range(len(item.pictures))) for item in here]
        parts.append(_scores(predictor, pictures, [item.texts for item in here]))
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name.removeprefix("."): value for name, value in _measures("", scores).items()}


def _opened(predictor: Predictor, item: Item, place: int) -> Image.Image:
    picture = predictor.open(item.pictures[place])
    if item.box is None:
        return picture
    x, y, width, height = item.box
    return picture.crop((round(x), round(y), round(x + width), round(y + height)))


def _scores(
    predictor: Predictor, pictures: Sequence[tuple[Image.Image, ...]], texts: Sequence[tuple[str, str]]
) -> dict[str, Float[Tensor, "I P 2"]]:
    """Scores each of an item's P pictures with each of its two texts."""
    count, each = len(pictures), len(pictures[0])
    flat, words = [picture for group in pictures for picture in group], [text for pair in texts for text in pair]
    pictures_IPE = predictor.embed_images(flat).unflatten(0, (count, each))
    texts_I2E = predictor.embed_texts(words).unflatten(0, (count, 2))
    scores = {"similarity": pictures_IPE @ texts_I2E.transpose(1, 2)}
    if predictor.missing("match") is None:
        pairs = [(place, 2 * (place // each) + text) for place in range(len(flat)) for text in range(2)]
        scores["match"] = predictor.match_pairs(flat, words, pairs).view(count, each, 2)
        gray = Image.new("RGB", flat[0].size, GRAY)
        scores["blind"] = predictor.match([gray], words).view(count, 1, 2).expand(count, each, 2)
    return scores


def _measures(kind: str, scores: dict[str, Float[Tensor, "I P 2"]]) -> dict[str, float]:
    measures: dict[str, float] = {}
    for name, scores_IP2 in scores.items():
        if scores_IP2.shape[1] == 1:
            measures[f"{kind}.{name}"] = 100 * _wins(scores_IP2[:, 0, 0] - scores_IP2[:, 0, 1]).mean().item()
        else:
            found = quadruple_measures(scores_IP2)
            measures |= {f"{kind}.{name}.{measure}": value for measure, value in found.items()}
    return measures


def _wins(margin: Float[Tensor, "*I"]) -> Float[Tensor, "*I"]:
    """Turns the lead of the true text into 1, 0, or a half for a tie."""
    return (margin.double().sign() + 1) / 2


def quadruple_measures(scores: Float[Tensor, "I 2 2"]) -> dict[str, float]:
    """Computes Winoground's measures in percent, from the scores of two pictures with two texts (§4.1 there).

    - `text`: for both pictures, the right text scores above the wrong one (25 by chance);
    - `image`: for both texts, the right picture does (25 by chance);
    - `group`: both (16.7 by chance).

    >>> quadruple_measures(torch.tensor([[[0.9, 0.1], [0.3, 0.2]]]))
    {'text': 0.0, 'image': 100.0, 'group': 0.0}
    """
    text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    found = {"text": text, "image": image, "group": text & image}
    return {name: 100 * hits.double().mean().item() for name, hits in found.items()}
