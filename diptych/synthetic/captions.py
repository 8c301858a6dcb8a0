"""Generates captions of scenes: the facts that a caption states, and English sentences for them.

A caption is drawn from the objects of a scene. It is a pure function of the scene and of random numbers that depend
only on (seed, split, index). A caption *states* a fact only where it is plainly true: exact counts, a size that all
objects of a name share, a relation that clearly holds between all objects of two names. A fact *counts as true* of
another scene as soon as a generous reader could say so: at least as many objects, any object of either name, however
slightly to the left. A caption that is true of one scene alone in this generous reading is so in any other reading.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import combinations
from random import Random

from diptych.schema import ScenesConfig
from diptych.synthetic.generator import Relation, Scene, SceneObject, is_beside, relation_between

PHRASES: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below",),
}
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
_NAME_CLASSES = 10
"""Where combinations are held out, one name in this many lacks each relation."""


@dataclass(frozen=True)
class PresenceFact:
    """States that there are at least `count` objects of a name, all of them of one size if `size` is set."""

    name: str
    count: int = 1
    size: str | None = None

    def true_of(self, scene: Scene) -> bool:
        members = scene.kinds.get(self.name, ())
        if self.size is not None:
            members = tuple(item for item in members if item.size == self.size)
        return len(members) >= self.count


@dataclass(frozen=True)
class RelationFact:
    """States that the centre of some `subject` is on one side of the centre of some `other`."""

    subject: str
    relation: Relation
    other: str

    def true_of(self, scene: Scene) -> bool:
        subjects, others = scene.kinds.get(self.subject, ()), scene.kinds.get(self.other, ())
        return any(is_beside(subject, self.relation, other) for subject in subjects for other in others)


@dataclass(frozen=True)
class BackgroundFact:
    """States the colour of the background."""

    background: str

    def true_of(self, scene: Scene) -> bool:
        return scene.background == self.background


Fact = PresenceFact | RelationFact | BackgroundFact


@dataclass(frozen=True)
class Caption:
    """Holds an English caption and the facts that it states."""

    text: str
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(fact.name for fact in self.facts if isinstance(fact, PresenceFact))

    def true_of(self, scene: Scene) -> bool:
        return all(fact.true_of(scene) for fact in self.facts)


@dataclass(frozen=True)
class _Mention:
    """Holds all objects of one name, and the size that the caption gives them, if any."""

    members: tuple[SceneObject, ...]
    size: str | None

    @property
    def fact(self) -> PresenceFact:
        return PresenceFact(self.members[0].name, len(self.members), self.size)

    @property
    def phrase(self) -> str:
        return self.members[0].noun.phrase(len(self.members), self.size or "")

    @property
    def verb(self) -> str:
        return self.members[0].noun.verb(len(self.members))


def is_allowed(subject: str, relation: Relation, other: str, config: ScenesConfig) -> bool:
    """Returns whether `scenes.compositions` lets a text state, or ask about, this relation between two names.

    A checksum holds out a tenth of the combinations of a name and a relation. For example, no text ever says that a dog
    is to the left of anything, or, which is the same, that anything is to the right of a dog.
    """
    if config.compositions == "all":
        return True
    held_out = _is_held_out(subject, relation) or _is_held_out(other, OPPOSITE[relation])
    return held_out == (config.compositions == "held_out")


def _is_held_out(name: str, relation: Relation) -> bool:
    """Returns whether a name lacks a relation. Four names in ten lack one, so every name has at least three."""
    number = zlib.crc32(name.encode()) % _NAME_CLASSES
    return number < len(OPPOSITE) and list(OPPOSITE)[number] == relation


def name_list(scene: Scene) -> Caption:
    """Lists the names of a scene's objects, for languages whose grammar is not implemented."""
    return Caption(", ".join(scene.kinds), tuple(PresenceFact(name) for name in scene.kinds))


def describe(scene: Scene, random: Random, config: ScenesConfig, complete: bool = False) -> Caption:
    """Draws an English caption that is true of the scene. If `complete` is set, it names every object."""
    kinds = sorted(scene.kinds.values(), key=lambda _: random.random())
    mentions = [_mention(members, random.random() < config.size_said) for members in kinds]
    if not complete and random.random() >= config.complete:
        mentions = mentions[: 1 + int(random.random() * len(mentions))]
    with_background = random.random() < config.background_said
    related = _related(mentions, config) if random.random() < config.relation_said else None
    return _caption(mentions, related, scene.background if with_background else None, random)


def fullest(scene: Scene, config: ScenesConfig) -> Caption:
    """Returns a caption with every fact that can be stated, for scenes that only all details tell from others."""
    mentions = [_mention(members, True) for members in scene.kinds.values()]
    return _caption(mentions, _related(mentions, config), scene.background, Random(0))


def _mention(members: tuple[SceneObject, ...], with_size: bool) -> _Mention:
    sizes = {item.size for item in members}
    size = sizes.pop() if len(sizes) == 1 else None
    return _Mention(members, size if size != "medium" and with_size else None)


