"""Prepares answers to questions about pictures for a decoder or a closed set. This file imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from diptych.data.record import Question
from diptych.data.tokenizer import Tokenizer

AGREEING = 3
"""An answer is fully right if this many annotators gave it (VQA accuracy)."""
SHORTEST = 3
"""The number of tokens of a one-word answer: [CLS], the word, [SEP]."""


def answer_vocabulary(questions: Iterable[Question], size: int) -> tuple[str, ...]:
    """Returns the `size` most frequent answers, the most frequent first. Each question counts its annotators' shares.

    Equally frequent answers are in alphabetical order, so the order of the questions does not matter. Raises ValueError
    if there is no answer.

    >>> answers = (("two", "2", "two"), ("two",), ("red",))
    >>> answer_vocabulary([Question("", "", "?", texts, "") for texts in answers], size=2)
    ('two', 'red')
    """
    counts: defaultdict[str, float] = defaultdict(float)
    for question in questions:
        for answer, weight in question.targets:
            counts[answer] += weight
    if not counts or size < 1:
        raise ValueError(
            f"cannot choose {size} frequent answers: the training questions have {len(counts)}. "
            'Give each question its answers, as in {"image": …, "question": …, "answers": ["red", "red", "blue"]}'
        )
    return tuple(sorted(counts, key=lambda answer: (-round(counts[answer], 6), answer))[:size])


def soft_scores(question: Question) -> dict[str, float]:
    """Returns the VQA accuracy of each answer, from 0 to 1: the mean over all sets that leave out one annotator.

    The answer of a single annotator has a score of 1. If the record has weights, they are the scores, cut at 1.

    >>> scores = soft_scores(Question("", "", "?", ("red",) * 7 + ("blue",) * 2 + ("pink",), ""))
    >>> {answer: round(score, 9) for answer, score in scores.items()}
    {'red': 1.0, 'blue': 0.6, 'pink': 0.3}
    """
    people = len(question.answers)
    if question.weights or people == 1:
        return {answer: min(weight, 1.0) for answer, weight in question.targets}
    return {
        answer: (count * min(count - 1, AGREEING) + (people - count) * min(count, AGREEING)) / (AGREEING * people)
        for answer, count in Counter(question.answers).items()
    }


def score_row(scores: Mapping[str, float], vocabulary: Sequence[str]) -> list[float]:
    """Returns the score of each answer of a closed set. Answers outside the set are ignored.

    >>> score_row({"red": 1.0, "pink": 0.3}, ("two", "red"))
    [0.0, 1.0]
    """
    return [scores.get(answer, 0.0) for answer in vocabulary]


def encode_answers(answers: Sequence[str], tokenizer: Tokenizer, max_tokens: int | None = None) -> list[list[int]]:
    """Encodes each answer as [CLS], its word pieces and [SEP], which ends an answer whatever the tokenizer's policy.

    Answers longer than `max_tokens` lose word pieces before their [SEP]. Raises ValueError for an answer without words.
    """
    if max_tokens is not None and max_tokens < SHORTEST:
        raise ValueError(f"max_tokens is {max_tokens}: [CLS], a word and [SEP] take {SHORTEST}")
    encoded = []
    for answer, ids in zip(answers, tokenizer.encode(answers), strict=True):
        without_end = ids[:-1] if tokenizer.separator else ids
        if len(without_end) + 1 < SHORTEST:
            raise ValueError(f"{answer!r} is no answer: it holds no word")
        encoded.append([*without_end[: None if max_tokens is None else max_tokens - 1], tokenizer.sep_id])
    return encoded
