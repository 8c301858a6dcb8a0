"""Generates statements about two scenes, as in NLVR2, and pairs of scenes of which they are true or false.

A statement is drawn first, without any picture. Then pairs of scenes are drawn for it, equally many of which it is true
and of which it is false, so the text alone says nothing about its truth. Both are pure functions of random numbers that
depend only on (seed, split, index). There are near misses in all pairs: the dog is in one picture only, there is one
car too many, or the dog is on the other side of the cup.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import OPPOSITE, is_allowed
from diptych.synthetic.claims import (
    BackgroundClaim,
    Claim,
    ClaimKind,
    CountClaim,
    ExistenceClaim,
    RelationClaim,
    SizeClaim,
    alike,
    by_weight,
    choose,
    distinct,
)
from diptych.synthetic.generator import BACKGROUNDS, Relation, Scene, SceneConstraints, SizeWord, draw_scene
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
"""The least number of objects that a statement fixes in a picture. There must be room for one more, so that scenes
differ."""
_MOST_COUNTED = 2
_MOST_SIZED = 6
"""If scenes always have more objects than this, hardly any are large, and statements about sizes are left out."""
_SCENES = 2_000
"""The number of scenes that are drawn for a claim before giving up. The rarest claims, of sizes, take about ten."""


@dataclass(frozen=True)
class PairClaim:
    """Applies a claim to one or both pictures of a pair."""

    which: Which
    claim: Claim

    def holds(self, left: Scene, right: Scene) -> bool | None:
        """Returns whether it is plainly true or plainly false of the two scenes, or None if it is neither."""
        first, second = self.claim.holds(left), self.claim.holds(right)
        if first is None or second is None:
            return None
        return _is_true(self.which, first, second)


@dataclass(frozen=True)
class ComparisonClaim:
    """Claims that one picture has more objects of a noun than the other."""

    noun: Noun
    where: Literal["left", "right"]

    def holds(self, left: Scene, right: Scene) -> bool | None:
        difference = left.counts.get(self.noun.singular, 0) - right.counts.get(self.noun.singular, 0)
        return difference > 0 if self.where == "left" else difference < 0


@dataclass(frozen=True)
class Statement:
    """Holds a statement about two pictures, and its meaning."""

    text: str
    kind: StatementKind
    meaning: PairClaim | ComparisonClaim
    sprites: tuple[int, ...]
    """The indices in the sprite set of the things that it names, in order."""


def _is_true(which: Which, left: bool, right: bool) -> bool:
    """Returns whether a claim applies to the pictures as `which` says, given its truth of each picture."""
    truths = {
        "left": left,
        "right": right,
        "both": left and right,
        "one": left != right,
        "neither": not (left or right),
    }
    return truths[which]


# --------------------------------------------------------------------------- statements


def draw_statement(random: Random, config: ScenesConfig) -> Statement:
    """Draws a statement without any picture. Raises ValueError if the configuration allows none."""
    weights = {kind: weight for kind, weight in _WEIGHTS.items() if _ROOM[kind] < config.objects[1]}
    if config.objects[0] > _MOST_SIZED:
        weights.pop("size")
    if config.compositions == "held_out":
        weights = {kind: weight for kind, weight in weights.items() if kind == "relation"}
    if not weights:
        raise ValueError(f"scenes.objects={config.objects}: statements about relations need room for three objects")
    kind = by_weight(weights, random)[0]
    if kind == "more":
        sprite = _countable_sprite(random, config)
        comparison = ComparisonClaim(
            sprite_set(config).sprites[sprite].noun, "left" if random.random() < 0.5 else "right"
        )
        return Statement(_comparison_text(comparison, random), kind, comparison, (sprite,))
    claim, sprites = _claim(kind, random, config)
    pair_claim = PairClaim(by_weight(_WHICH, random)[0], claim)
    return Statement(_pair_text(pair_claim, random), kind, pair_claim, sprites)


def _claim(kind: ClaimKind, random: Random, config: ScenesConfig) -> tuple[Claim, tuple[int, ...]]:
    """Draws a claim of a kind. Returns it with the sprites that it names."""
    if kind == "background":
        return BackgroundClaim(choose(list(BACKGROUNDS), random)), ()
    sprite = _countable_sprite(random, config)
    noun = sprite_set(config).sprites[sprite].noun
    if kind == "existence":
        return ExistenceClaim(noun), (sprite,)
    if kind == "count":
        return CountClaim(noun, 1 + int(random.random() * _most_counted(config))), (sprite,)
    if kind == "size":
        sizes: tuple[SizeWord, ...] = ("small", "large")
        return SizeClaim(noun, choose(sizes, random)), (sprite,)
    while True:
        relation: Relation = choose(list(OPPOSITE), random)
        second = _countable_sprite(random, config)
        other = sprite_set(config).sprites[second].noun
        names = noun.singular, other.singular
        if second != sprite and not alike(*names, config) and is_allowed(names[0], relation, names[1], config):
            return RelationClaim(noun, relation, other), (sprite, second)


def _countable_sprite(random: Random, config: ScenesConfig) -> int:
    """Draws a sprite whose noun has a singular."""
    sprites = sprite_set(config).sprites
    while True:
        index = int(random.random() * len(sprites))
        if not sprites[index].noun.plural_only:
            return index


def _pair_text(meaning: PairClaim, random: Random) -> str:
    claim, which = meaning.claim, meaning.which
    thing = claim.phrase(random)
    with_there = claim.kind != "background" and random.random() < 0.5
    if which == "both":
        return f"there {claim.verb} {thing} in both pictures" if with_there else f"both pictures have {thing}"
    if which == "one":
        return f"there {claim.verb} {thing} in only one picture" if with_there else f"only one picture has {thing}"
    if which == "neither":
        return f"{'neither of the pictures' if with_there else 'neither picture'} has {thing}"
    return f"there {claim.verb} {thing} in the {which} picture" if with_there else f"the {which} picture has {thing}"


def _comparison_text(meaning: ComparisonClaim, random: Random) -> str:
    more, fewer = (meaning.where, "right" if meaning.where == "left" else "left")
    if random.random() < 0.5:
        return f"there are more {meaning.noun.plural} in the {more} picture than in the {fewer} one"
    return f"the {more} picture has more {meaning.noun.plural} than the {fewer} one"


# --------------------------------------------------------------------------- pairs of scenes


def draw_pair(
    statement: Statement, truth: bool, random: Random, config: ScenesConfig, split: Split, index: int
) -> tuple[Scene, Scene]:
    """Draws a left and a right scene of the split of which the statement is plainly true, or plainly false.

    Raises ValueError if the configuration allows so few different scenes that the split has none.
    """
    meaning = statement.meaning
    if isinstance(meaning, ComparisonClaim):
        left, right = choose(_possible_counts(meaning, truth, config), random)
        claims: list[tuple[Claim, bool]] = [(CountClaim(meaning.noun, count), True) for count in (left, right)]
    else:
        both = (True, False)
        truths = [(a, b) for a in both for b in both if _is_true(meaning.which, a, b) == truth]
        claims = [(meaning.claim, holds) for holds in choose(truths, random)]
    first, second = (_scene(claim, statement.sprites, holds, random, config, split, index) for claim, holds in claims)
    return first, second


def _most_counted(config: ScenesConfig) -> int:
    return min(_MOST_COUNTED, config.objects[1] - 1)


def _possible_counts(meaning: ComparisonClaim, truth: bool, config: ScenesConfig) -> list[tuple[int, int]]:
    """Returns all pairs of counts, left and right, of which the comparison is true, or false."""
    span = range(_most_counted(config) + 1)
    true = [(a, b) if meaning.where == "left" else (b, a) for a in span for b in span if a > b]
    return true if truth else [(a, b) for a in span for b in span if (a, b) not in true]


def _scene(
    claim: Claim, sprites: tuple[int, ...], truth: bool, random: Random, config: ScenesConfig, split: Split, index: int
) -> Scene:
    """Draws a scene of which a claim is plainly true, or plainly false. Raises ValueError."""
    for _ in range(_SCENES):
        constraints = _constraints(claim, sprites, truth, random, config)
        scene = draw_scene(config, split, index, random.random, constraints)
        if claim.holds(scene) is truth and distinct(scene, config, claim.nouns):
            return scene
    raise ValueError(f"no {split} scene in {_SCENES} draws for a statement: allow more objects (scenes.objects)")


def _constraints(
    claim: Claim, sprites: tuple[int, ...], truth: bool, random: Random, config: ScenesConfig
) -> SceneConstraints:
    """Draws constraints that make the claim true or false, or give it a fair chance to be so."""
    if isinstance(claim, BackgroundClaim):
        others = [colour for colour in BACKGROUNDS if colour != claim.background]
        return SceneConstraints(background=claim.background if truth else choose(others, random))
    if isinstance(claim, ExistenceClaim):
        return SceneConstraints(required=sprites) if truth else SceneConstraints(excluded=sprites)
    if isinstance(claim, CountClaim):
        wrong = [count for count in range(_most_counted(config) + 1) if count != claim.count]
        count = claim.count if truth else choose(wrong, random)
        return SceneConstraints(required=sprites * count, excluded=sprites)
    return SceneConstraints(required=sprites)
