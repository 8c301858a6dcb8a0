"""Tests the tasks' texts with an independent parser, which compares them with the boxes, and by blind guessing."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from diptych.data.sources.scenes import open_scenes
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.examples import (
    PAIRS,
    entailment_example,
    pair_example,
    question_example,
    referring_example,
)
from diptych.synthetic.expressions import JITTERED
from diptych.synthetic.generator import BACKGROUNDS, Scene, make_scene
from diptych.synthetic.sprites import sprite_set

CURATED = ScenesConfig()
SHAPES = ScenesConfig(sprites="shapes")
CONFIGS = pytest.mark.parametrize("config", [CURATED, SHAPES], ids=["curated", "shapes"])
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
SIDES = {"to the left of": "left", "left of": "left", "to the right of": "right", "right of": "right"} | {
    side: side for side in ("above", "below")
}
MIRRORED = {"left": "right", "right": "left", "above": "below", "below": "above"}
ENDS = {"on the left": "left", "on the right": "right", "at the top": "above", "at the bottom": "below"}
INVISIBLE = {"hungry", "tame", "shy", "cheap", "lost", "stolen", "famous", "lucky", "loved"}

Box = tuple[int, int, int, int]


# --------------------------------------------------------------------------- an independent reader


@dataclass(frozen=True)
class Thing:
    """Holds a noun phrase: its name, its count (0 for more than one), its article or number word and its adjective."""

    name: str
    count: int
    opener: str
    adjective: str = ""


class Reader:
    """Parses the texts of one sprite set. Words that do not fit, and a wrong number or article, are errors."""

    def __init__(self, config: ScenesConfig) -> None:
        nouns = [sprite.noun for sprite in sprite_set(config).sprites]
        self.singular = {noun.singular: noun.singular for noun in nouns}
        self.plural = {noun.plural: noun.singular for noun in nouns}
        forms = "|".join(map(re.escape, sorted({*self.singular, *self.plural}, key=len, reverse=True)))
        adjectives = "|".join({"small", "large", *INVISIBLE})
        openers = "an?|the|more|" + "|".join(f"exactly {word}" for word in NUMBERS)
        self.phrase = rf"(?:(?:{openers}) )?(?:(?:{adjectives}) )?(?:{forms})"
        self.parts = re.compile(rf"(?:({openers}) )?(?:({adjectives}) )?({forms})")
        self.sides = "|".join(sorted(SIDES, key=len, reverse=True))

    def thing(self, text: str) -> Thing:
        match = self.parts.fullmatch(text)
        assert match, text
        opener, adjective, form = (group or "" for group in match.groups())
        if opener in ("a", "an"):
            assert opener == ("an" if (adjective or form)[0] in "aeiou" else "a"), text
        count = NUMBERS.get(opener.removeprefix("exactly "), 1 if opener in ("a", "an") else 0)
        if opener == "the":  # fish is one or many
            count = 1 if form in self.singular and form not in self.plural else 0
        names = self.singular if count == 1 else self.plural
        assert form in names, f"{text}: number and noun disagree"
        return Thing(names[form], count, opener, adjective)

    def claim(self, text: str) -> Claim:
        """Parses `a dog`, `exactly two dogs`, `a small dog`, `a dog above a cat` or `a blue background`."""
        if match := re.fullmatch(r"(an?) (\w+) background", text):
            assert match[2] in BACKGROUNDS
            assert match[1] == ("an" if match[2] == "orange" else "a")
            return Claim("background", background=match[2])
        if match := re.fullmatch(rf"({self.phrase}) ({self.sides}) ({self.phrase})", text):
            first, second = self.thing(match[1]), self.thing(match[3])
            assert first.opener[0] == second.opener[0] == "a"
            return Claim("relation", first, SIDES[match[2]], second)
        thing = self.thing(text)
        if thing.adjective in INVISIBLE:
            return Claim("invisible", thing)
        kind = "size" if thing.adjective else "count" if thing.opener.startswith("exactly") else "existence"
        return Claim(kind, thing)


@dataclass(frozen=True)
class Claim:
    kind: str
    thing: Thing = Thing("", 0, "")
    side: str = ""
    other: Thing = Thing("", 0, "")
    background: str = ""

    @property
    def plural(self) -> bool:
        return self.thing.count > 1

    def judged(self, scene: Scene) -> bool | None:
        """Returns True if the claim holds in a strict reading, False if it fails in a generous one, or else None."""
        here, there = boxes(scene, self.thing.name), boxes(scene, self.other.name)
        if self.kind == "background":
            return scene.background == self.background
        if self.kind == "existence":
            return bool(here)
        if self.kind == "count":
            return len(here) == self.thing.count
        if self.kind == "size":
            return any(item.name == self.thing.name and item.size == self.thing.adjective for item in scene.objects)
        assert self.kind == "relation"
        stands = [beside(a, self.side, b) for a in here for b in there]
        return None if any(stands) and not all(stands) else any(stands)

    @property
    def combinations(self) -> set[tuple[str, str]]:
        return {(self.thing.name, self.side), (self.other.name, MIRRORED[self.side])} if self.side else set()


def boxes(scene: Scene, name: str) -> list[Box]:
    return [item.box for item in scene.objects if item.name == name]


def middle(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def beside(a: Box, side: str, b: Box) -> bool:
    (ax, ay), (bx, by) = middle(a), middle(b)
    return {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[side]


def overlap(a: Box, b: Box) -> float:
    """Returns the intersection over union, by counting pixels."""
    side = 1 + max(a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3])
    masks = np.zeros((2, side, side), dtype=bool)
    for mask, (x, y, width, height) in zip(masks, (a, b), strict=True):
        mask[y : y + height, x : x + width] = True
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def guessed(texts: list[str], labels: list[Any]) -> float:
    """Returns the accuracy of guessing from words and word pairs, learnt on the first half, tested on the second."""
    half = len(texts) // 2
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", binary=True)
    model = MultinomialNB().fit(words.fit_transform(texts[:half]), labels[:half])
    return float((model.predict(words.transform(texts[half:])) == np.array(labels[half:])).mean())


# --------------------------------------------------------------------------- entailment


def read_hypothesis(reader: Reader, text: str) -> tuple[Claim, Thing]:
    """Parses the claim that the picture decides and the part that it does not."""
    match = re.fullmatch(r"(?:there (is|are)|the picture has) (.+) or (.+)", text)
    assert match, text
    first, second = reader.claim(match[2]), reader.claim(match[3])
    if match[1]:
        assert match[1] == ("are" if first.plural else "is"), text
    (invisible,) = (claim for claim in (first, second) if claim.kind == "invisible")
    (visible,) = (claim for claim in (first, second) if claim.kind != "invisible")
    assert invisible.thing.name not in (visible.thing.name, visible.other.name), text
    return visible, invisible.thing


@CONFIGS
@pytest.mark.parametrize("split", ["train", "test"])
def test_each_hypothesis_is_what_its_label_says(config: ScenesConfig, split: str) -> None:
    reader = Reader(config)
    for index in range(700):
        scene, said = entailment_example(config, split, index)
        claim, thing = read_hypothesis(reader, said.text)
        truth, there = claim.judged(scene), bool(boxes(scene, thing.name))
        expected = {(True, False): "entailment", (False, True): "neutral", (False, False): "contradiction"}
        assert said.label == expected[truth, there], (said, scene)
        assert said.kind == claim.kind
        assert (said.unseen.singular, said.adjective) == (thing.name, thing.adjective)
        assert scene.split == split


@pytest.fixture(scope="module", params=[CURATED, SHAPES], ids=["curated", "shapes"])
def hypotheses(request: pytest.FixtureRequest) -> list[tuple[Scene, Any]]:
    return [entailment_example(request.param, "train", index) for index in range(8000)]


def test_words_alone_do_not_tell_the_label_of_a_hypothesis(hypotheses: list[tuple[Scene, Any]]) -> None:
    texts, labels = [said.text for _, said in hypotheses], [said.label for _, said in hypotheses]
    assert guessed(texts, labels) < 1 / 3 + 0.025  # 4,000 guesses: a standard deviation of 0.007
    decided = [(text, label) for text, label in zip(texts, labels, strict=True) if label != "neutral"]
    assert guessed(*map(list, zip(*decided, strict=True))) < 1 / 2 + 0.03  # type: ignore[arg-type]


def test_kinds_wordings_and_nouns_of_hypotheses_are_alike_in_all_classes(hypotheses: list[tuple[Scene, Any]]) -> None:
    """Chi-squared divided by its degrees of freedom is about 1 if the class does not matter."""
    labels = [said.label for _, said in hypotheses]
    assert max(Counter(labels).values()) < 1.08 * min(Counter(labels).values())
    features: dict[str, Callable[[Any], str]] = {
        "kind": lambda said: said.kind,
        "opener": lambda said: said.text.split(" ")[0],
        "order": lambda said: f"{said.kind} {said.adjective in said.text.split(' or ')[0].split(' ')}",
        "adjective": lambda said: said.adjective,
        "noun of the claim": lambda said: said.claim.nouns[0].singular if said.claim.nouns else "",
        "noun of the property": lambda said: said.unseen.singular,
        "number": lambda said: str(getattr(said.claim, "count", "")),
        "size": lambda said: getattr(said.claim, "size", ""),
        "relation": lambda said: getattr(said.claim, "relation", ""),
        "color": lambda said: getattr(said.claim, "background", ""),
    }
    for name, feature in features.items():
        values = [feature(said) for _, said in hypotheses]
        table = Counter(zip(values, labels, strict=True))
        rows, columns = Counter(values), Counter(labels)
        assert len(rows) > 1, name
        expected = {(v, c): rows[v] * columns[c] / len(labels) for v in rows for c in columns}
        chi = sum((table[cell] - count) ** 2 / count for cell, count in expected.items())
        freedom = (len(rows) - 1) * (len(columns) - 1)
        assert chi < freedom + 4 * (2 * freedom) ** 0.5, (name, chi, freedom)
    kinds = Counter(said.kind for _, said in hypotheses)
    assert set(kinds) == {"existence", "count", "size", "relation", "background"}
    assert min(kinds.values()) > len(hypotheses) / 20


# --------------------------------------------------------------------------- questions


SAME = {
    "zero": "0", "none": "0", "little": "small", "big": "large", "medium sized": "medium", "middle sized": "medium",
    "upper left": "top left", "upper right": "top right", "lower left": "bottom left", "lower right": "bottom right",
    "to the left": "left", "on the left": "left", "to the right": "right", "on the right": "right",
    "over": "above", "under": "below", "grey": "gray", "light gray": "gray",
} | {word: str(number) for word, number in NUMBERS.items()}  # fmt: skip


def granted(thing: Thing, scene: Scene) -> list[Box]:
    """Returns the boxes of `the cup`, of which there is one, or of `the cups`, of which there are several."""
    members = boxes(scene, thing.name)
    assert thing.opener == "the"
    assert len(members) == 1 if thing.count == 1 else len(members) > 1 or thing.name in ("fish", "sheep"), (
        thing,
        scene,
    )
    return members


def answered(reader: Reader, text: str, scene: Scene) -> tuple[str, str, set[tuple[str, str]]]:
    """Returns the kind of a question, its only right answer by the boxes, and the combinations that both name."""
    noun, sides = f"({reader.phrase})", f"({reader.sides})"

    def verb_fits(verb: str, members: list[Box]) -> None:
        assert verb == ("is" if len(members) == 1 else "are"), text

    if match := re.fullmatch(rf"(?:is there|can you see) {noun}(?: in the picture)?\?", text):
        return "existence", "yes" if boxes(scene, reader.thing(match[1]).name) else "no", set()
    if match := re.fullmatch(rf"how many {noun} are (?:there|in the picture)\?", text):
        return "count", str(len(boxes(scene, reader.thing(match[1]).name))), set()
    if text == "what is in the picture?":
        (only,) = scene.objects
        return "name", only.name, set()
    if match := re.fullmatch(rf"what is {sides} {noun}\?", text):
        thing, side = reader.thing(match[2]), SIDES[match[1]]
        (here,) = granted(thing, scene)
        (answer,) = [item.name for item in scene.objects if item.box != here and beside(item.box, side, here)]
        return "name", answer, {(answer, side), (thing.name, MIRRORED[side])}
    if match := re.fullmatch(rf"(?:what size|how big) (is|are) {noun}\?", text):
        thing = reader.thing(match[2])
        verb_fits(match[1], granted(thing, scene))
        (size,) = {item.size for item in scene.objects if item.name == thing.name}
        return "size", size, set()
    if match := re.fullmatch(rf"in which quarter (?:of the picture )?(is|are) {noun}\?", text):
        (box,) = granted(reader.thing(match[2]), scene)
        verb_fits(match[1], [box])
        x, y = middle(box)
        assert min(abs(x - scene.side / 2), abs(y - scene.side / 2)) > 0.05 * scene.side
        corner = f"{'top' if y < scene.side / 2 else 'bottom'} {'left' if x < scene.side / 2 else 'right'}"
        return "position", corner, set()
    if match := re.fullmatch(rf"on which side of {noun} (is|are) {noun}\?", text):
        other, thing = reader.thing(match[1]), reader.thing(match[3])
        ours, theirs = granted(thing, scene), granted(other, scene)
        verb_fits(match[2], ours)
        far = [abs(np.subtract(middle(a), middle(b))) for a in ours for b in theirs]
        across = all(dx > dy for dx, dy in far)
        assert across or all(dy > dx for dx, dy in far)
        (side,) = (
            side
            for side in (("left", "right") if across else ("above", "below"))
            if all(beside(a, side, b) for a in ours for b in theirs)
        )
        return "relation", side, {(thing.name, side), (other.name, MIRRORED[side])}
    if match := re.fullmatch(rf"(is|are) {noun} {sides} {noun}\?", text):
        thing, side, other = reader.thing(match[2]), SIDES[match[3]], reader.thing(match[4])
        ours, theirs = granted(thing, scene), granted(other, scene)
        verb_fits(match[1], ours)
        (truth,) = {beside(a, side, b) for a in ours for b in theirs}
        return "relation", "yes" if truth else "no", {(thing.name, side), (other.name, MIRRORED[side])}
    assert re.fullmatch(r"what color is the background\?|which color does the background have\?", text), text
    return "background", scene.background, set()


def plain_answers(config: ScenesConfig) -> set[str]:
    """Returns every answer that a question may have in plain words."""
    quarters = {f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right")}
    numbers = {str(number) for number in range(config.objects[1] + 1)}
    names = {sprite.noun.singular for sprite in sprite_set(config).sprites}
    return {"yes", "no", "small", "medium", "large", *numbers, *quarters, *MIRRORED, *BACKGROUNDS, *names}


@CONFIGS
@pytest.mark.parametrize("split", ["train", "test"])
def test_each_question_takes_only_what_is_there_for_granted_and_its_answers_are_right(
    config: ScenesConfig, split: str
) -> None:
    reader, possible = Reader(config), plain_answers(config)
    unanimous = 0
    for index in range(700):
        scene, example = question_example(config, split, index)
        kind, answer, _ = answered(reader, example.text, scene)
        assert (example.kind, example.answer) == (kind, answer), (example, scene)
        assert answer in possible
        assert all(len(boxes(scene, name)) == count for name, count in example.taken_for_granted)
        assert len(example.answers) == 10
        assert example.answers.count(answer) >= 7
        for reply in example.answers:
            meant = SAME.get(reply, re.sub(r"^(a|an|the|light) ", "", reply))
            assert meant == answer, (reply, answer)
            if reply != f"light {answer}" and kind == "name":
                assert not reply.startswith(("a ", "an ")) or reply.startswith("an ") == (answer[0] in "aeiou")
        unanimous += len(set(example.answers)) == 1
    assert 70 < unanimous < 630


@CONFIGS
def test_words_alone_hardly_tell_an_answer(config: ScenesConfig) -> None:
    by_kind: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for index in range(9000):
        example = question_example(config, "train", index)[1]
        by_kind[example.kind].append((example.text, example.answer))
    best = {"existence": 0.5, "count": 0.38, "name": 0.01, "size": 0.36, "position": 0.25, "background": 1 / 8}
    best["relation"] = (0.5 + 0.25) / 2  # half of them are answered with yes or no
    assert set(by_kind) == set(best)
    for kind, pairs in by_kind.items():
        assert len(pairs) > 450, kind
        texts, answers = map(list, zip(*pairs, strict=True))
        spread = (0.25 / (len(texts) / 2)) ** 0.5
        assert guessed(texts, answers) < best[kind] + 3 * spread + 0.02, kind  # type: ignore[arg-type]
        assert Counter(answers).most_common(1)[0][1] / len(answers) < best[kind] + 3 * spread, kind


# --------------------------------------------------------------------------- statements about pairs


def judged_pair(reader: Reader, text: str, left: Scene, right: Scene) -> tuple[str, bool | None, Claim]:
    """Returns the pictures to which a statement applies, whether it is true of the pair, and its claim."""
    phrase = "(.+)"
    more = rf"there are ({reader.phrase}) in the (left|right) picture than in the (left|right) one"
    has_more = rf"the (left|right) picture has ({reader.phrase}) than the (left|right) one"
    if match := re.fullmatch(more, text) or re.fullmatch(has_more, text):
        thing_text, here, there = match.groups() if text.startswith("there") else (match[2], match[1], match[3])
        thing = reader.thing(thing_text)
        assert thing.opener == "more"
        assert here != there
        numbers = {"left": len(boxes(left, thing.name)), "right": len(boxes(right, thing.name))}
        return "more", numbers[here] > numbers[there], Claim("more", thing)
    forms = {
        "both": (rf"there (is|are) {phrase} in both pictures", rf"both pictures have() {phrase}"),
        "one": (rf"there (is|are) {phrase} in only one picture", rf"only one picture has() {phrase}"),
        "neither": (rf"neither of the pictures has() {phrase}", rf"neither picture has() {phrase}"),
        "left": (rf"there (is|are) {phrase} in the left picture", rf"the left picture has() {phrase}"),
        "right": (rf"there (is|are) {phrase} in the right picture", rf"the right picture has() {phrase}"),
    }
    ((which, match),) = (
        (which, match)
        for which, both in forms.items()
        for match in (re.fullmatch(form, text) for form in both)
        if match
    )
    claim = reader.claim(match[2])
    if match[1]:
        assert match[1] == ("are" if claim.plural else "is"), text
    first, second = claim.judged(left), claim.judged(right)
    if first is None or second is None:
        return which, None, claim
    number = first + second
    truth = {"both": number == 2, "one": number == 1, "neither": number == 0, "left": first, "right": second}
    return which, truth[which], claim


@CONFIGS
@pytest.mark.parametrize("split", ["train", "validation"])
def test_each_statement_is_true_of_half_its_pairs_and_false_of_the_others(config: ScenesConfig, split: str) -> None:
    reader = Reader(config)
    seen: Counter[str] = Counter()
    near = Counter[bool]()
    for group in range(180):
        examples = [pair_example(config, split, PAIRS * group + number) for number in range(PAIRS)]
        assert len({example.statement for example in examples}) == 1
        assert {example.group for example in examples} == {group}
        assert Counter(example.label for example in examples) == {True: PAIRS // 2, False: PAIRS // 2}
        for example in examples:
            which, truth, claim = judged_pair(reader, example.statement.text, example.left, example.right)
            assert truth is example.label, example
            assert example.statement.meaning.holds(example.left, example.right) is truth
            assert example.left.split == example.right.split == split
            seen.update({which, example.statement.kind})
            if not truth and claim.thing.name:
                near[claim.thing.name in example.left.kinds or claim.thing.name in example.right.kinds] += 1
    kinds = {"existence", "count", "size", "relation", "background", "more"}
    assert set(seen) == {*kinds, "both", "one", "neither", "left", "right"}
    assert min(seen.values()) >= 15, seen
    assert near[True] > 2 * near[False]


def test_a_pair_swapped_answers_a_statement_about_one_side_anew() -> None:
    """Left is the first picture: where the order of a pair matters, swapping the pictures contradicts the label."""
    reader, decided = Reader(CURATED), 0
    for index in range(400):
        example = pair_example(CURATED, "train", index)
        which, truth, _ = judged_pair(reader, example.statement.text, example.right, example.left)
        if which in ("both", "one", "neither"):
            assert truth is example.label
        else:
            decided += truth is not None and truth is not example.label
    assert decided > 50


# --------------------------------------------------------------------------- referring expressions


def fits(reader: Reader, text: str, scene: Scene, strictly: bool) -> tuple[str, list[int], set[tuple[str, str]]]:
    """Returns a phrase's kind, the objects that it fits in a strict or a generous reading, and its combinations."""
    thing = rf"(the thing|{reader.phrase})"
    related = re.fullmatch(rf"{thing} ({reader.sides}) ({reader.phrase})", text)
    placed = re.fullmatch(rf"({reader.phrase}) ({'|'.join(ENDS)})", text)
    head = (related or placed or re.fullmatch(thing, text))[1]  # type: ignore[index]
    named = None if head == "the thing" else reader.thing(head)
    assert named is None or named.opener == "the"
    items = [i for i, item in enumerate(scene.objects) if named is None or item.name == named.name]
    if named and named.adjective:
        return "size", [i for i in items if scene.objects[i].size == named.adjective], set()
    if placed:
        side = ENDS[placed[2]]
        held = [
            i
            for i in items
            if (all if strictly else any)(
                beside(scene.objects[i].box, side, scene.objects[j].box) for j in items if j != i
            )
        ]
        assert len(items) > 1, text
        return "place", held if strictly else [i for i in held if not _outdone(scene, i, items, side)], set()
    if related:
        side, other = SIDES[related[2]], reader.thing(related[3])
        (there,) = granted(other, scene)
        held = [i for i in items if scene.objects[i].box != there and beside(scene.objects[i].box, side, there)]
        names_and_sides = {(scene.objects[i].name, side) for i in held} | {(other.name, MIRRORED[side])}
        return "relation" if named else "thing", held, names_and_sides
    return "name", items, set()


