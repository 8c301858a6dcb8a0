"""Generates questions about scenes, each with the answers of ten annotators, as in VQA v2.

A question is drawn from a scene, as a pure function of the scene and of random numbers that depend only on (seed,
split, index). At least seven of the ten annotators give the plain answer. The others give one that means the same
(`2`, `two`; `top left`, `upper left`), so no answer is false. Things that a question presupposes (`the cup`, `the
cups`) are in the scene, and in the right number. Within a kind of question, all answers are about equally frequent,
whatever the question names, so a guess without the picture is weak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import RelationFact, is_allowed
from diptych.synthetic.claims import absent, allowed_relations, by_weight, choose, distinct, side
from diptych.synthetic.generator import BACKGROUNDS, Scene, SceneObject, SizeWord, relation_between
from diptych.synthetic.nouns import NUMBER_WORDS, Noun, article

QuestionKind = Literal["existence", "count", "name", "size", "position", "relation", "background"]
ANNOTATORS = 10
_DISSENTERS = 3
"""At most this many of the ten annotators give the answer in other words."""
_MARGIN = 0.06
"""A question asks for the quarter of a thing only if its centre is this far from the middle lines of the picture, as a
share of its side."""
_QUARTERS = ("top left", "top right", "bottom left", "bottom right")
_WEIGHTS: dict[QuestionKind, float] = {
    "existence": 1.0,
    "count": 4.0,
    "name": 2.0,
    "size": 2.0,
    "position": 1.0,
    "relation": 2.0,
    "background": 1.0,
}
"""Kinds that fewer scenes allow have a higher weight."""
_SIZE_WEIGHTS: dict[SizeWord, float] = {"small": 0.7, "medium": 0.65, "large": 1.0}
"""Large things are the rarest in scenes of several things, so they have the highest weight."""
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "0": ("zero", "none"),
    "small": ("little",),
    "medium": ("medium sized", "middle sized"),
    "large": ("big",),
    "top left": ("upper left",),
    "top right": ("upper right",),
    "bottom left": ("lower left",),
    "bottom right": ("lower right",),
    "left": ("to the left", "on the left"),
    "right": ("to the right", "on the right"),
    "above": ("over",),
    "below": ("under",),
    "gray": ("grey", "light gray"),
    **{colour: (f"light {colour}",) for colour in BACKGROUNDS if colour not in ("white", "gray")},
    **{str(number): (word,) for number, word in enumerate(NUMBER_WORDS) if number},
}
"""Other words for plain answers."""


@dataclass(frozen=True)
class Question:
    """Holds a question with its answers."""

    text: str
    kind: QuestionKind
    answer: str
    """The plain answer."""
    answers: tuple[str, ...]
    """One answer per annotator."""
    taken_for_granted: tuple[tuple[str, int], ...]
    """The names that the question presupposes, each with the number of such objects."""


@dataclass(frozen=True)
class _Draft:
    """Holds a question before it gets the answers of annotators."""

    text: str
    answer: str
    presupposed: tuple[tuple[SceneObject, ...], ...] = ()
    """For each name that the question presupposes, all its objects."""
    variants: tuple[str, ...] = ()
    """Other words for the answer, instead of those in `_SYNONYMS`."""


def question(scene: Scene, random: Random, config: ScenesConfig) -> Question | None:
    """Draws a question with its answers. Returns None if `scenes.compositions` leaves nothing to ask."""
    if not distinct(scene, config):
        return None
    weights: dict[QuestionKind, float] = {"relation": 1.0} if config.compositions == "held_out" else _WEIGHTS
    for kind in by_weight(weights, random):
        draft = _DRAW[kind](scene, random, config)
        if draft:
            presupposed = tuple((members[0].name, len(members)) for members in draft.presupposed)
            return Question(draft.text, kind, draft.answer, _annotators(draft, random), presupposed)
    return None


def _annotators(draft: _Draft, random: Random) -> tuple[str, ...]:
    """Draws the answers of ten annotators, in random order."""
    variants = draft.variants or _SYNONYMS.get(draft.answer, ())
    dissenters = int(random.random() * (_DISSENTERS + 1)) if variants else 0
    answers = [draft.answer] * (ANNOTATORS - dissenters) + [choose(variants, random) for _ in range(dissenters)]
    return tuple(sorted(answers, key=lambda _: random.random()))


def _the(members: Sequence[SceneObject]) -> str:
    noun = members[0].noun
    return f"the {noun.singular if len(members) == 1 else noun.plural}"


def _verb(members: Sequence[SceneObject]) -> str:
    return members[0].noun.verb(len(members))


# --------------------------------------------------------------------------- kinds of questions


def _existence(scene: Scene, random: Random, config: ScenesConfig) -> _Draft:
    present = random.random() < 0.5
    noun: Noun = choose(list(scene.kinds.values()), random)[0].noun if present else absent(scene, random, config).noun
    thing = noun.phrase(1)
    wordings = (
        f"{noun.verb(1)} there {thing}?",
        f"{noun.verb(1)} there {thing} in the picture?",
        f"can you see {thing}?",
    )
    return _Draft(choose(wordings, random), "yes" if present else "no")


def _count(scene: Scene, random: Random, config: ScenesConfig) -> _Draft | None:
    """Asks how many, if there are several objects of a name; in other scenes the answer would nearly always be 1."""
    kinds = list(scene.kinds.values())
    numbers = sorted({len(members) for members in kinds})
    if numbers[-1] == 1:
        return None
    number = choose([0, *numbers], random)
    nouns = [members[0].noun for members in kinds if len(members) == number]
    noun = choose(nouns, random) if number else absent(scene, random, config).noun
    if noun.plural_only:
        return None
    wordings = (f"how many {noun.plural} are there?", f"how many {noun.plural} are in the picture?")
    return _Draft(choose(wordings, random), str(number))


def _name(scene: Scene, random: Random, config: ScenesConfig) -> _Draft | None:
    """Asks for the only thing on one side of another, or for the only thing in the picture."""
    if len(scene.objects) == 1:
        return _named("what is in the picture?", scene.objects[0].noun)
    single = [members for members in scene.kinds.values() if len(members) == 1]
    candidates = []
    for anchor in single:
        for target in single:
            relation = relation_between(target, anchor) if anchor is not target else None
            if relation and is_allowed(target[0].name, relation, anchor[0].name, config):
                others = [name for name in scene.kinds if name not in (anchor[0].name, target[0].name)]
                if not any(RelationFact(name, relation, anchor[0].name).true_of(scene) for name in others):
                    candidates.append((anchor, relation, target))
    if not candidates:
        return None
    anchor, relation, target = choose(candidates, random)
    return _named(f"what is {side(relation, random)} {_the(anchor)}?", target[0].noun, anchor)


def _named(text: str, noun: Noun, *presupposed: tuple[SceneObject, ...]) -> _Draft:
    name = noun.singular
    return _Draft(text, name, presupposed, (f"the {name}" if noun.plural_only else f"{article(name)} {name}",))


def _size(scene: Scene, random: Random, config: ScenesConfig) -> _Draft | None:
    """Asks for the size of all objects of a name, if names differ in size."""
    uniform = [members for members in scene.kinds.values() if len({item.size for item in members}) == 1]
    sizes = {size: weight for size, weight in _SIZE_WEIGHTS.items() if any(m[0].size == size for m in uniform)}
    if len(sizes) < 2:
        return None
    size = by_weight(sizes, random)[0]
    members = choose([members for members in uniform if members[0].size == size], random)
    wordings = (f"what size {_verb(members)} {_the(members)}?", f"how big {_verb(members)} {_the(members)}?")
    return _Draft(choose(wordings, random), size, (members,))


def _position(scene: Scene, random: Random, config: ScenesConfig) -> _Draft | None:
    """Asks in which quarter of the picture a thing is."""
    candidates = []
    for members in scene.kinds.values():
        x, y = (value / scene.side - 0.5 for value in members[0].centre)
        if len(members) == 1 and min(abs(x), abs(y)) >= _MARGIN:
            candidates.append((members, _QUARTERS[2 * (y > 0) + (x > 0)]))
    if not candidates:
        return None
    members, quarter = choose(candidates, random)
    verb, thing = _verb(members), _the(members)
    wordings = (f"in which quarter of the picture {verb} {thing}?", f"in which quarter {verb} {thing}?")
    return _Draft(choose(wordings, random), quarter, (members,))


def _relation(scene: Scene, random: Random, config: ScenesConfig) -> _Draft | None:
    """Asks `is the cup left of the dog?` or `on which side of the dog is the cup?`."""
    truth, open_question = random.random() < 0.5, random.random() < 0.5
    relations = allowed_relations(scene, truth or open_question, config)
    if not relations:
        return None
    name, relation, other = choose(relations, random)
    subjects, others = scene.kinds[name], scene.kinds[other]
    verb, subject, anchor = _verb(subjects), _the(subjects), _the(others)
    if open_question:
        return _Draft(f"on which side of {anchor} {verb} {subject}?", relation, (subjects, others))
    text = f"{verb} {subject} {side(relation, random)} {anchor}?"
    return _Draft(text, "yes" if truth else "no", (subjects, others))


def _background(scene: Scene, random: Random, config: ScenesConfig) -> _Draft:
    wordings = ("what color is the background?", "which color does the background have?")
    return _Draft(choose(wordings, random), scene.background)


_DRAW: dict[QuestionKind, Callable[[Scene, Random, ScenesConfig], _Draft | None]] = {
    "existence": _existence,
    "count": _count,
    "name": _name,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "background": _background,
}
"""The function that draws a question of each kind."""
