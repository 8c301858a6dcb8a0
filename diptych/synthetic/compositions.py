"""Generates texts that are nearly true of a generated scene: tests of whether a model reads how words are combined.

A *foil* differs from a true text in one thing, in the manner of SugarCrepe (Hsieh et al., NeurIPS 2023): it swaps,
replaces or adds something, or has the same words in another order. A *quadruple* has two scenes and two texts of the
same words, each true of one scene, in the manner of Winoground (Thrush et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random
from typing import TypeVar

from diptych.schema import ScenesConfig, Split
from diptych.synthetic.captions import OPPOSITE, PHRASES, background_phrase, describe
from diptych.synthetic.claims import absent, allowed_relations, choose, once_and_more
from diptych.synthetic.examples import check_language
from diptych.synthetic.generator import (
    BACKGROUNDS,
    Relation,
    Scene,
    SceneObject,
    make_scene,
    relation_between,
    shared_area,
    stream,
)

T = TypeVar("T")
_FOIL, _QUADRUPLE = 8, 9
"""Purposes of the random numbers."""
_SCENES_FOR_ONE = 1_000
"""Number of scenes that are tried for one foil or quadruple before giving up."""


@dataclass(frozen=True)
class Foil:
    """A scene, a text that is true of it, and a nearly equal one that is false."""

    scene: Scene
    true: str
    false: str


@dataclass(frozen=True)
class Quadruple:
    """Two scenes and two texts of the same words. The first text is true of the first scene only, and so on."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str]


def foils(kind: str, number: int, config: ScenesConfig, split: Split) -> tuple[Foil, ...]:
    """Makes the first `number` foils of one of the `FOILS`, each of another scene of the split.

    They are a pure function of the arguments. Raises ValueError if the configuration leaves hardly any scene with
    something to exchange.
    """
    check_language(config)
    return tuple(islice(_enough(_foils(kind, config, split), kind, number, config), number))


def quadruples(number: int, config: ScenesConfig, split: Split) -> tuple[Quadruple, ...]:
    """Makes the first `number` quadruples: in the second scene, two things of the first one have changed places.

    They are a pure function of the arguments. Raises ValueError if the configuration leaves hardly any scene with two
    things that can change places.
    """
    check_language(config)
    return tuple(islice(_enough(_quadruples(config, split), "quadruple", number, config), number))


def _enough(found: Iterator[T | None], kind: str, number: int, config: ScenesConfig) -> Iterator[T]:
    """Yields what was found. Raises ValueError after too many scenes in which nothing was."""
    without = 0
    for item in found:
        if item is not None:
            without = 0
            yield item
        elif (without := without + 1) == _SCENES_FOR_ONE:
            raise ValueError(
                f"scenes.objects={config.objects}, scenes.compositions={config.compositions}: hardly any scene leaves "
                f"something to exchange for {number} of '{kind}': allow more objects"
            )


# --------------------------------------------------------------------------- foils

Texts = tuple[str, str]
"""A true text and a false one."""


def _swap(scene: Scene, random: Random, config: ScenesConfig) -> Texts | None:
    """Exchanges the two things of a relation: `a dog above a cat` and `a cat above a dog`."""
    if (stated := _relation(scene, random, config)) is None:
        return None
    first, words, second = stated
    return f"{first} {words} {second}", f"{second} {words} {first}"


def _replace_noun(scene: Scene, random: Random, config: ScenesConfig) -> Texts | None:
    """Puts things that are not there, as many, in the place of those on one side of a relation."""
    relations = allowed_relations(scene, True, config)
    if not relations:
        return None
    name, relation, other = choose(relations, random)
    words, wrong = choose(PHRASES[relation], random), absent(scene, random, config).noun
    first, second = _all_of(scene, name), _all_of(scene, other)
    texts = (
        f"{wrong.phrase(len(scene.kinds[name]))} {words} {second}",
        f"{first} {words} {wrong.phrase(len(scene.kinds[other]))}",
    )
    return f"{first} {words} {second}", choose(texts, random)


def _replace_relation(scene: Scene, random: Random, config: ScenesConfig) -> Texts | None:
    """Puts the opposite relation in the place of the true one."""
    relations = allowed_relations(scene, True, config)
    if not relations:
        return None
    name, relation, other = choose(relations, random)
    first, second = _all_of(scene, name), _all_of(scene, other)
    way = int(random.random() * len(PHRASES[relation]))
    true, false = (f"{first} {PHRASES[each][way]} {second}" for each in (relation, OPPOSITE[relation]))
    return true, false


def _replace_background(scene: Scene, random: Random, config: ScenesConfig) -> Texts:
    """Puts another colour in the place of the background's."""
    things = _all_of(scene, choose(list(scene.kinds), random))
    wrong = choose([colour for colour in BACKGROUNDS if colour != scene.background], random)
    true, false = (f"{things} on {background_phrase(colour)}" for colour in (scene.background, wrong))
    return true, false