def _outdone(scene: Scene, item: int, items: Iterable[int], side: str) -> bool:
    """Returns whether another object is further out on that side."""
    return any(beside(scene.objects[j].box, side, scene.objects[item].box) for j in items if j != item)


@CONFIGS
@pytest.mark.parametrize("split", ["train", "test"])
def test_each_expression_is_true_of_its_object_alone(config: ScenesConfig, split: str) -> None:
    reader = Reader(config)
    seen: Counter[str] = Counter()
    for index in range(700):
        scene, said = referring_example(config, split, index)
        for strictly in (True, False):
            kind, held, _ = fits(reader, said.text, scene, strictly)
            assert held == [said.target], (said, scene)
            assert kind == said.kind
        assert said.box == scene.objects[said.target].box
        seen[kind] += 1
    assert set(seen) == {"name", "size", "place", "relation", "thing"}
    assert min(seen.values()) > 30, seen


def test_proposals_hold_the_box_once_beside_others_that_miss_it() -> None:
    for index in range(300):
        scene, said = referring_example(CURATED, "train", index)
        assert said.proposals.count(said.box) == 1
        assert set(scene.boxes) <= set(said.proposals)
        assert len(said.proposals) == (1 + JITTERED) * len(scene.objects)
        assert all(overlap(said.box, other) < 0.5 for other in said.proposals if other != said.box)
        for x, y, width, height in said.proposals:
            assert min(x, y) >= 0 < min(width, height)
            assert max(x + width, y + height) <= scene.side


