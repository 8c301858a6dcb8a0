"""Questions about scenes, each with the answers of ten annotators, as in VQA v2.

At least seven of the ten give the plain answer, the others one that says the same (`2`, `two`; `top left`, `upper
left`), so that no answer is false. What a question takes for granted (`the cup`, `the cups`) is there, so many times.
Within a kind of question the answers are about equally frequent, whatever the question names: a guess without the
picture is weak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from diptych.schema import ScenesConfig
from diptych.synthetic.captions import OPPOSITE, Stands, may_say
from diptych.synthetic.claims import absent, by_weight, choose, distinct, side
from diptych.synthetic.generator import BACKGROUNDS, Relation, Scene, SceneObject, SizeWord, relation_between
from diptych.synthetic.nouns import NUMBER_WORDS, Noun, article

QuestionKind = Literal["existence", "count", "name", "size", "position", "relation", "background"]
ANNOTATORS = 10
_DISSENTERS = 3
"""The most annotators of ten who put it in other words."""
_MARGIN = 0.06
"""How far from the picture's middle lines a thing's centre is, as a share of the side, if its quarter is asked for."""
_QUARTERS = ("top left", "top right", "bottom left", "bottom right")
_RELATIONS: tuple[Relation, ...] = ("left", "right", "above", "below")
_WEIGHTS: dict[QuestionKind, float] = {
    "existence": 1.0,
    "count": 4.0,
    "name": 2.0,
    "size": 2.0,
    "position": 1.0,
    "relation": 2.0,
    "background": 1.0,
}
"""What a picture allows less often is drawn more often where it is allowed."""
_SIZE_WEIGHTS: dict[SizeWord, float] = {"small": 0.7, "medium": 0.65, "large": 1.0}
"""Large things are the rarest where there are several."""
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


@dataclass(frozen=True)
class Question:
    text: str
    kind: QuestionKind
    answer: str
    """The plain answer."""
    answers: tuple[str, ...]
    """The annotators', one each."""
    taken_for_granted: tuple[tuple[str, int], ...]
    """Names, and how many there are of each, that the question speaks of as being there."""


@dataclass(frozen=True)
class _Asked:
    text: str
    answer: str
    about: tuple[tuple[SceneObject, ...], ...] = ()
    """The kinds that are taken for granted."""
    variants: tuple[str, ...] = ()


Ask = Callable[[Scene, Random, ScenesConfig], _Asked | None]


def question(scene: Scene, random: Random, config: ScenesConfig) -> Question | None:
    """A question with its answers; None where `scenes.compositions` leaves nothing to ask."""
    if not distinct(scene, config):
        return None
    asked_for: dict[QuestionKind, float] = {"relation": 1.0} if config.compositions == "held_out" else _WEIGHTS
    for kind in by_weight(asked_for, random):
        asked = _ASK[kind](scene, random, config)
        if asked:
            granted = tuple((members[0].name, len(members)) for members in asked.about)
            return Question(asked.text, kind, asked.answer, _annotators(asked, random), granted)
    return None


def _annotators(asked: _Asked, random: Random) -> tuple[str, ...]:
    variants = asked.variants or _SYNONYMS.get(asked.answer, ())
    dissenters = int(random.random() * (_DISSENTERS + 1)) if variants else 0
    answers = [asked.answer] * (ANNOTATORS - dissenters) + [choose(variants, random) for _ in range(dissenters)]
    return tuple(sorted(answers, key=lambda _: random.random()))


def _the(members: Sequence[SceneObject]) -> str:
    noun = members[0].noun
    return f"the {noun.singular if len(members) == 1 else noun.plural}"


def _verb(members: Sequence[SceneObject]) -> str:
    return members[0].noun.verb(len(members))


def _existence(scene: Scene, random: Random, config: ScenesConfig) -> _Asked:
    there = random.random() < 0.5
    noun: Noun = choose(list(scene.kinds.values()), random)[0].noun if there else absent(scene, random, config).noun
    thing = noun.phrase(1)
    wordings = (
        f"{noun.verb(1)} there {thing}?",
        f"{noun.verb(1)} there {thing} in the picture?",
        f"can you see {thing}?",
    )
    return _Asked(choose(wordings, random), "yes" if there else "no")


