"""Scenes: what stands where, as a pure function of (seed, split, index), and their pictures.

**Splits never share a scene.** What a scene shows (which things, how many of each, on which background) decides by its
checksum which split it may stand in: one content of twenty is validation's, one is test's, the others are training's.
An index draws contents until one falls into its split. So no combination of things on a background that was met in
training comes again in a test, whatever the seeds.

Lengths are pixels; boxes are x, y of the top left corner, width, height.
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
"""Uniform in [0, 1)."""
Box = tuple[int, int, int, int]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SIZES: dict[SizeWord, tuple[float, float]] = {"small": (0.24, 0.28), "medium": (0.33, 0.40), "large": (0.46, 0.54)}
"""Longer side as a share of the picture's. The gaps between the ranges keep every size word true at a glance."""
_SIZE_CHANCES: tuple[tuple[SizeWord, float], ...] = (("small", 0.25), ("medium", 0.7), ("large", 1.0))
"""Cumulative."""
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
"""Each background fades from top to bottom by one of so many amounts."""
REPEAT = 0.22
"""Chance that a further object is another of a kind that is there already."""
OVERLAP = 0.15
"""The most of an object's box that another one's box may cover."""
_PLACES = 12
_CONTENTS = 20_000
_HELD_OUT = {0: "validation", 1: "test"}
_CONTENT_CLASSES = 20


@dataclass(frozen=True)
class SceneObject:
    sprite: int
    """Its place in the sprite set."""
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
    """Everything that is true of a picture."""

    split: Split
    index: int
    side: int
    """Width and height of the picture."""
    background: str
    shade: int
    objects: tuple[SceneObject, ...]
    """From the back to the front: a later one covers an earlier one."""

    @cached_property
    def kinds(self) -> dict[str, tuple[SceneObject, ...]]:
        """The objects by name."""
        names = dict.fromkeys(item.name for item in self.objects)
        return {name: tuple(item for item in self.objects if item.name == name) for name in names}

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(members) for name, members in self.kinds.items()}

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(item.box for item in self.objects)

    def relations(self) -> Iterator[tuple[str, Relation, str]]:
        """Every (name, relation, name) that plainly holds between all objects of the two names."""
        for first, ours in self.kinds.items():
            for second, theirs in self.kinds.items():
                if first != second and (found := relation_between(ours, theirs)):
                    yield first, found, second


def relation_between(ours: tuple[SceneObject, ...], theirs: tuple[SceneObject, ...]) -> Relation | None:
    """How all of ours stand to all of theirs, when anybody would say so: well apart on one axis, less on the other."""
    found: Relation | None = None
    for a in ours:
        for b in theirs:
            dx, dy = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
            if abs(dx) >= 1.3 * abs(dy) and abs(dx) >= 0.4 * (a.width + b.width):
                relation: Relation = "left" if dx > 0 else "right"
            elif abs(dy) >= 1.3 * abs(dx) and abs(dy) >= 0.4 * (a.height + b.height):
                relation = "above" if dy > 0 else "below"
            else:
                return None
            if found not in (None, relation):
                return None
            found = relation
    return found


# --------------------------------------------------------------------------- drawing scenes by number


def stream(seed: int, split: Split, index: int, purpose: int) -> Random:
    """Random numbers for one purpose of one index. Draw only `random()` from it: that alone Python promises to keep."""
    number = ((seed % 2**64) << 72) | (index << 8) | (purpose << 2) | SPLITS.index(split)
    return Random(number)


def check(config: ScenesConfig) -> None:
    """Raises ValueError where no scene can be made so."""
    least, most = config.objects
    if not 1 <= least <= most <= MOST_OBJECTS:
        raise ValueError(f"scenes.objects={config.objects}: needs 1 <= least <= most <= {MOST_OBJECTS}")
    if config.size < 32:
        raise ValueError(f"scenes.size={config.size}: sprites are not told apart below 32 pixels")
    for name in ("complete", "size_said", "background_said", "relation_said", "noise"):
        share = getattr(config, name)
        if not 0 <= share <= 1:
            raise ValueError(f"scenes.{name}={share}: a share lies between 0 and 1")
    if min(config.count, config.evaluation_count) < 1:
        raise ValueError("scenes.count and scenes.evaluation_count must be at least 1")