def test_neither_size_nor_place_nor_crowd_nor_order_tells_the_proposal_referred_to() -> None:
    examples = [referring_example(CURATED, "test", index) for index in range(3000)]
    chance = np.mean([1 / len(said.proposals) for _, said in examples])
    scores: dict[str, Callable[[Box, tuple[Box, ...], float], float]] = {
        "largest": lambda box, all_boxes, side: box[2] * box[3],
        "smallest": lambda box, all_boxes, side: -box[2] * box[3],
        "middling": lambda box, all_boxes, side: (
            -abs(np.log(box[2] * box[3]) - np.median([np.log(b[2] * b[3]) for b in all_boxes]))
        ),
        "central": lambda box, all_boxes, side: -np.hypot(*(value - side / 2 for value in middle(box))),
        "first": lambda box, all_boxes, side: -all_boxes.index(box),
    }
    for name, score in scores.items():
        right = [
            max(said.proposals, key=lambda box: score(box, said.proposals, scene.side)) == said.box
            for scene, said in examples
        ]
        assert abs(np.mean(right) - chance) < 0.06, (name, np.mean(right), chance)


# --------------------------------------------------------------------------- all tasks


def scenes_and_texts(config: ScenesConfig, split: str, count: int) -> list[tuple[tuple[Scene, ...], str]]:
    """Returns the scenes and texts of all tasks and of captions."""
    pairs: list[tuple[tuple[Scene, ...], str]] = []
    for index in range(count):
        for example in (entailment_example, question_example, referring_example):
            scene, said = example(config, split, index)
            pairs.append(((scene,), said.text))
        pair = pair_example(config, split, index)
        pairs.append(((pair.left, pair.right), pair.statement.text))
    return pairs


