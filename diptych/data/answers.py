"""Answers to questions about pictures, as decoder and closed set want them. No torch here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from diptych.data.record import Question
from diptych.data.tokenizer import Tokenizer

AGREEING = 3
"""Annotators who must have given an answer for it to be wholly right (VQA accuracy)."""
SHORTEST = 3
"""Tokens of an answer of one word: [CLS], the word, [SEP]."""


def answer_vocabulary(questions: Iterable[Question], size: int) -> tuple[str, ...]:
    """The `size` most frequent answers to all questions, the most frequent first, counted in shares of annotators.

    Equally frequent ones stand in alphabetical order: the order of the data decides nothing. Raises ValueError where
    there are none.

    >>> given = (("two", "2", "two"), ("two",), ("red",))
    >>> answer_vocabulary([Question("", "", "?", answers, "") for answers in given], size=2)
    ('two', 'red')
    """
    counts: defaultdict[str, float] = defaultdict(float)
    for question in questions:
        for answer, weight in question.targets:
            counts[answer] += weight
    if not counts or size < 1:
        raise ValueError(f"cannot choose {size} frequent answers: the training questions have {len(counts)}")
    return tuple(sorted(counts, key=lambda answer: (-round(counts[answer], 6), answer))[:size])


def soft_scores(question: Question) -> dict[str, float]:
    """How right each answer is, 0 to 1: its VQA accuracy, the mean over all sets of annotators but one.

    A single annotator is wholly right. Where the record has weights, they are the scores, up to 1.

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
    """The scores by class of a closed set; other answers are left out.

    >>> score_row({"red": 1.0, "pink": 0.3}, ("two", "red"))
    [0.0, 1.0]
    """
    return [scores.get(answer, 0.0) for answer in vocabulary]


def encode_answers(answers: Sequence[str], tokenizer: Tokenizer, max_tokens: int | None = None) -> list[list[int]]:
    """[CLS] + pieces + [SEP], whatever the tokenizer does with other texts: [SEP] is where an answer ends.

    Answers longer than `max_tokens` lose pieces before their [SEP]. Raises ValueError for one without words.
    """
    if max_tokens is not None and max_tokens < SHORTEST:
        raise ValueError(f"max_tokens is {max_tokens}: [CLS], a word and [SEP] take {SHORTEST}")
    closed = []
    for answer, ids in zip(answers, tokenizer.encode(answers), strict=True):
        opened = ids[:-1] if tokenizer.separator else ids
        if len(opened) + 1 < SHORTEST:
            raise ValueError(f"{answer!r} is no answer: it holds no word")
        closed.append([*opened[: None if max_tokens is None else max_tokens - 1], tokenizer.sep_id])
    return closed
