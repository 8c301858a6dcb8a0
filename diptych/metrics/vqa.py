"""Measures VQA accuracy: agreement with ten people after the official normalisation of answers. Higher is better.

A prediction is compared with each set of all people but one: it is fully right if three of them gave it, and the
results are averaged (Antol et al. 2015, arXiv 1505.00468; the evaluation of VQA v2).

There are two normalisations. Published ALBEF numbers were computed with `released`: people's answers keep number words,
articles, capitals and contractions, and stay as they are if all people agree, although predictions are normalised. So
"two" is wrong even if everybody said "two". `intended` normalises both sides.

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
"""Answers whose normal form is cached: a few thousand different ones make up most of two million."""
FULL = 3
"""The number of people who must agree with a prediction for it to be fully right."""
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
"""Maps each spelling that lacks one apostrophe to the right one. Contractions that would be another word (well, shed)
are left out."""
CONTRACTIONS["somebody'd"] = "somebodyd"  # the other way round in the official table

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(KEPT)
def process_punctuation(text: str) -> str:
    """Removes punctuation except apostrophes, colons and the like, and periods before a digit.

    A blank replaces a mark, unless that mark stands beside a blank somewhere in the text, or the text has a comma
    between digits; then nothing replaces it.

    >>> process_punctuation("black/white, 3.5 u.s.")
    'black white 3.5 us'
    >>> process_punctuation("1,000 dogs/cats")
    '1000 dogscats'
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    gone = {mark: number or f"{mark} " in text or f" {mark}" in text for mark in PUNCTUATION}
    return _PERIOD.sub("", text.translate({ord(mark): "" if gone[mark] else " " for mark in PUNCTUATION}))


def process_words(text: str) -> str:
    """Lowers the case, writes number words as digits, drops articles and restores apostrophes in contractions.

    >>> process_words("The two dont know")
    "2 don't know"
    """
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(KEPT)
def normalise_answer(text: str) -> str:
    """Normalises an answer as the official evaluation normalises a prediction.

    >>> normalise_answer(" A stop-sign!\\n")
    'stop sign'
    """
    return process_words(process_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def answer_score(prediction: str, humans: Sequence[str], normalisation: Normalisation) -> float:
    """Computes the agreement of one prediction with people's answers, 0 to 1.

    With a single person, a prediction is right or wrong. Raises ValueError for no, two and three people, of whom no
    three others can agree.

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
    # Among the sets of all people but one, `same` sets lack one of those who agree.
    agreement = same * min(FULL, same - 1) + (len(humans) - same) * min(FULL, same)
    return agreement / (FULL * len(humans))


@dataclass(frozen=True)
class VqaAccuracy:
    """VQA accuracy over all questions and by type."""

    overall: Estimate
    question_types: dict[str, Estimate]
    """Accuracy by the beginning of the question ("how many", "is the"), as the annotations name it."""
    answer_types: dict[str, Estimate]
    """Accuracy by yes/no, number and other."""
    questions: Float[np.ndarray, "Q"]
    """The accuracy of each question in percent, in order."""


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
    """Measures the VQA accuracy of predictions; people gave `answers[q]` (ten in VQA v2) to question q.

    `released` is the default so that results compare with published ones. `groups` are those of `estimate`: the
    pictures. Raises ValueError for sequences of different lengths, and as `answer_score` does.

    >>> measured = vqa_accuracy(["2", "red"], [["2"] * 10, ["red"] + ["blue"] * 9], question_types=["how many", "what"])
    >>> round(measured.overall.value, 9), round(measured.question_types["what"].value, 9)
    (65.0, 30.0)
    """
    sequences = {"answers": answers, "question types": question_types, "answer types": answer_types, "groups": groups}
    for name, values in sequences.items():
        if values is not None and len(values) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions, but {len(values)} {name}: there is one a question")
    scores = np.array(
        [answer_score(text, humans, normalisation) for text, humans in zip(predictions, answers, strict=True)],
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
    """Lists the places of each type, in the order of first occurrence."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(types or ()):
        places.setdefault(name, []).append(place)
    return places