def content(scene: Scene) -> tuple[Any, ...]:
    return scene.background, *sorted(item.name for item in scene.objects)


def test_no_two_splits_share_a_scene() -> None:
    contents = {
        split: {content(s) for scenes, _ in scenes_and_texts(SHAPES, split, 300) for s in scenes}
        | {content(make_scene(SHAPES, split, index)) for index in range(600)}
        for split in ("train", "validation", "test")
    }
    assert contents["train"].isdisjoint(contents["validation"] | contents["test"])
    assert contents["validation"].isdisjoint(contents["test"])


def combinations(reader: Reader, config: ScenesConfig, count: int) -> tuple[list[set[tuple[str, str]]], int]:
    """Returns the combinations of name and relation in each text, and the number of texts without any."""
    stated, without = [], 0
    for index in range(count):
        _, said = entailment_example(config, "train", index)
        asked_of, asked = question_example(config, "train", index)
        seen, referring = referring_example(config, "train", index)
        pair = pair_example(config, "train", index)
        for spoken in (
            read_hypothesis(reader, said.text)[0].combinations,
            answered(reader, asked.text, asked_of)[2],
            fits(reader, referring.text, seen, strictly=True)[2],
            judged_pair(reader, pair.statement.text, pair.left, pair.right)[2].combinations,
        ):
            if spoken:
                stated.append(spoken)
            else:
                without += 1
    return stated, without


