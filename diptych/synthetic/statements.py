"""Statements about two scenes, as in NLVR2, and the pairs of scenes that make them true or false.

A statement is drawn first, without any picture; then pairs are made for it, as many that make it true as that make it
false. So the text alone tells nothing. Both sorts hold near misses: the dog is in one picture only, there is one car
too many, the dog stands on the other side of the cup.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import OPPOSITE, may_say
from diptych.synthetic.claims import (
    Backed,
    Beside,
    Claim,
    ClaimKind,
    Exactly,
    Exists,
    Sized,
    alike,
    by_weight,
    choose,
    distinct,
)
from diptych.synthetic.generator import BACKGROUNDS, Relation, Scene, SizeWord, Wish, draw_scene
from diptych.synthetic.nouns import Noun
from diptych.synthetic.sprites import sprite_set

Which = Literal["left", "right", "both", "one", "neither"]
StatementKind = Literal["existence", "count", "size", "relation", "background", "more"]
_WHICH: dict[Which, float] = {"left": 3.0, "right": 3.0, "both": 2.0, "one": 1.0, "neither": 1.0}
_WEIGHTS: dict[StatementKind, float] = {
    "existence": 6.0,
    "more": 2.0,
    "count": 2.0,
    "background": 2.0,
    "size": 1.0,
    "relation": 1.0,
}
_ROOM: dict[StatementKind, int] = {"existence": 1, "more": 1, "count": 1, "background": 0, "size": 1, "relation": 2}
"""Objects that a statement fixes in a picture, at least. There must be room for one more, to draw scenes from."""
_MOST_COUNTED = 2
_MOST_SIZED = 6
"""Where there are always more objects, next to none are large."""
_SCENES = 2_000
"""Scenes drawn for a claim before giving up. The rarest, one of a size, takes about ten."""


@dataclass(frozen=True)
class OfPictures:
    """A claim, and of which of the two pictures it is said."""

    which: Which
    claim: Claim

    def holds(self, left: Scene, right: Scene) -> bool | None:
        """Whether it is plainly true or plainly false of the two; None if it is neither."""
        first, second = self.claim.holds(left), self.claim.holds(right)
        if first is None or second is None:
            return None
        return _true_of(self.which, first, second)


@dataclass(frozen=True)
class More:
    """One picture has more of a kind than the other."""

    noun: Noun
    where: Literal["left", "right"]

    def holds(self, left: Scene, right: Scene) -> bool | None:
        difference = left.counts.get(self.noun.singular, 0) - right.counts.get(self.noun.singular, 0)
        return difference > 0 if self.where == "left" else difference < 0


@dataclass(frozen=True)
class Statement:
    text: str
    kind: StatementKind
    meaning: OfPictures | More
    sprites: tuple[int, ...]
    """Places in the sprite set of what it speaks of, in its order."""


def _true_of(which: Which, left: bool, right: bool) -> bool:
    truths = {
        "left": left,
        "right": right,
        "both": left and right,
        "one": left != right,
        "neither": not (left or right),
    }
    return truths[which]


# --------------------------------------------------------------------------- what is said


def statement(random: Random, config: ScenesConfig) -> Statement:
    """A statement, drawn without any picture. Raises ValueError where the configuration leaves nothing to say."""
    weights = {kind: weight for kind, weight in _WEIGHTS.items() if _ROOM[kind] < config.objects[1]}
    if config.objects[0] > _MOST_SIZED:
        weights.pop("size")
    if config.compositions == "held_out":
        weights = {kind: weight for kind, weight in weights.items() if kind == "relation"}
    if not weights:
        raise ValueError(f"scenes.objects={config.objects}: statements about relations need room for three objects")
    kind = by_weight(weights, random)[0]
    if kind == "more":
        sprite = _sprite(random, config)
        more = More(sprite_set(config).sprites[sprite].noun, "left" if random.random() < 0.5 else "right")
        return Statement(_compared(more, random), kind, more, (sprite,))
    claim, sprites = _claim(kind, random, config)
    meaning = OfPictures(by_weight(_WHICH, random)[0], claim)
    return Statement(_said(meaning, random), kind, meaning, sprites)


def _claim(kind: ClaimKind, random: Random, config: ScenesConfig) -> tuple[Claim, tuple[int, ...]]:
    if kind == "background":
        return Backed(choose(list(BACKGROUNDS), random)), ()
    sprite = _sprite(random, config)
    noun = sprite_set(config).sprites[sprite].noun
    if kind == "existence":
        return Exists(noun), (sprite,)
    if kind == "count":
        return Exactly(noun, 1 + int(random.random() * _most_counted(config))), (sprite,)
    if kind == "size":
        sizes: tuple[SizeWord, ...] = ("small", "large")
        return Sized(noun, choose(sizes, random)), (sprite,)
    while True:
        relation: Relation = choose(list(OPPOSITE), random)
        second = _sprite(random, config)
        other = sprite_set(config).sprites[second].noun
        names = noun.singular, other.singular
        if second != sprite and not alike(*names, config) and may_say(names[0], relation, names[1], config):
            return Beside(noun, relation, other), (sprite, second)


def _sprite(random: Random, config: ScenesConfig) -> int:
    """Something that can be counted."""
    sprites = sprite_set(config).sprites
    while True:
        place = int(random.random() * len(sprites))
        if not sprites[place].noun.plural_only:
            return place


def _said(meaning: OfPictures, random: Random) -> str:
    claim, which = meaning.claim, meaning.which
    thing = claim.phrase(random)
    there = claim.kind != "background" and random.random() < 0.5
    if which == "both":
        return f"there {claim.verb} {thing} in both pictures" if there else f"both pictures have {thing}"
    if which == "one":
        return f"there {claim.verb} {thing} in only one picture" if there else f"only one picture has {thing}"
    if which == "neither":
        return f"{'neither of the pictures' if there else 'neither picture'} has {thing}"
    return f"there {claim.verb} {thing} in the {which} picture" if there else f"the {which} picture has {thing}"


def _compared(meaning: More, random: Random) -> str:
    here, there = (meaning.where, "right" if meaning.where == "left" else "left")
    if random.random() < 0.5:
        return f"there are more {meaning.noun.plural} in the {here} picture than in the {there} one"
    return f"the {here} picture has more {meaning.noun.plural} than the {there} one"


# --------------------------------------------------------------------------- the pictures


def pictures(
    said: Statement, truth: bool, random: Random, config: ScenesConfig, split: Split, index: int
) -> tuple[Scene, Scene]:
    """A left and a right scene of the split, of which the statement is plainly true or plainly false.

    Raises ValueError when the configuration allows too few different scenes for the split to have any.
    """
    meaning = said.meaning
    if isinstance(meaning, More):
        left, right = choose(_numbers(meaning, truth, config), random)
        claims: list[tuple[Claim, bool]] = [(Exactly(meaning.noun, number), True) for number in (left, right)]
    else:
        both = (True, False)
        truths = [(a, b) for a in both for b in both if _true_of(meaning.which, a, b) == truth]
        claims = [(meaning.claim, holds) for holds in choose(truths, random)]
    first, second = (_scene(claim, said.sprites, holds, random, config, split, index) for claim, holds in claims)
    return first, second


def _most_counted(config: ScenesConfig) -> int:
    return min(_MOST_COUNTED, config.objects[1] - 1)


def _numbers(meaning: More, truth: bool, config: ScenesConfig) -> list[tuple[int, int]]:
    """How many there may be to the left and to the right."""
    span = range(_most_counted(config) + 1)
    more = [(a, b) if meaning.where == "left" else (b, a) for a in span for b in span if a > b]
    return more if truth else [(a, b) for a in span for b in span if (a, b) not in more]


def _scene(
    claim: Claim, sprites: tuple[int, ...], truth: bool, random: Random, config: ScenesConfig, split: Split, index: int
) -> Scene:
    for _ in range(_SCENES):
        scene = draw_scene(config, split, index, random.random, _wish(claim, sprites, truth, random, config))
        if claim.holds(scene) is truth and distinct(scene, config, claim.nouns):
            return scene
    raise ValueError(f"no {split} scene in {_SCENES} draws for a statement: allow more objects (scenes.objects)")


def _wish(claim: Claim, sprites: tuple[int, ...], truth: bool, random: Random, config: ScenesConfig) -> Wish:
    """What makes the claim true or false, or gives it a fair chance to be so."""
    if isinstance(claim, Backed):
        others = [colour for colour in BACKGROUNDS if colour != claim.background]
        return Wish(background=claim.background if truth else choose(others, random))
    if isinstance(claim, Exists):
        return Wish(having=sprites) if truth else Wish(lacking=sprites)
    if isinstance(claim, Exactly):
        wrong = [number for number in range(_most_counted(config) + 1) if number != claim.count]
        number = claim.count if truth else choose(wrong, random)
        return Wish(having=sprites * number, lacking=sprites)
    return Wish(having=sprites)
