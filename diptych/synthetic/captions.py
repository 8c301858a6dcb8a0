"""Captions made of facts, and the English sentences that say them.

A caption is *said* only where it is plainly true: exact counts, a size that all of a kind share, a relation that holds
clearly between all of two kinds. It *counts as true* of another scene as soon as a generous reader could say so: at
least so many, any member of either kind, however slightly to the left. What is true of one scene alone under the
generous reading is so under any.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from diptych.schema import ScenesConfig
from diptych.synthetic.generator import Relation, Scene, SceneObject, relation_between

PHRASES: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below",),
}
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
_NAME_CLASSES = 10
"""Of so many names, one misses each relation where combinations are held out."""


@dataclass(frozen=True)
class Has:
    """There are at least `count` of a name (of one size)."""

    name: str
    count: int = 1
    size: str | None = None

    def true_of(self, scene: Scene) -> bool:
        members = scene.kinds.get(self.name, ())
        if self.size is not None:
            members = tuple(item for item in members if item.size == self.size)
        return len(members) >= self.count


@dataclass(frozen=True)
class Stands:
    """Some `subject` has its centre on that side of some `other`'s."""

    subject: str
    relation: Relation
    other: str

    def true_of(self, scene: Scene) -> bool:
        axis = 0 if self.relation in ("left", "right") else 1
        sign = 1 if self.relation in ("left", "above") else -1
        ours, theirs = scene.kinds.get(self.subject, ()), scene.kinds.get(self.other, ())
        return any(sign * (b.centre[axis] - a.centre[axis]) > 0 for a in ours for b in theirs)


@dataclass(frozen=True)
class On:
    """The background has that colour."""

    background: str

    def true_of(self, scene: Scene) -> bool:
        return scene.background == self.background


Fact = Has | Stands | On


@dataclass(frozen=True)
class Caption:
    text: str
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(fact.name for fact in self.facts if isinstance(fact, Has))

    def true_of(self, scene: Scene) -> bool:
        return all(fact.true_of(scene) for fact in self.facts)


@dataclass(frozen=True)
class _Mention:
    """One kind of thing as a caption speaks of it."""

    members: tuple[SceneObject, ...]
    size: str | None

    @property
    def fact(self) -> Has:
        return Has(self.members[0].name, len(self.members), self.size)

    @property
    def phrase(self) -> str:
        return self.members[0].noun.phrase(len(self.members), self.size or "")

    @property
    def verb(self) -> str:
        return self.members[0].noun.verb(len(self.members))


def may_say(subject: str, relation: Relation, other: str, config: ScenesConfig) -> bool:
    """Whether `scenes.compositions` lets a text say, or ask about, this relation between two names.

    A checksum holds out one of ten combinations of a name and a relation: nobody ever says, say, that a dog is to the
    left of anything, or, which is the same, that anything is to the right of a dog.
    """
    if config.compositions == "all":
        return True
    held_out = _held_out(subject, relation) or _held_out(other, OPPOSITE[relation])
    return held_out == (config.compositions == "held_out")


def _held_out(name: str, relation: Relation) -> bool:
    """One relation of four names in ten, so that every name is met in three relations at least."""
    number = zlib.crc32(name.encode()) % _NAME_CLASSES
    return number < len(OPPOSITE) and list(OPPOSITE)[number] == relation


def name_list(scene: Scene) -> Caption:
    """The names alone, for languages whose grammar is not ours to bend."""
    return Caption(", ".join(scene.kinds), tuple(Has(name) for name in scene.kinds))


def describe(scene: Scene, random: Random, config: ScenesConfig, complete: bool = False) -> Caption:
    """An English caption, true of the scene. `complete` names everything that is there; details stay up to chance."""
    draw = random.random
    kinds = _shuffled(list(scene.kinds.values()), random)
    mentions = [_mention(members, draw() < config.size_said) for members in kinds]
    if not complete and draw() >= config.complete:
        mentions = mentions[: 1 + int(draw() * len(mentions))]
    background = scene.background if draw() < config.background_said else None
    related = _related(mentions, config) if draw() < config.relation_said else None
    text, facts = _with_relation(*related, random) if related else _listed(mentions, random)
    said = tuple(mention.fact for mention in mentions)
    if background is None:
        return Caption(text, said + facts)
    return Caption(f"{text} on {background_phrase(background)}", (*said, *facts, On(background)))


def fullest(scene: Scene, config: ScenesConfig) -> Caption:
    """Everything that can be said in facts, with a plain text: the last resort where every detail is needed."""
    mentions = [_mention(members, True) for members in scene.kinds.values()]
    related = _related(mentions, config)
    text, facts = _with_relation(*related, Random(0)) if related else _listed(mentions, Random(0))
    said = tuple(mention.fact for mention in mentions)
    return Caption(f"{text} on {background_phrase(scene.background)}", (*said, *facts, On(scene.background)))


def _shuffled(items: list[tuple[SceneObject, ...]], random: Random) -> list[tuple[SceneObject, ...]]:
    return sorted(items, key=lambda _: random.random())


def _mention(members: tuple[SceneObject, ...], with_size: bool) -> _Mention:
    sizes = {item.size for item in members}
    size = sizes.pop() if len(sizes) == 1 else None
    return _Mention(members, size if size != "medium" and with_size else None)


def background_phrase(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def _related(
    mentions: list[_Mention], config: ScenesConfig
) -> tuple[_Mention, list[tuple[Relation, _Mention]], list[_Mention]] | None:
    """A subject, what it stands beside (one or two things, each in another relation), and the rest."""
    for subject in mentions:
        others = [mention for mention in mentions if mention is not subject]
        found = [(relation_between(subject.members, other.members), other) for other in others]
        clear = [
            (relation, other)
            for relation, other in found
            if relation and may_say(subject.fact.name, relation, other.fact.name, config)
        ]
        if clear:
            second = [pair for pair in clear[1:] if pair[0] != clear[0][0]]
            beside = clear[:1] + second[:1]
            return subject, beside, [other for other in others if all(other is not there for _, there in beside)]
    return None


def _with_relation(
    subject: _Mention, beside: list[tuple[Relation, _Mention]], rest: list[_Mention], random: Random
) -> tuple[str, tuple[Fact, ...]]:
    draw = random.random
    facts = tuple(Stands(subject.fact.name, relation, other.fact.name) for relation, other in beside)
    sides = [f"{PHRASES[relation][int(draw() * len(PHRASES[relation]))]} {other.phrase}" for relation, other in beside]
    verb = draw()
    opener, joint = "", ""
    if verb < 0.3:
        joint = f" {subject.verb}"
    elif verb < 0.4:
        opener = f"there {subject.verb} "
    elif verb < 0.5:
        opener = "a picture of "
    text = f"{opener}{subject.phrase}{joint} {' and '.join(sides)}"
    if rest:
        text += f", with {_enumerated(rest)}"
    return text, facts


def _listed(mentions: list[_Mention], random: Random) -> tuple[str, tuple[Fact, ...]]:
    chance = random.random()
    things = _enumerated(mentions)
    if chance < 0.15:
        return f"a picture of {things}", ()
    if chance < 0.3:
        return f"there {mentions[0].verb} {things}", ()
    if chance < 0.45 and len(mentions) > 1:
        return f"{mentions[0].phrase} with {_enumerated(mentions[1:])}", ()
    return things, ()


def _enumerated(mentions: list[_Mention]) -> str:
    phrases = [mention.phrase for mention in mentions]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
