"""Generates scenes and draws their pictures. A scene is a pure function of (seed, split, index).

A scene consists of sprites of random size and place on a coloured background.

**Splits never share a scene.** A checksum of a scene's content (which things, how many of each, on which background)
decides to which split it may belong: one content in twenty is for validation, one for test, the others are for
training. For an index, contents are drawn until one belongs to its split. So no combination of things and background
that was in the training data occurs in a test, whatever the seeds.

Lengths are in pixels. Boxes are x and y of the top left corner, width and height.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.nouns import MOST_OBJECTS, Noun
from diptych.synthetic.sprites import SpriteSet, sprite_set

SizeWord = Literal["small", "medium", "large"]
Relation = Literal["left", "right", "above", "below"]

Draw = Callable[[], float]
"""Returns a random number, uniform in [0, 1)."""
Box = tuple[int, int, int, int]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SIZES: dict[SizeWord, tuple[float, float]] = {"small": (0.24, 0.28), "medium": (0.33, 0.40), "large": (0.46, 0.54)}
"""The range of a sprite's longer side for each size word, as a share of the picture's side. The gaps between the ranges
make the size words easy to see."""
_SIZE_CHANCES: tuple[tuple[SizeWord, float], ...] = (("small", 0.25), ("medium", 0.7), ("large", 1.0))
"""The cumulative probability of each size word."""
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (178, 178, 182),
    "blue": (150, 195, 250),
    "green": (165, 222, 150),
    "yellow": (252, 236, 140),
    "orange": (252, 196, 130),
    "pink": (252, 186, 210),
    "purple": (202, 172, 242),
}
SHADES = 5
"""Each background fades from top to bottom by one of this many amounts."""
REPEAT = 0.22
"""The probability that a further object is of a kind that the scene already has."""
OVERLAP = 0.15
"""Another box may cover at most this share of an object's box."""
_PLACES = 12
"""The number of places that are tried for an object."""
_CONTENTS = 20_000
"""The number of contents that are drawn for a scene before giving up."""
_CONTENT_CLASSES = 20
_HELD_OUT = {0: "validation", 1: "test"}
"""The split of two of the _CONTENT_CLASSES classes of contents. The others are training data."""


@dataclass(frozen=True)
class SceneObject:
    """Places a sprite in a scene."""

    sprite: int
    """The sprite's index in the sprite set."""
    noun: Noun
    group: str
    x: int
    y: int
    width: int
    height: int
    size: SizeWord

    @property
    def name(self) -> str:
        return self.noun.singular

    @property
    def box(self) -> Box:
        return self.x, self.y, self.width, self.height

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Scene:
    """Holds the content of a picture, from which all texts about it are generated."""

    split: Split
    index: int
    side: int
    """The width and height of the picture."""
    background: str
    shade: int
    objects: tuple[SceneObject, ...]
    """The objects from back to front: a later one covers an earlier one."""

    @cached_property
    def kinds(self) -> dict[str, tuple[SceneObject, ...]]:
        """The objects of each name."""
        names = dict.fromkeys(item.name for item in self.objects)
        return {name: tuple(item for item in self.objects if item.name == name) for name in names}

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(members) for name, members in self.kinds.items()}

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(item.box for item in self.objects)

    def relations(self) -> Iterator[tuple[str, Relation, str]]:
        """Yields every (name, relation, name) that plainly holds between all objects of the two names."""
        for first, subjects in self.kinds.items():
            for second, others in self.kinds.items():
                if first != second and (relation := relation_between(subjects, others)):
                    yield first, relation, second


def relation_between(subjects: tuple[SceneObject, ...], others: tuple[SceneObject, ...]) -> Relation | None:
    """Returns the relation in which all `subjects` plainly stand to all `others`, or None.

    A relation is plain if the objects are well apart on one axis, and less so on the other.
    """
    common: Relation | None = None
    for a in subjects:
        for b in others:
            dx, dy = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
            if abs(dx) >= 1.3 * abs(dy) and abs(dx) >= 0.4 * (a.width + b.width):
                relation: Relation = "left" if dx > 0 else "right"
            elif abs(dy) >= 1.3 * abs(dx) and abs(dy) >= 0.4 * (a.height + b.height):
                relation = "above" if dy > 0 else "below"
            else:
                return None
            if common not in (None, relation):
                return None
            common = relation
    return common


def is_beside(subject: SceneObject, relation: Relation, other: SceneObject) -> bool:
    """Returns whether the centre of `subject` is on that side of the centre of `other`, however slightly."""
    axis = 0 if relation in ("left", "right") else 1
    sign = 1 if relation in ("left", "above") else -1
    return sign * (other.centre[axis] - subject.centre[axis]) > 0


def shared_area(first: Box, second: Box) -> int:
    """Returns the number of pixels that two boxes share."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


# --------------------------------------------------------------------------- generating scenes


def stream(seed: int, split: Split, index: int, purpose: int) -> Random:
    """Returns random numbers for one purpose of an index. Only `random()` may be drawn, because Python guarantees to
    keep that method's numbers alone."""
    number = ((seed % 2**64) << 72) | (index << 8) | (purpose << 2) | SPLITS.index(split)
    return Random(number)


def check(config: ScenesConfig) -> None:
    """Raises ValueError if the configuration allows no scene."""
    least, most = config.objects
    if not 1 <= least <= most <= MOST_OBJECTS:
        raise ValueError(f"scenes.objects={config.objects}: needs 1 <= least <= most <= {MOST_OBJECTS}")
    if config.size < 32:
        raise ValueError(f"scenes.size={config.size}: sprites are not told apart below 32 pixels")
    for name in ("complete", "size_said", "background_said", "relation_said", "noise", "mismatch"):
        share = getattr(config, name)
        if not 0 <= share <= 1:
            raise ValueError(f"scenes.{name}={share}: a share lies between 0 and 1")
    if min(config.count, config.evaluation_count) < 1:
        raise ValueError("scenes.count and scenes.evaluation_count must be at least 1")