def _count(scene: Scene, random: Random, config: ScenesConfig) -> _Asked | None:
    """Only where there are several of a kind: elsewhere the answer would nearly always be 1."""
    kinds = list(scene.kinds.values())
    numbers = sorted({len(members) for members in kinds})
    if numbers[-1] == 1:
        return None
    number = choose([0, *numbers], random)
    counted = [members[0].noun for members in kinds if len(members) == number]
    noun = choose(counted, random) if number else absent(scene, random, config).noun
    if noun.plural_only:
        return None
    wordings = (f"how many {noun.plural} are there?", f"how many {noun.plural} are in the picture?")
    return _Asked(choose(wordings, random), str(number))


def _name(scene: Scene, random: Random, config: ScenesConfig) -> _Asked | None:
    """What stands on one side of a thing, if one thing alone does; or what there is, if there is one thing."""
    if len(scene.objects) == 1:
        return _named("what is in the picture?", scene.objects[0].noun)
    single = [members for members in scene.kinds.values() if len(members) == 1]
    found = []
    for here in single:
        for there in single:
            relation = relation_between(there, here) if here is not there else None
            if relation and may_say(there[0].name, relation, here[0].name, config):
                others = [name for name in scene.kinds if name not in (here[0].name, there[0].name)]
                if not any(Stands(name, relation, here[0].name).true_of(scene) for name in others):
                    found.append((here, relation, there))
    if not found:
        return None
    here, relation, there = choose(found, random)
    return _named(f"what is {side(relation, random)} {_the(here)}?", there[0].noun, here)


def _named(text: str, noun: Noun, *about: tuple[SceneObject, ...]) -> _Asked:
    name = noun.singular
    return _Asked(text, name, about, (f"the {name}" if noun.plural_only else f"{article(name)} {name}",))


def _size(scene: Scene, random: Random, config: ScenesConfig) -> _Asked | None:
    """Only where kinds differ in size."""
    alike = [members for members in scene.kinds.values() if len({item.size for item in members}) == 1]
    sizes = {size: weight for size, weight in _SIZE_WEIGHTS.items() if any(m[0].size == size for m in alike)}
    if len(sizes) < 2:
        return None
    size = by_weight(sizes, random)[0]
    members = choose([members for members in alike if members[0].size == size], random)
    wordings = (f"what size {_verb(members)} {_the(members)}?", f"how big {_verb(members)} {_the(members)}?")
    return _Asked(choose(wordings, random), size, (members,))


def _position(scene: Scene, random: Random, config: ScenesConfig) -> _Asked | None:
    found = []
    for members in scene.kinds.values():
        x, y = (value / scene.side - 0.5 for value in members[0].centre)
        if len(members) == 1 and min(abs(x), abs(y)) >= _MARGIN:
            found.append((members, _QUARTERS[2 * (y > 0) + (x > 0)]))
    if not found:
        return None
    members, quarter = choose(found, random)
    verb, thing = _verb(members), _the(members)
    wordings = (f"in which quarter of the picture {verb} {thing}?", f"in which quarter {verb} {thing}?")
    return _Asked(choose(wordings, random), quarter, (members,))


def _relation(scene: Scene, random: Random, config: ScenesConfig) -> _Asked | None:
    """`Is the cup left of the dog?`, or `where is the cup?`, seen from the dog."""
    truth, openly = random.random() < 0.5, random.random() < 0.5
    said = [(a, relation if truth or openly else OPPOSITE[relation], b) for a, relation, b in scene.relations()]
    allowed = [(a, relation, b) for a, relation, b in said if may_say(a, relation, b, config)]
    if not allowed:
        return None
    name, relation, other = choose(allowed, random)
    ours, theirs = scene.kinds[name], scene.kinds[other]
    verb, we, they = _verb(ours), _the(ours), _the(theirs)
    if openly:
        return _Asked(f"on which side of {they} {verb} {we}?", relation, (ours, theirs))
    return _Asked(f"{verb} {we} {side(relation, random)} {they}?", "yes" if truth else "no", (ours, theirs))


def _background(scene: Scene, random: Random, config: ScenesConfig) -> _Asked:
    wordings = ("what color is the background?", "which color does the background have?")
    return _Asked(choose(wordings, random), scene.background)


_ASK: dict[QuestionKind, Ask] = {
    "existence": _existence,
    "count": _count,
    "name": _name,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "background": _background,
}
