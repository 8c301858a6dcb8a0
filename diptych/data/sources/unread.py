"""Notes what stands beside captions and belongs to another task, so that it is not read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.data.entries import LABEL_WORDS
from diptych.data.record import ENTAILMENT_LABELS

OTHERS: Sequence[tuple[str, tuple[str, ...], str]] = (
    ("entailment", ("label", "gold_label"), "call the text `hypothesis`"),
    ("grounding", ("box", "bbox", "boxes"), "call the text `phrase` and its box `box`"),
    ("VQA", ("question", "answers", "answer"), "write `question` and `answers` without a caption"),
)
"""Tasks, the keys that tell of them beside captions, and how their records are written."""
CHOICES = ("choices", "options", "multiple_choices", "candidates")
"""Keys of the texts to choose an answer from."""
SHORT = 3
"""Answers of so few words on average answer a question instead of describing a picture."""


def notes_on_unread(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a sentence for each task of which captions have the labels, boxes or questions.

    >>> list(notes_on_unread([{"caption": "a fox", "bbox": [1, 2, 3, 4]}, {"caption": "a fox"}]))
    ['`bbox` stands beside the captions and is not read: for grounding call the text `phrase` and its box `box`']
    """
    for task, keys, way in OTHERS:
        found = [key for key in keys if any(_tells(entry.get(key), task) for entry in entries)]
        if found:
            named = " and ".join(f"`{key}`" for key in found)
            verbs = ("stands", "is") if len(found) == 1 else ("stand", "are")
            yield f"{named} {verbs[0]} beside the captions and {verbs[1]} not read: for {task} {way}"


def _tells(value: Any, task: str) -> bool:
    """Returns whether a value is one of the task. Many lists of captions have labels of other kinds, such as classes.

    >>> _tells("Neutral", "entailment"), _tells("dog", "entailment"), _tells(None, "VQA")
    (True, False, False)
    """
    if task == "entailment":
        return isinstance(value, str) and value.strip().lower() in {*ENTAILMENT_LABELS, *LABEL_WORDS}
    return value not in (None, "", [])


def note_on_short_answers(column: str, answers: Sequence[str]) -> str:
    """Returns a sentence if the answers of a conversation seem to answer its questions, and else an empty text."""
    if not answers or sum(len(answer.split()) for answer in answers) > SHORT * len(answers):
        return ""
    return (
        f"the questions of `{column}` are not read, and its short answers are taken for captions: for VQA write"
        " `question` and `answers`, as data.source=jsonl reads them"
    )


def note_on_choices(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence if answers are the letters or numbers of choices that stand beside them, else an empty text.

    >>> note_on_choices([{"choices": ["red", "blue"], "answer": "B"}]).partition(":")[0]
    'the answers are letters or numbers of `choices`, which are not read'
    """
    for key in CHOICES:
        asked = [entry for entry in entries if isinstance(entry.get(key), list | tuple | dict)]
        answers = [entry.get("answers", entry.get("answer")) for entry in asked]
        marks = [answer[0] if isinstance(answer, list) and len(answer) == 1 else answer for answer in answers]
        if asked and all(re.fullmatch(r"\(?([A-Ha-h]|\d)[).]?", str(mark).strip()) for mark in marks):
            named = [entry for entry, mark in zip(asked, marks, strict=True) if mark not in list(entry[key])]
            if named:
                return (
                    f"the answers are letters or numbers of `{key}`, which are not read: write the chosen text itself"
                    " into `answers`"
                )
    return ""
