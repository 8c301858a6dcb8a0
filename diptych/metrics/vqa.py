"""VQA accuracy: agreement with ten people after the official normalisation of answers. Higher is better.

A prediction is judged against each set of all people but one: it is right as far as three of them gave it, and the
results are averaged (Antol et al. 2015, arXiv 1505.00468; the evaluation of VQA v2).

The normalisation in two modes. `released` is what published ALBEF numbers were computed with: people's answers keep
number words, articles, capitals and contractions, and are left as they are where all agree, although predictions are
normalised; so "two" is wrong even where everybody said "two". `intended` treats both sides alike.

Q questions.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float

from diptych.metrics.accuracy import Estimate, estimate

Normalisation = Literal["released", "intended"]

KEPT = 1 << 16
"""Answers whose normal form is remembered: a few thousand different ones make up most of two million."""
FULL = 3
"""People who must agree with a prediction for it to be wholly right."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})

_SPELLINGS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    spelling[:place] + spelling[place + 1 :]: spelling
    for spelling in _SPELLINGS.split()
    for place, letter in enumerate(spelling)
    if letter == "'"
}
"""By each spelling that lacks one apostrophe. Contractions that would then be another word (well, shed) stay out."""
CONTRACTIONS["somebody'd"] = "somebodyd"  # the other way round in the official table

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(KEPT)
def process_punctuation(text: str) -> str:
    """Without punctuation, but for apostrophes, colons and the like, and periods before a digit.

    A mark leaves a blank behind, unless it stands beside one somewhere in the text, or the text has a comma between
    digits: then all marks go without a trace.

    >>> process_punctuation("black/white, 3.5 u.s.")
    'black white 3.5 us'
    >>> process_punctuation("1,000 dogs/cats")
    '1000 dogscats'
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    gone = {mark: number or f"{mark} " in text or f" {mark}" in text for mark in PUNCTUATION}
    return _PERIOD.sub("", text.translate({ord(mark): "" if gone[mark] else " " for mark in PUNCTUATION}))


def process_words(text: str) -> str:
    """In lower case, with digits for number words, without articles, with apostrophes in contractions.

    >>> process_words("The two dont know")
    "2 don't know"
    """
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(KEPT)
def normalise_answer(text: str) -> str:
    """An answer as it is compared: what the official evaluation makes of a prediction.

    >>> normalise_answer(" A stop-sign!\\n")
    'stop sign'
    """
    return process_words(process_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def answer_score(prediction: str, humans: Sequence[str], normalisation: Normalisation) -> float:
    """Agreement of one prediction with the people asked, 0 to 1.

    A single person's answer is right or wrong. Raises ValueError for none, two and three people, among whom
    nobody can agree with three others.

    >>> humans = ["two"] * 3 + ["3"] * 7
    >>> answer_score("two", humans, "released"), round(answer_score("two", humans, "intended"), 9)
    (0.0, 0.9)
    """
    if isinstance(humans, str) or not (len(humans) == 1 or len(humans) > FULL):
        raise ValueError(
            f"VQA accuracy compares with a list of one human answer, or of at least {FULL + 1}, not with {humans!r};"
            " repeat the answers until there are enough"
        )
    if normalisation == "intended":
        humans = [normalise_answer(human) for human in humans]
    elif len(set(humans)) > 1:
        humans = [process_punctuation(human) for human in humans]
    same = humans.count(normalise_answer(prediction))
    if len(humans) == 1:
        return float(same)
    # Of the sets of all people but one, `same` lack one of those who agree.
    agreement = same * min(FULL, same - 1) + (len(humans) - same) * min(FULL, same)
    return agreement / (FULL * len(humans))


@dataclass(frozen=True)
class VqaAccuracy:
    """VQA accuracy over all questions and by type."""

    overall: Estimate
    question_types: dict[str, Estimate]
    """By how the question begins ("how many", "is the"), as the annotations name it."""
    answer_types: dict[str, Estimate]
    """By yes/no, number and other."""
    questions: Float[np.ndarray, "Q"]
    """In percent, in the order given."""


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    normalisation: Normalisation = "released",
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> VqaAccuracy:
    """VQA accuracy of predictions, where people gave `answers[q]` to question q (ten in VQA v2).

    `released` is the default so that a number can stand beside published ones. `groups` as in `estimate`: the pictures.
    Raises ValueError for sequences of different lengths, and as `answer_score` does.

    >>> measured = vqa_accuracy(["2", "red"], [["2"] * 10, ["red"] + ["blue"] * 9], question_types=["how many", "what"])
    >>> round(measured.overall.value, 9), round(measured.question_types["what"].value, 9)
    (65.0, 30.0)
    """
    given = {"answers": answers, "question types": question_types, "answer types": answer_types, "groups": groups}
    for name, values in given.items():
        if values is not None and len(values) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions, but {len(values)} {name}: there is one a question")
    scores = np.array(
        [answer_score(one, humans, normalisation) for one, humans in zip(predictions, answers, strict=True)],
        dtype=np.float64,
    )

    def estimated(places: Sequence[int]) -> Estimate:
        theirs = None if groups is None else [groups[place] for place in places]
        return estimate(scores[list(places)], theirs, resamples, seed)

    return VqaAccuracy(
        overall=estimated(range(len(scores))),
        question_types={name: estimated(places) for name, places in _places(question_types).items()},
        answer_types={name: estimated(places) for name, places in _places(answer_types).items()},
        questions=100.0 * scores,
    )


def _places(types: Sequence[str] | None) -> dict[str, list[int]]:
    """Where each type occurs, in the order of first occurrence."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(types or ()):
        found.setdefault(name, []).append(place)
    return found