def _swap_number(scene: Scene, random: Random, config: ScenesConfig) -> Texts | None:
    """Exchanges the numbers of two kinds: `a fox and two keys` and `two foxes and a key`."""
    pairs = once_and_more(scene)
    if not pairs:
        return None
    kinds = choose(pairs, random)
    counts = [len(members) for members in kinds]
    true, false = (
        [members[0].noun.phrase(n) for members, n in zip(kinds, ns, strict=True)] for ns in (counts, counts[::-1])
    )
    order = slice(None, None, 1 if random.random() < 0.5 else -1)
    return " and ".join(true[order]), " and ".join(false[order])


def _add_noun(scene: Scene, random: Random, config: ScenesConfig) -> Texts:
    """Adds a thing that is not there."""
    true = _all_of(scene, choose(list(scene.kinds), random))
    return true, f"{true} and {absent(scene, random, config).noun.phrase(1)}"


def _word_order(scene: Scene, random: Random, config: ScenesConfig) -> Texts | None:
    """Shuffles the words of a caption."""
    true = describe(scene, random, config, complete=True).text
    words = sorted(true.split(" "), key=lambda _: random.random())
    return None if (false := " ".join(words)) == true else (true, false)


FOILS: Mapping[str, Callable[[Scene, Random, ScenesConfig], Texts | None]] = {
    "swap": _swap,
    "replace_noun": _replace_noun,
    "replace_relation": _replace_relation,
    "replace_background": _replace_background,
    "swap_number": _swap_number,
    "add_noun": _add_noun,
    "word_order": _word_order,
}
"""Makers of a true text and a foil, by kind. None stands for a scene in which there is nothing to exchange."""


def _foils(kind: str, config: ScenesConfig, split: Split) -> Iterator[Foil | None]:
    for index in count():
        scene = make_scene(config, split, index)
        texts = FOILS[kind](scene, stream(config.seed, split, index, _FOIL), config)
        yield Foil(scene, *texts) if texts else None


def _relation(scene: Scene, random: Random, config: ScenesConfig) -> tuple[str, str, str] | None:
    """Draws a true relation of two things: their phrases with the words between them."""
    relations = allowed_relations(scene, True, config)
    if not relations:
        return None
    name, relation, other = choose(relations, random)
    return _all_of(scene, name), choose(PHRASES[relation], random), _all_of(scene, other)


def _all_of(scene: Scene, name: str) -> str:
    """Returns the phrase of all things of a name, such as `two foxes`."""
    members = scene.kinds[name]
    return members[0].noun.phrase(len(members))


# --------------------------------------------------------------------------- quadruples


def _quadruples(config: ScenesConfig, split: Split) -> Iterator[Quadruple | None]:
    for index in count():
        scene = make_scene(config, split, index)
        random = stream(config.seed, split, index, _QUADRUPLE)
        single = {name: members[0] for name, members in scene.kinds.items() if len(members) == 1}
        stated = [
            (single[first], relation, single[second])
            for first, relation, second in allowed_relations(scene, True, config)
            if first in single and second in single
        ]
        yield _quadruple(scene, *choose(stated, random), random) if stated else None


def _quadruple(
    scene: Scene, first: SceneObject, relation: Relation, second: SceneObject, random: Random
) -> Quadruple | None:
    """Returns None if, after the exchange, the relation is not plainly the opposite or one thing hides another."""
    moved = {first: _moved(first, second, scene.side), second: _moved(second, first, scene.side)}
    other = replace(scene, objects=tuple(moved.get(item, item) for item in scene.objects))
    if relation_between((moved[first],), (moved[second],)) != OPPOSITE[relation] or _hides(other):
        return None
    words = choose(PHRASES[relation], random)
    phrases = first.noun.phrase(1), second.noun.phrase(1)
    return Quadruple((scene, other), (f"{phrases[0]} {words} {phrases[1]}", f"{phrases[1]} {words} {phrases[0]}"))


def _moved(item: SceneObject, to: SceneObject, side: int) -> SceneObject:
    """Moves a thing's centre as near to that of another as the picture's edges allow."""
    x, y = (
        min(max(round(centre - length / 2), 0), side - length)
        for centre, length in zip(to.centre, (item.width, item.height), strict=True)
    )
    return replace(item, x=x, y=y)


def _hides(scene: Scene) -> bool:
    """Returns whether a thing covers a quarter of another."""
    pairs = [(a, b) for place, a in enumerate(scene.objects) for b in scene.objects[:place]]
    return any(4 * shared_area(a.box, b.box) > min(a.width * a.height, b.width * b.height) for a, b in pairs)
