"""Claims about one picture: their words, and whether they are plainly true of a scene, plainly false, or neither.

The texts of all tasks draw their claims in such a way that neither the kind of a claim, nor its wording, nor its nouns
and numbers depend on whether it is true: who does not look at the picture can only guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import ClassVar, Literal, TypeVar

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import OPPOSITE, PHRASES, Stands, background_phrase, may_say
from diptych.synthetic.generator import BACKGROUNDS, Relation, Scene, SceneObject, SizeWord, relation_between
from diptych.synthetic.nouns import NUMBER_WORDS, Noun
from diptych.synthetic.sprites import Sprite, sprite_set

ClaimKind = Literal["existence", "count", "size", "relation", "background"]
T = TypeVar("T")


@dataclass(frozen=True)
class _OfNoun:
    noun: Noun

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return (self.noun,)

    @property
    def verb(self) -> str:
        return self.noun.verb(1)


@dataclass(frozen=True)
class Exists(_OfNoun):
    """There is one at least."""

    kind: ClassVar[ClaimKind] = "existence"

    def phrase(self, random: Random) -> str:
        """What the picture has, if the claim is true."""
        return self.noun.phrase(1)

    def holds(self, scene: Scene) -> bool | None:
        """Whether the claim is plainly true or plainly false of the scene; None if it is neither."""
        return self.noun.singular in scene.kinds


@dataclass(frozen=True)
class Exactly(_OfNoun):
    """There are so many, no more and no less."""

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
class Sized(_OfNoun):
    """There is one at least of that size. The sizes are far enough apart to see it."""

    kind: ClassVar[ClaimKind] = "size"
    size: SizeWord

    def phrase(self, random: Random) -> str:
        return self.noun.phrase(1, self.size)

    def holds(self, scene: Scene) -> bool | None:
        return any(item.size == self.size for item in scene.kinds.get(self.noun.singular, ()))


@dataclass(frozen=True)
class Beside(_OfNoun):
    """A thing stands on that side of another. True if all do so clearly; false if none does so in the least."""

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
        ours, theirs = scene.kinds.get(name, ()), scene.kinds.get(other, ())
        if ours and theirs and relation_between(ours, theirs) == self.relation:
            return True
        return None if Stands(name, self.relation, other).true_of(scene) else False


@dataclass(frozen=True)
class Backed:
    """The background has that colour."""

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


Claim = Exists | Exactly | Sized | Beside | Backed


# --------------------------------------------------------------------------- claims about a given scene


def claim_kinds(scene: Scene, config: ScenesConfig) -> tuple[ClaimKind, ...]:
    """The kinds of which both true and false claims about the scene can be drawn, alike in words and numbers."""
    if not distinct(scene, config):
        return ()
    if config.compositions == "held_out":
        return ("relation",) if any(scene.relations()) else ()
    possible: dict[ClaimKind, bool] = {
        "existence": True,
        "background": True,
        "count": bool(_once_and_more(scene)),
        "size": bool(_sized_unlike(scene)),
        "relation": any(scene.relations()),
    }
    return tuple(kind for kind, possible_here in possible.items() if possible_here)


def draw_claim(scene: Scene, kind: ClaimKind, truth: bool, random: Random, config: ScenesConfig) -> Claim | None:
    """A claim of a kind among `claim_kinds`, plainly true or plainly false, with false ones near the truth.

    None where `scenes.compositions` forbids every relation that could be said.
    """
    if kind == "existence":
        return Exists(
            choose(list(scene.kinds.values()), random)[0].noun if truth else absent(scene, random, config).noun
        )
    if kind == "background":
        others = [colour for colour in BACKGROUNDS if colour != scene.background]
        return Backed(scene.background if truth else choose(others, random))
    if kind == "count":
        once, more = choose(_once_and_more(scene), random)
        right, wrong = (once, more) if random.random() < 0.5 else (more, once)
        return Exactly((right if truth else wrong)[0].noun, len(right))
    if kind == "size":
        size, right_one, wrong_one = choose(_sized_unlike(scene), random)
        return Sized((right_one if truth else wrong_one).noun, size)
    nouns = {name: members[0].noun for name, members in scene.kinds.items()}
    said = [(a, relation if truth else OPPOSITE[relation], b) for a, relation, b in scene.relations()]
    allowed = [(a, relation, b) for a, relation, b in said if may_say(a, relation, b, config)]
    if not allowed:
        return None
    name, relation, other = choose(allowed, random)
    return Beside(nouns[name], relation, nouns[other])


def _once_and_more(scene: Scene) -> list[tuple[tuple[SceneObject, ...], tuple[SceneObject, ...]]]:
    """Pairs of a kind of which there is one and a kind of which there are more."""
    kinds = [members for members in scene.kinds.values() if not members[0].noun.plural_only]
    return [(once, more) for once in kinds for more in kinds if len(once) == 1 < len(more)]


def _sized_unlike(scene: Scene) -> list[tuple[SizeWord, SceneObject, SceneObject]]:
    """A size, something of that size, and something of a kind of which nothing has it."""
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
    """One of the items, each with the same chance."""
    return items[int(random.random() * len(items))]


def by_weight(weights: Mapping[T, float], random: Random) -> list[T]:
    """All keys in the order in which they are drawn without putting back, each with a chance as its weight."""
    lots = {key: random.random() ** (1 / weight) for key, weight in weights.items()}
    return sorted(lots, key=lots.__getitem__, reverse=True)


def side(relation: Relation, random: Random) -> str:
    return choose(PHRASES[relation], random)


def absent(scene: Scene, random: Random, config: ScenesConfig, besides: Sequence[Noun] = ()) -> Sprite:
    """A sprite whose name is that of nothing in the scene, and none of `besides`."""
    sprites = sprite_set(config).sprites
    unwanted = {*scene.kinds, *(noun.singular for noun in besides)}
    while True:
        found = choose(sprites, random)
        name = found.noun.singular
        if name not in unwanted and not any(alike(name, seen, config) for seen in scene.kinds):
            return found


def distinct(scene: Scene, config: ScenesConfig, nouns: Sequence[Noun] = ()) -> bool:
    """Whether no two of the scene's names and these nouns may mean the same."""
    names = {*scene.kinds, *(noun.singular for noun in nouns)}
    return not any(alike(a, b, config) for a, b in combinations(names, 2))


def alike(name: str, other: str, config: ScenesConfig) -> bool:
    """Whether two names may mean the same. Among all OpenMoji names many do (dog, dog face): if they share a word."""
    crowded = config.sprites == "openmoji" and config.names == "full"
    return crowded and not set(name.split(" ")).isdisjoint(other.split(" "))
