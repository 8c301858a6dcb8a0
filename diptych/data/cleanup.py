"""Cleans texts up as ALBEF does, character for character (tests/golden/albef/text_cleanup.json)."""

from __future__ import annotations

import re

from diptych.data.record import AnyRecord, PlainText, Question

_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_BLANKED = str.maketrans("-/", "  ")


def clean_text(text: str, record: AnyRecord, max_words: int) -> str:
    """Cleans a text of the record up for the tokenizer. A `PlainText` keeps its punctuation and all its words."""
    if isinstance(record, PlainText):
        return " ".join(text.split())
    return (clean_question if isinstance(record, Question) else clean_caption)(text, max_words)


def clean_caption(text: str, max_words: int) -> str:
    """Puts a caption into lower case, removes punctuation, collapses white space and keeps the first `max_words` words.

    Two or more white-space characters become one blank; a single tab or line break stays, as in the released code.
    """
    text = _without_punctuation(text).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return _cut(text, max_words)


def clean_question(text: str, max_words: int) -> str:
    """Cleans a question like a caption, but keeps its inner white space.

    As in the released code, two blanks in a row count as enclosing an empty word.
    """
    return _cut(_without_punctuation(text).rstrip(" "), max_words)


def _without_punctuation(text: str) -> str:
    return _DROPPED.sub("", text.lower()).translate(_BLANKED)


def _cut(text: str, max_words: int) -> str:
    words = text.split(" ")
    return text if len(words) <= max_words else " ".join(words[:max_words])
