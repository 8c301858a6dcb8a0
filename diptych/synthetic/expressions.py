"""Referring expressions: phrases true of exactly one object of a scene, its box, and boxes to choose it from.

A phrase is said only where it plainly holds of its object and, however generously read, of no other.
Around each object, referred to or not, stand equally many jittered copies of its box, larger and smaller ones alike, so
that neither the size of a box nor how many others lie near it tells which is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import may_say
from diptych.synthetic.claims import by_weight, choose, distinct, side
from diptych.synthetic.generator import Box, Relation, Scene, SceneObject, relation_between

ExpressionKind = Literal["name", "size", "place", "relation", "thing"]
JITTERED = 2
"""Copies of each object's box."""
_SCALE = 0.5
"""Largest logarithm of a copy's scale, up or down."""
_MOST_OVERLAP = 0.5
"""A proposal counts as found from this intersection over union on: no copy reaches it with the object referred to."""
_LEAST_OVERLAP = 0.1
"""A copy's, with its own object."""
_TRIES = 100
_WEIGHTS: dict[ExpressionKind, float] = {"name": 1.0, "size": 4.0, "place": 4.0, "relation": 2.0, "thing": 2.0}
"""What a picture allows less often is drawn more often where it is allowed."""
_PLACES: dict[Relation, str] = {
    "left": "on the left",
    "right": "on the right",
    "above": "at the top",
    "below": "at the bottom",
}


@dataclass(frozen=True)
class Expression:
    text: str
    kind: ExpressionKind
    target: int
    """Place among the scene's objects of the one referred to."""
    box: Box
    proposals: tuple[Box, ...]
    """In random order: the boxes of all objects, and jittered copies of each, none of which finds the target."""


def expression(scene: Scene, random: Random, config: ScenesConfig) -> Expression | None:
    """An expression for some object; None where no phrase that may be said fits one object alone."""
    if not distinct(scene, config):
        return None
    for kind in by_weight(_WEIGHTS, random):
        said = list(_PHRASES[kind](scene, random, config))
        if said:
            text, meant = choose(said, random)
            target = next(place for place, item in enumerate(scene.objects) if item is meant)
            return Expression(text, kind, target, meant.box, _proposals(scene, meant, random))
    return None


# --------------------------------------------------------------------------- phrases


def _named(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """The cup."""
    if config.compositions != "held_out":
        for item, others in _each(scene):
            if not others:
                yield f"the {item.name}", item


def _sized(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """The large cup, among cups of other sizes."""
    if config.compositions != "held_out":
        for item, others in _each(scene):
            if others and item.size != "medium" and all(other.size != item.size for other in others):
                yield f"the {item.size} {item.name}", item


def _placed(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """The cup on the left, with the other cups clearly to the right of it."""
    if config.compositions != "held_out":
        for item, others in _each(scene):
            relation = relation_between((item,), others) if others else None
            if relation:
                yield f"the {item.name} {_PLACES[relation]}", item


def _related(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """The cup to the left of the dog, with no other cup in the least to the left of it."""
    for item, same in _each(scene):
        for relation, other in _beside(scene, item, config):
            if not any(_leans(one, relation, other) for one in same):
                yield f"the {item.name} {side(relation, random)} the {other.name}", item


def _unnamed(scene: Scene, random: Random, config: ScenesConfig) -> Iterator[tuple[str, SceneObject]]:
    """The thing to the left of the dog, with nothing else in the least to the left of it."""
    for item, _ in _each(scene):
        for relation, other in _beside(scene, item, config):
            rest = [one for one in scene.objects if one is not item and one is not other]
            if not any(_leans(one, relation, other) for one in rest):
                yield f"the thing {side(relation, random)} the {other.name}", item


def _each(scene: Scene) -> Iterator[tuple[SceneObject, tuple[SceneObject, ...]]]:
    """Every object, and the others of its name."""
    for item in scene.objects:
        yield item, tuple(other for other in scene.kinds[item.name] if other is not item)


def _beside(scene: Scene, item: SceneObject, config: ScenesConfig) -> Iterator[tuple[Relation, SceneObject]]:
    """How the object stands to things that are the only ones of their name, where that is plain and may be said."""
    for name, members in scene.kinds.items():
        relation = relation_between((item,), members) if name != item.name and len(members) == 1 else None
        if relation and may_say(item.name, relation, name, config):
            yield relation, members[0]


def _leans(one: SceneObject, relation: Relation, other: SceneObject) -> bool:
    """Whether the centre of one is on that side of the other's, be it ever so little."""
    axis = 0 if relation in ("left", "right") else 1
    sign = 1 if relation in ("left", "above") else -1
    return sign * (other.centre[axis] - one.centre[axis]) > 0


_PHRASES = {"name": _named, "size": _sized, "place": _placed, "relation": _related, "thing": _unnamed}


# --------------------------------------------------------------------------- proposals


def _proposals(scene: Scene, meant: SceneObject, random: Random) -> tuple[Box, ...]:
    boxes = list(scene.boxes)
    for item in scene.objects:
        own = random.random()  # as if the box itself were one of several copies of an unknown original
        for _ in range(JITTERED):
            boxes += _jittered(item.box, own, meant.box, scene.side, random)
    return tuple(sorted(boxes, key=lambda _: random.random()))


def _jittered(box: Box, own: float, meant: Box, side: int, random: Random) -> list[Box]:
    """A copy of another size and place inside the picture, that is near the box but neither it nor the one meant."""
    x, y, width, height = box
    draw = random.random
    for _ in range(_TRIES):
        scale = exp(_SCALE * (draw() - own))
        wide, high = min(side, round(width * scale)), min(side, round(height * scale))
        left = round(x + (width - wide) / 2 + width * (2 * draw() - 1))
        top = round(y + (height - high) / 2 + height * (2 * draw() - 1))
        copy = min(max(left, 0), side - wide), min(max(top, 0), side - high), wide, high
        if _LEAST_OVERLAP <= _iou(copy, box) < _MOST_OVERLAP and _iou(copy, meant) < _MOST_OVERLAP:
            return [copy]
    return []


def _iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)