def caption_parts(caption: Caption, scene: Scene) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns the caption of a scene, and the shorter texts that state some of its facts, each with its phrases.

    The shorter texts are each noun phrase by itself, the lists of consecutive ones, and each relation of two.
    """
    things = [_phrase(fact, scene) for fact in caption.facts if isinstance(fact, PresenceFact)]
    phrase_of = dict(zip(caption.names, things, strict=True))
    relations = [
        (f"{phrase_of[fact.subject]} {PHRASES[fact.relation][0]} {phrase_of[fact.other]}", fact)
        for fact in caption.facts
        if isinstance(fact, RelationFact)
    ]
    colours = [background_phrase(fact.background) for fact in caption.facts if isinstance(fact, BackgroundFact)]
    whole = caption.text, (*things, *(text for text, _ in relations), *colours)
    lists = [things[first:last] for first, last in combinations(range(len(things) + 1), 2)]
    parts = [(_listed(phrases), tuple(phrases)) for phrases in lists]
    parts += [(text, (phrase_of[fact.subject], phrase_of[fact.other], text)) for text, fact in relations]
    return whole, *((text, phrases) for text, phrases in parts if text != caption.text)


def true_phrases(scene: Scene) -> tuple[str, ...]:
    """Returns the noun phrases that are true of a scene (with every count and size), and that of its background.

    A scene with two foxes shows "a fox", too.
    """
    facts: list[PresenceFact] = []
    for name, members in scene.kinds.items():
        sizes = [item.size for item in members if item.size != "medium"]
        facts += [PresenceFact(name, count) for count in range(1, len(members) + 1)]
        facts += [PresenceFact(name, sizes[: place + 1].count(size), size) for place, size in enumerate(sizes)]
    facts.sort(key=lambda fact: fact.size is not None)
    return background_phrase(scene.background), *(_phrase(fact, scene) for fact in facts)


def _phrase(fact: PresenceFact, scene: Scene) -> str:
    return scene.kinds[fact.name][0].noun.phrase(fact.count, fact.size or "")


def background_phrase(colour: str) -> str:
    """Returns `a green background`, for example."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


@dataclass(frozen=True)
class _Relations:
    """Holds a subject, one or two things beside it (each in another relation), and the other mentions."""

    subject: _Mention
    beside: list[tuple[Relation, _Mention]]
    rest: list[_Mention]


def _related(mentions: list[_Mention], config: ScenesConfig) -> _Relations | None:
    """Returns the first mention that has a clear relation to others, with these relations. None if there is none."""
    for subject in mentions:
        others = [mention for mention in mentions if mention is not subject]
        relations = [(relation_between(subject.members, other.members), other) for other in others]
        clear = [
            (relation, other)
            for relation, other in relations
            if relation and is_allowed(subject.fact.name, relation, other.fact.name, config)
        ]
        if clear:
            second = [pair for pair in clear[1:] if pair[0] != clear[0][0]]
            beside = clear[:1] + second[:1]
            rest = [other for other in others if all(other is not mention for _, mention in beside)]
            return _Relations(subject, beside, rest)
    return None


def _caption(mentions: list[_Mention], related: _Relations | None, background: str | None, random: Random) -> Caption:
    """Draws the wording of a caption and lists its facts."""
    text = _relation_text(related, random) if related else _list_text(mentions, random)
    facts: list[Fact] = [mention.fact for mention in mentions]
    if related:
        subject = related.subject.fact.name
        facts += [RelationFact(subject, relation, other.fact.name) for relation, other in related.beside]
    if background is not None:
        text = f"{text} on {background_phrase(background)}"
        facts.append(BackgroundFact(background))
    return Caption(text, tuple(facts))


def _relation_text(related: _Relations, random: Random) -> str:
    subject = related.subject
    sides = [
        f"{PHRASES[relation][int(random.random() * len(PHRASES[relation]))]} {other.phrase}"
        for relation, other in related.beside
    ]
    opener, verb = "", ""
    chance = random.random()
    if chance < 0.3:
        verb = f" {subject.verb}"
    elif chance < 0.4:
        opener = f"there {subject.verb} "
    elif chance < 0.5:
        opener = "a picture of "
    text = f"{opener}{subject.phrase}{verb} {' and '.join(sides)}"
    return f"{text}, with {_enumerated(related.rest)}" if related.rest else text


def _list_text(mentions: list[_Mention], random: Random) -> str:
    things = _enumerated(mentions)
    chance = random.random()
    if chance < 0.15:
        return f"a picture of {things}"
    if chance < 0.3:
        return f"there {mentions[0].verb} {things}"
    if chance < 0.45 and len(mentions) > 1:
        return f"{mentions[0].phrase} with {_enumerated(mentions[1:])}"
    return things


def _enumerated(mentions: list[_Mention]) -> str:
    return _listed([mention.phrase for mention in mentions])


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