def test_held_out_combinations_are_never_spoken_of_in_familiar_texts() -> None:
    reader = Reader(CURATED)
    familiar, others = combinations(reader, replace(CURATED, compositions="familiar"), 800)
    known = set.union(*familiar)
    assert others > len(familiar) / 2
    captions = open_scenes(DataConfig(scenes=replace(CURATED, compositions="familiar")), "train")
    for index in range(2500):
        for fact in captions.caption(index).facts:
            if hasattr(fact, "relation"):
                known |= {(fact.subject, fact.relation), (fact.other, MIRRORED[fact.relation])}
    held_out, others = combinations(reader, replace(CURATED, compositions="held_out"), 150)
    assert others == 0
    assert all(spoken - known for spoken in held_out)
    names = {name for name, _ in known}
    assert {name for spoken in held_out for name, _ in spoken} <= names
    assert names == set(reader.singular)
    assert {side for spoken in held_out for _, side in spoken - known} == set(MIRRORED)
    share = len(known) / (4 * len(names))
    assert 0.8 < share < 0.95


def test_all_combinations_are_spoken_of_by_default() -> None:
    stated, _ = combinations(Reader(SHAPES), SHAPES, 1000)
    assert len(set.union(*stated)) > 0.97 * 4 * len(sprite_set(SHAPES).sprites)


