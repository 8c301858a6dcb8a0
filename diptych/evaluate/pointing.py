"""Measures where heat maps of single words point: the pointing game (Zhang et al., ECCV 2016) on generated scenes.

A map points at a thing if its hottest patch has its centre in the thing's box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from jaxtyping import Float

from diptych.predict import Predictor
from diptych.predict.explain import Maps, WordMap, explain
from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import Caption
from diptych.synthetic.evaluation import evaluation_set
from diptych.synthetic.generator import Box, Scene, render, stream


def evaluate_pointing(predictor: Predictor, scenes: int = 300, split: Split = "test") -> dict[str, float]:
    """Plays the pointing game with one thing of each of the first `scenes` scenes of an evaluation split.

    The thing is drawn among those that are the only ones of their name. Its name is read as part of the scene's
    caption, which names everything, and alone (`a fox`). The result has, in percent of the scenes, for each kind of
    map that `diptych.predict.explain.explain` makes (`similarity`, `attention`, `grad_cam`):

    - `….caption`: the map of the name within the caption points at the thing;
    - `….alone`: the map of the name as the whole text does;
    - `….other_word`: the map of another word of the caption, drawn at random, points at the thing.

    And `chance`: a random point does, which is the mean share of the scene that the box covers; and `scenes`: how many
    scenes were played, a number. Raises ValueError for a model that cannot match pictures with texts.
    """
    config = replace(predictor.recipe.data.scenes, evaluation_count=scenes)
    found = evaluation_set(config, split)
    played = [
        game
        for scene, caption in zip(found.scenes, found.captions, strict=True)
        if (game := play(predictor, scene, caption, config))
    ]
    measures = {name: 100 * sum(game[name] for game in played) / len(played) for name in played[0]}
    return measures | {"scenes": float(len(played))}


def play(predictor: Predictor, scene: Scene, caption: Caption, config: ScenesConfig) -> dict[str, float] | None:
    """Returns whether each map points at the drawn thing (0 or 1), and its share of the scene.

    Returns None if the caption names no thing that is the only one of its name, or nothing beside it.
    """
    random = stream(config.seed, scene.split, scene.index, purpose=7)
    single = [members[0] for name, members in scene.kinds.items() if len(members) == 1 and name in caption.names]
    if not single:
        return None
    thing, picture = random.choice(single), render(scene, config)
    other = random.random()
    found: dict[str, float] = {}
    for kind in get_args(Maps):
        within = explain(predictor, picture, caption.text, kind).words
        alone = explain(predictor, picture, thing.noun.phrase(1), kind).words
        name = mentioned(within, thing.name)
        others = [word for word in within if word not in name and word.word.isalpha()]
        if not name or not others:
            return None
        maps = {
            "caption": summed(name),
            "alone": summed(mentioned(alone, thing.name)),
            "other_word": others[int(other * len(others))].heat,
        }
        found |= {f"{kind}.{text}": float(points_at(heat, thing.box, scene.side)) for text, heat in maps.items()}
    return found | {"chance": thing.width * thing.height / scene.side**2}


def mentioned(words: Sequence[WordMap], name: str) -> Sequence[WordMap]:
    """Returns the words that are the name, at its first mention; none if it is not mentioned."""
    parts = name.lower().split()
    for start in range(len(words) - len(parts) + 1):
        if [word.word for word in words[start : start + len(parts)]] == parts:
            return words[start : start + len(parts)]
    return ()


def summed(words: Sequence[WordMap]) -> Float[np.ndarray, "h w"]:
    """Sums the maps of words."""
    return np.sum([word.heat for word in words], axis=0)


def points_at(heat: Float[np.ndarray, "h w"], box: Box, side: int) -> bool:
    """Returns whether the centre of the hottest patch lies in a box (x, y, width, height).

    Boxes are in pixels of a picture of `side` × `side`. A map without any heat points nowhere.
    """
    if not heat.max() > 0:
        return False
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    x, y = (column + 0.5) / heat.shape[1] * side, (row + 0.5) / heat.shape[0] * side
    left, top, width, height = box
    return bool(left <= x <= left + width and top <= y <= top + height)