def make_scene(config: ScenesConfig, split: Split, index: int) -> Scene:
    """Generates the scene of an index, a pure function of (seed, split, index) and of the configured kind of pictures.

    Raises ValueError if the configuration allows so few different scenes that the split has none.
    """
    return draw_scene(config, split, index, stream(config.seed, split, index, purpose=0).random)


@dataclass(frozen=True)
class SceneConstraints:
    """Restricts the content of a scene."""

    required: tuple[int, ...] = ()
    """Sprites that the scene must have. Each occurs exactly as often as it is listed here."""
    excluded: tuple[int, ...] = ()
    """Sprites that the scene must not have otherwise."""
    background: str | None = None
    """The colour of the background. None leaves it to chance."""


UNCONSTRAINED = SceneConstraints()


def draw_scene(
    config: ScenesConfig, split: Split, index: int, draw: Draw, constraints: SceneConstraints = UNCONSTRAINED
) -> Scene:
    """Draws a scene that belongs to the split and meets the constraints, which must leave room for other things.

    Raises ValueError if the configuration allows so few different scenes that the split has none.
    """
    sprites = sprite_set(config)
    kinds, background = _content(config, split, sprites, draw, constraints)
    objects = _place(config.size, kinds, sprites, draw)
    return Scene(split, index, config.size, background, int(draw() * SHADES), objects)


def split_of(kinds: list[str], background: str) -> Split:
    """Returns the only split in which these objects, given by their sprites' keys, may occur on this background."""
    content = "|".join([background, *sorted(kinds)])
    return _HELD_OUT.get(zlib.crc32(content.encode()) % _CONTENT_CLASSES, "train")  # type: ignore[return-value]


def _content(
    config: ScenesConfig, split: Split, sprites: SpriteSet, draw: Draw, constraints: SceneConstraints
) -> tuple[list[int], str]:
    """Draws sprites and a background whose content belongs to the split. Raises ValueError."""
    colours = list(BACKGROUNDS)
    least, most = config.objects
    settled = {*constraints.required, *constraints.excluded}
    for _ in range(_CONTENTS):
        kinds = list(constraints.required)
        count = least + int(draw() * (most - least + 1))
        while len(kinds) < count:
            repeated = bool(kinds) and draw() < REPEAT
            kind = kinds[int(draw() * len(kinds))] if repeated else int(draw() * len(sprites))
            if kind not in settled:
                kinds.append(kind)
        if constraints.required:  # otherwise the required objects would be behind all others
            kinds.sort(key=lambda _: draw())
        background = constraints.background or colours[int(draw() * len(colours))]
        if split_of([sprites.sprites[kind].key for kind in kinds], background) == split:
            return kinds, background
    raise ValueError(
        f"no scene of the {split} split in {_CONTENTS} draws: allow more objects (scenes.objects) or names"
    )


def _place(side: int, kinds: list[int], sprites: SpriteSet, draw: Draw) -> tuple[SceneObject, ...]:
    """Draws sizes and places with bounded overlap. If there is no room, the largest object becomes one size smaller."""
    words = [next(word for word, chance in _SIZE_CHANCES if draw() < chance or chance == 1.0) for _ in kinds]
    while True:
        boxes = _boxes(side, kinds, words, sprites, draw)
        if boxes:
            break
        shrink = max(range(len(words)), key=lambda i: SIZES[words[i]])
        words[shrink] = "medium" if words[shrink] == "large" else "small"
    looks = [sprites.sprites[kind] for kind in kinds]
    return tuple(
        SceneObject(kind, look.noun, look.group, *box, word)
        for kind, look, box, word in zip(kinds, looks, boxes, words, strict=True)
    )


def _boxes(side: int, kinds: list[int], words: list[SizeWord], sprites: SpriteSet, draw: Draw) -> list[Box]:
    """Draws one box for each object. Returns an empty list if there is no room for one of them."""
    boxes: list[Box] = []
    for kind, word in zip(kinds, words, strict=True):
        low, high = SIZES[word]
        width, height = sprites.box(kind, round(side * (low + (high - low) * draw())))
        for _ in range(_PLACES):
            box = int(draw() * (side - width + 1)), int(draw() * (side - height + 1)), width, height
            if all(_overlap(box, other) <= OVERLAP for other in boxes):
                boxes.append(box)
                break
        else:
            return []
    return boxes


def _overlap(first: Box, second: Box) -> float:
    """Returns the share of the smaller box that lies in the other."""
    return shared_area(first, second) / min(first[2] * first[3], second[2] * second[3])


# --------------------------------------------------------------------------- pictures


def render(scene: Scene, config: ScenesConfig) -> Image.Image:
    """Draws the RGB picture of a scene."""
    sprites = sprite_set(config)
    picture = _background(scene.background, scene.shade, scene.side).copy()
    for item in scene.objects:
        colours, mask = sprites.scaled(item.sprite, (item.width, item.height))
        picture.paste(colours, (item.x, item.y), mask)
    return picture


@lru_cache(maxsize=256)
def _background(name: str, shade: int, side: int) -> Image.Image:
    """Draws a soft colour that becomes slightly lighter or darker from top to bottom."""
    strength = 0.09 * (shade / (SHADES - 1) * 2 - 1)
    fade = 1 + strength * np.linspace(-1, 1, side)[:, None, None]
    rows = np.clip(np.array(BACKGROUNDS[name]) * fade, 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (side, side, 3))))