def test_captions_and_scenes_stay_what_they_were_where_nothing_is_held_out() -> None:
    """Familiar captions differ only if a relation is left out."""
    both = [open_scenes(DataConfig(scenes=replace(CURATED, compositions=c)), "train") for c in ("all", "familiar")]
    changed = sum(both[0].record(index) != both[1].record(index) for index in range(500))
    assert 0 < changed < 150
    assert all(both[0].scene(index) == both[1].scene(index) for index in range(50))


DIGEST = """
import hashlib
from diptych.synthetic import examples
from diptych.schema import ScenesConfig
found = hashlib.sha256()
config = ScenesConfig(names="full", compositions="familiar")
for example in ("entailment_example", "question_example", "referring_example", "pair_example"):
    for index in range(40):
        found.update(repr(getattr(examples, example)(config, "test", index)).encode())
print(found.hexdigest())
"""


def test_another_process_makes_the_same_examples() -> None:
    """The seed of Python's own hashes, by which sets are ordered, makes no difference."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_an_example_is_a_function_of_its_number() -> None:
    for example in (entailment_example, question_example, referring_example, pair_example):
        first = [example(CURATED, "test", index) for index in range(20)]
        again = [example(CURATED, "test", index) for index in reversed(range(20))][::-1]
        assert first == again
        assert pickle.loads(pickle.dumps(first)) == first
        assert first != [example(replace(CURATED, seed=1), "test", index) for index in range(20)]
        assert len({repr(one) for one in first}) == 20


def test_the_full_set_gives_well_formed_texts_and_no_name_stands_beside_a_synonym() -> None:
    config = ScenesConfig(names="full")
    for scenes, text in islice(scenes_and_texts(config, "train", 200), 800):
        assert text == text.strip()
        assert not re.search(r"\b(a|an|the) (a|an|the)\b|  |\ba (?!euro|ewe|one|uni|ufo|use|ut)[aeio]", text), text
        assert not re.search(r"\bexactly one \w+s\b(?<!ss|us|is)", text) or "glass" in text or "us" in text, text
        for scene in scenes:
            words = [word for name in scene.kinds for word in set(name.split(" "))]
            assert len(words) == len(set(words)), scene.kinds


@pytest.mark.parametrize("example", [entailment_example, question_example, referring_example, pair_example])
def test_other_languages_and_too_few_objects_are_reported_with_the_way_out(example: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"scenes\.language='de': the tasks' texts are English"):
        example(replace(CURATED, language="de"), "train", 0)
    with pytest.raises(ValueError, match=r"scenes\.objects=\(1, 1\).*(allow more objects|room for three objects)"):
        example(replace(CURATED, objects=(1, 1), compositions="held_out"), "train", 0)


@pytest.mark.parametrize(
    ("objects", "kinds"),
    [
        ((1, 1), {"background"}),
        ((1, 2), {"background", "existence", "count", "size", "more"}),
        ((8, 8), {"background", "existence", "count", "relation", "more"}),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_of_one_object_and_of_the_most_serve_every_task(
    objects: tuple[int, int], kinds: set[str], split: str
) -> None:
    config = replace(SHAPES, objects=objects)
    for index in range(40):
        for example in (entailment_example, question_example, referring_example):
            assert len(example(config, split, index)[0].objects) in range(objects[0], objects[1] + 1)
    pairs = [pair_example(config, split, PAIRS * group) for group in range(60)]
    assert {pair.statement.kind for pair in pairs} == kinds
