"""Generates claims about one scene: their words, and whether they are plainly true of a scene, plainly false, or
neither.

A claim is drawn from a scene, as a pure function of the scene and of random numbers that depend only on (seed, split,
index). The texts of all tasks draw their claims so that neither the kind of a claim, nor its wording, nor its nouns and
numbers depend on whether it is true. A model that does not look at the picture can only guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import ClassVar, Literal, TypeVar

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import OPPOSITE, PHRASES, RelationFact, background_phrase, is_allowed
from diptych.synthetic.generator import BACKGROUNDS, Relation, Scene, SceneObject, SizeWord, relation_between
from diptych.synthetic.nouns import NUMBER_WORDS, Noun
from diptych.synthetic.sprites import Sprite, sprite_set

ClaimKind = Literal["existence", "count", "size", "relation", "background"]
T = TypeVar("T")


@dataclass(frozen=True)
class _NounClaim:
    """Gives claims about one noun their common properties."""

    noun: Noun

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return (self.noun,)

    @property
    def verb(self) -> str:
        return self.noun.verb(1)


@dataclass(frozen=True)
class ExistenceClaim(_NounClaim):
    """Claims that there is at least one object of a noun."""

    kind: ClassVar[ClaimKind] = "existence"

    def phrase(self, random: Random) -> str:
        """Returns the words for what the picture shows if the claim is true."""
        return self.noun.phrase(1)

    def holds(self, scene: Scene) -> bool | None:
        """Returns whether the claim is plainly true or plainly false of the scene, or None if it is neither."""
        return self.noun.singular in scene.kinds


@dataclass(frozen=True)
class CountClaim(_NounClaim):
    """Claims that there are exactly `count` objects of a noun."""

    kind: ClassVar[ClaimKind] = "count"
    count: int

    @property
    def verb(self) -> str:
        return self.noun.verb(self.count)

    def phrase(self, random: Random) -> str:
        form = self.noun.singular if self.count == 1 else self.noun.plural
        return f"exactly {NUMBER_WORDS[self.count]} {form}"

    def holds(self, scene: Scene) -> bool | None:
        return scene.counts.get(self.noun.singular, 0) == self.count


@dataclass(frozen=True)
class SizeClaim(_NounClaim):
    """Claims that there is at least one object of a noun and a size. Sizes differ enough to be told apart."""

    kind: ClassVar[ClaimKind] = "size"
    size: SizeWord

    def phrase(self, random: Random) -> str:
        return self.noun.phrase(1, self.size)

    def holds(self, scene: Scene) -> bool | None:
        return any(item.size == self.size for item in scene.kinds.get(self.noun.singular, ()))


@dataclass(frozen=True)
class RelationClaim(_NounClaim):
    """Claims that an object is on one side of another.

    It is true if all objects of the two nouns clearly stand so, and false if no two of them do so even slightly.
    """

    kind: ClassVar[ClaimKind] = "relation"
    relation: Relation
    other: Noun

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return self.noun, self.other

    def phrase(self, random: Random) -> str:
        return f"{self.noun.phrase(1)} {side(self.relation, random)} {self.other.phrase(1)}"

    def holds(self, scene: Scene) -> bool | None:
        name, other = self.noun.singular, self.other.singular
        subjects, others = scene.kinds.get(name, ()), scene.kinds.get(other, ())
        if subjects and others and relation_between(subjects, others) == self.relation:
            return True
        return None if RelationFact(name, self.relation, other).true_of(scene) else False


@dataclass(frozen=True)
class BackgroundClaim:
    """Claims that the background has a colour."""

    kind: ClassVar[ClaimKind] = "background"
    background: str

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return ()

    @property
    def verb(self) -> str:
        return "is"

    def phrase(self, random: Random) -> str:
        return background_phrase(self.background)

    def holds(self, scene: Scene) -> bool | None:
        return scene.background == self.background


Claim = ExistenceClaim | CountClaim | SizeClaim | RelationClaim | BackgroundClaim


# --------------------------------------------------------------------------- claims about a scene


def claim_kinds(scene: Scene, config: ScenesConfig) -> tuple[ClaimKind, ...]:
    """Returns the kinds of which both true and false claims about the scene exist, with alike words and numbers."""
    if not distinct(scene, config):
        return ()
    if config.compositions == "held_out":
        return ("relation",) if any(scene.relations()) else ()
    possible: dict[ClaimKind, bool] = {
        "existence": True,
        "background": True,
        "count": bool(once_and_more(scene)),
        "size": bool(_sized_unlike(scene)),
        "relation": any(scene.relations()),
    }
    return tuple(kind for kind, is_possible in possible.items() if is_possible)


def draw_claim(scene: Scene, kind: ClaimKind, truth: bool, random: Random, config: ScenesConfig) -> Claim | None:
    """Draws a plainly true or a plainly false claim of a kind among `claim_kinds`. False claims are near the truth.

    Returns None if `scenes.compositions` forbids every relation that could be stated.
    """
    if kind == "existence":
        if truth:
            return ExistenceClaim(choose(list(scene.kinds.values()), random)[0].noun)
        return ExistenceClaim(absent(scene, random, config).noun)
    if kind == "background":
        others = [colour for colour in BACKGROUNDS if colour != scene.background]
        return BackgroundClaim(scene.background if truth else choose(others, random))
    if kind == "count":
        once, more = choose(once_and_more(scene), random)
        right, wrong = (once, more) if random.random() < 0.5 else (more, once)
        return CountClaim((right if truth else wrong)[0].noun, len(right))
    if kind == "size":
        size, right_object, wrong_object = choose(_sized_unlike(scene), random)
        return SizeClaim((right_object if truth else wrong_object).noun, size)
    relations = allowed_relations(scene, truth, config)
    if not relations:
        return None
    name, relation, other = choose(relations, random)
    return RelationClaim(scene.kinds[name][0].noun, relation, scene.kinds[other][0].noun)


def allowed_relations(scene: Scene, truth: bool, config: ScenesConfig) -> list[tuple[str, Relation, str]]:
    """Returns the plain relations of a scene, or else their opposites, that `scenes.compositions` allows in a text."""
    stated = [
        (first, relation if truth else OPPOSITE[relation], second) for first, relation, second in scene.relations()
    ]
    return [
        (first, relation, second) for first, relation, second in stated if is_allowed(first, relation, second, config)
    ]


def once_and_more(scene: Scene) -> list[tuple[tuple[SceneObject, ...], tuple[SceneObject, ...]]]:
    """Returns pairs of a kind with one object and a kind with several."""
    kinds = [members for members in scene.kinds.values() if not members[0].noun.plural_only]
    return [(once, more) for once in kinds for more in kinds if len(once) == 1 < len(more)]


def _sized_unlike(scene: Scene) -> list[tuple[SizeWord, SceneObject, SceneObject]]:
    """Returns triples of a size, an object whose kind has only that size, and one whose kind does not have it."""
    kinds = [(members[0], {item.size for item in members}) for members in scene.kinds.values()]
    words: tuple[SizeWord, ...] = ("small", "large")
    return [
        (word, right, wrong)
        for word in words
        for right, sizes in kinds
        for wrong, others in kinds
        if sizes == {word} and word not in others
    ]


# --------------------------------------------------------------------------- drawing


def choose(items: Sequence[T], random: Random) -> T:
    """Draws one of the items, each with the same probability."""
    return items[int(random.random() * len(items))]


def by_weight(weights: Mapping[T, float], random: Random) -> list[T]:
    """Draws all keys without replacement, with probabilities in proportion to their weights. Returns them in order."""
    lots = {key: random.random() ** (1 / weight) for key, weight in weights.items()}
    return sorted(lots, key=lots.__getitem__, reverse=True)


def side(relation: Relation, random: Random) -> str:
    """Draws the words for a relation."""
    return choose(PHRASES[relation], random)


def absent(scene: Scene, random: Random, config: ScenesConfig, besides: Sequence[Noun] = ()) -> Sprite:
    """Draws a sprite whose name differs from all names in the scene and from those of `besides`."""
    sprites = sprite_set(config).sprites
    unwanted = {*scene.kinds, *(noun.singular for noun in besides)}
    while True:
        sprite = choose(sprites, random)
        name = sprite.noun.singular
        if name not in unwanted and not any(alike(name, present, config) for present in scene.kinds):
            return sprite


def distinct(scene: Scene, config: ScenesConfig, nouns: Sequence[Noun] = ()) -> bool:
    """Returns whether no two of the scene's names and of `nouns` can mean the same."""
    names = {*scene.kinds, *(noun.singular for noun in nouns)}
    return not any(alike(first, second, config) for first, second in combinations(names, 2))


def alike(name: str, other: str, config: ScenesConfig) -> bool:
    """Returns whether two names can mean the same. In the full OpenMoji set, that is if they share a word, as `dog` and
    `dog face` do."""
    crowded = config.sprites == "openmoji" and config.names == "full"
    return crowded and not set(name.split(" ")).isdisjoint(other.split(" "))
