"""Generates referring expressions: phrases that are true of exactly one object of a scene, with boxes to choose from.

A phrase is drawn from a scene, as a pure function of the scene and of random numbers that depend only on (seed, split,
index). It plainly holds of its object and, even in a generous reading, of no other. Around each object, whether or not
the phrase refers to it, there are equally many jittered copies of its box, both larger and smaller ones. So neither the
size of a box nor the number of boxes near it gives the right one away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import is_allowed
from diptych.synthetic.claims import by_weight, choose, distinct, side
from diptych.synthetic.generator import (
    Box,
    Relation,
    Scene,
    SceneObject,
    is_beside,
    relation_between,
    shared_area,
)

ExpressionKind = Literal["name", "size", "place", "relation", "thing"]
JITTERED = 2
"""The number of copies of each object's box."""
_SCALE = 0.5
"""The largest logarithm of a copy's scale, up or down."""
_MOST_OVERLAP = 0.5
"""A proposal counts as correct from this intersection over union on. No copy reaches it with the target's box."""
_LEAST_OVERLAP = 0.1
"""The least intersection over union of a copy with its own object's box."""
_TRIES = 100
"""The number of copies that are drawn before one is left out."""
_WEIGHTS: dict[ExpressionKind, float] = {"name": 1.0, "size": 4.0, "place": 4.0, "relation": 2.0, "thing": 2.0}
"""Kinds that fewer scenes allow have a higher weight."""
_PLACES: dict[Relation, str] = {
    "left": "on the left",
    "right": "on the right",
    "above": "at the top",
    "below": "at the bottom",
}


@dataclass(frozen=True)
class Expression:
    """Holds a phrase, the object that it refers to, and boxes to choose it from."""

    text: str
    kind: ExpressionKind
    target: int
    """The index of the object among the scene's objects."""
    box: Box
    proposals: tuple[Box, ...]
    """In random order, the boxes of all objects and jittered copies of each, none of which finds the target."""


def expression(scene: Scene, random: Random, config: ScenesConfig) -> Expression | None:
    """Draws an expression for some object. Returns None if no allowed phrase fits one object alone."""
    if not distinct(scene, config):
        return None
    for kind in by_weight(_WEIGHTS, random):
        phrases = list(_PHRASES[kind](scene, random, config))
        if phrases:
            text, target = choose(phrases, random)
            index = next(index for index, item in enumerate(scene.objects) if item is target)
            return Expression(text, kind, index, target.box, _proposals(scene, target, random))
    return None


# --------------------------------------------------------------------------- phrases


def _named(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """Yields `the cup`, for the only cup."""
    if config.compositions != "held_out":
        for item, same in _each(scene):
            if not same:
                yield f"the {item.name}", item


def _sized(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """Yields `the large cup`, if all other cups have other sizes."""
    if config.compositions != "held_out":
        for item, same in _each(scene):
            if same and item.size != "medium" and all(other.size != item.size for other in same):
                yield f"the {item.size} {item.name}", item


def _placed(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """Yields `the cup on the left`, if all other cups are clearly to the right of it."""
    if config.compositions != "held_out":
        for item, same in _each(scene):
            relation = relation_between((item,), same) if same else None
            if relation:
                yield f"the {item.name} {_PLACES[relation]}", item


def _related(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """Yields `the cup to the left of the dog`, if no other cup is even slightly to the left of the dog."""
    for item, same in _each(scene):
        for relation, other in _anchors(scene, item, config):
            if not any(is_beside(rival, relation, other) for rival in same):
                yield f"the {item.name} {side(relation, random)} the {other.name}", item


def _unnamed(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """Yields `the thing to the left of the dog`, if nothing else is even slightly to the left of the dog."""
    for item, _ in _each(scene):
        for relation, other in _anchors(scene, item, config):
            rivals = [rival for rival in scene.objects if rival is not item and rival is not other]
            if not any(is_beside(rival, relation, other) for rival in rivals):
                yield f"the thing {side(relation, random)} the {other.name}", item


def _each(scene: Scene) -> Iterator[tuple[SceneObject, tuple[SceneObject, ...]]]:
    """Yields every object with the other objects of its name."""
    for item in scene.objects:
        yield item, tuple(other for other in scene.kinds[item.name] if other is not item)


def _anchors(scene: Scene, item: SceneObject, config: ScenesConfig) -> Iterator[tuple[Relation, SceneObject]]:
    """Yields the object's plain and allowed relations to things that are the only ones of their name."""
    for name, members in scene.kinds.items():
        relation = relation_between((item,), members) if name != item.name and len(members) == 1 else None
        if relation and is_allowed(item.name, relation, name, config):
            yield relation, members[0]


_PHRASES = {"name": _named, "size": _sized, "place": _placed, "relation": _related, "thing": _unnamed}


# --------------------------------------------------------------------------- proposals


def _proposals(scene: Scene, target: SceneObject, random: Random) -> tuple[Box, ...]:
    boxes = list(scene.boxes)
    for item in scene.objects:
        centre = random.random()  # as if the box itself were one of several copies of an unknown original
        for _ in range(JITTERED):
            boxes += _jittered(item.box, centre, target.box, scene.side, random)
    return tuple(sorted(boxes, key=lambda _: random.random()))


def _jittered(box: Box, centre: float, target: Box, side: int, random: Random) -> list[Box]:
    """Draws a copy of a box with another size and place inside the picture, which overlaps neither box too much.

    `centre` is the scale that the box itself stands for. Returns an empty list if no copy fits.
    """
    x, y, width, height = box
    draw = random.random
    for _ in range(_TRIES):
        scale = exp(_SCALE * (draw() - centre))
        wide, high = min(side, round(width * scale)), min(side, round(height * scale))
        left = round(x + (width - wide) / 2 + width * (2 * draw() - 1))
        top = round(y + (height - high) / 2 + height * (2 * draw() - 1))
        copy = min(max(left, 0), side - wide), min(max(top, 0), side - high), wide, high
        if _LEAST_OVERLAP <= _iou(copy, box) < _MOST_OVERLAP and _iou(copy, target) < _MOST_OVERLAP:
            return [copy]
    return []


def _iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes."""
    shared = shared_area(first, second)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)