def make_scene(config: ScenesConfig, split: Split, index: int) -> Scene:
    """The scene of an index: a pure function of (seed, split, index) and of what the configuration says of pictures.

    Raises ValueError when the configuration allows too few different scenes for the split to have any.
    """
    return draw_scene(config, split, index, stream(config.seed, split, index, purpose=0).random)


@dataclass(frozen=True)
class Wish:
    """What a scene is to hold."""

    having: tuple[int, ...] = ()
    """Sprites that are there, each so many times as it stands here and no more often."""
    lacking: tuple[int, ...] = ()
    """Sprites that are not there."""
    background: str | None = None
    """Its colour; None leaves it to chance."""


ANYTHING = Wish()


def draw_scene(config: ScenesConfig, split: Split, index: int, draw: Draw, wish: Wish = ANYTHING) -> Scene:
    """A scene that falls into the split and grants the wish, which leaves room for other things.

    Raises ValueError when the configuration allows too few different scenes for the split to have any.
    """
    sprites = sprite_set(config)
    kinds, background = _content(config, split, sprites, draw, wish)
    objects = _place(config.size, kinds, sprites, draw)
    return Scene(split, index, config.size, background, int(draw() * SHADES), objects)


def split_of(kinds: list[str], background: str) -> Split:
    """The only split in which these things (sprite keys, one for each object) may stand on this background."""
    content = "|".join([background, *sorted(kinds)])
    return _HELD_OUT.get(zlib.crc32(content.encode()) % _CONTENT_CLASSES, "train")  # type: ignore[return-value]


def _content(config: ScenesConfig, split: Split, sprites: SpriteSet, draw: Draw, wish: Wish) -> tuple[list[int], str]:
    colours = list(BACKGROUNDS)
    least, most = config.objects
    settled = {*wish.having, *wish.lacking}
    for _ in range(_CONTENTS):
        kinds = list(wish.having)
        count = least + int(draw() * (most - least + 1))
        while len(kinds) < count:
            kind = _next_kind(kinds, len(sprites), draw)
            if kind not in settled:
                kinds.append(kind)
        if wish.having:  # which would else stand behind all the others
            kinds.sort(key=lambda _: draw())
        background = wish.background or colours[int(draw() * len(colours))]
        if split_of([sprites.sprites[kind].key for kind in kinds], background) == split:
            return kinds, background
    raise ValueError(
        f"no scene of the {split} split in {_CONTENTS} draws: allow more objects (scenes.objects) or names"
    )


def _next_kind(kinds: list[int], count: int, draw: Draw) -> int:
    if kinds and draw() < REPEAT:
        return kinds[int(draw() * len(kinds))]
    return int(draw() * count)


def _place(side: int, kinds: list[int], sprites: SpriteSet, draw: Draw) -> tuple[SceneObject, ...]:
    """Sizes and places with bounded overlap. Where a picture is too full, sizes go down a step until there is room."""
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
    """One box an object, or nothing when one found no room."""
    boxes: list[Box] = []
    for kind, word in zip(kinds, words, strict=True):
        low, high = SIZES[word]
        width, height = sprites.box(kind, round(side * (low + (high - low) * draw())))
        for _ in range(_PLACES):
            box = int(draw() * (side - width + 1)), int(draw() * (side - height + 1)), width, height
            if all(_covered(box, other) <= OVERLAP for other in boxes):
                boxes.append(box)
                break
        else:
            return []
    return boxes


def _covered(a: Box, b: Box) -> float:
    """The share of the smaller box that lies in the other."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


# --------------------------------------------------------------------------- pictures


def render(scene: Scene, config: ScenesConfig) -> Image.Image:
    """The scene's picture, RGB."""
    sprites = sprite_set(config)
    picture = _background(scene.background, scene.shade, scene.side).copy()
    for item in scene.objects:
        colours, mask = sprites.scaled(item.sprite, (item.width, item.height))
        picture.paste(colours, (item.x, item.y), mask)
    return picture


@lru_cache(maxsize=256)
def _background(name: str, shade: int, side: int) -> Image.Image:
    """A soft colour that fades a little from top to bottom or back."""
    strength = 0.09 * (shade / (SHADES - 1) * 2 - 1)
    fade = 1 + strength * np.linspace(-1, 1, side)[:, None, None]
    rows = np.clip(np.array(BACKGROUNDS[name]) * fade, 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (side, side, 3))))
