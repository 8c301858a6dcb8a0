"""ALBEF's text clean-up, character for character (tests/golden/albef/text_cleanup.json)."""

from __future__ import annotations

import re

_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_BLANKED = str.maketrans("-/", "  ")


def clean_caption(text: str, max_words: int) -> str:
    """A caption in lower case without punctuation, white space collapsed, cut to `max_words` words.

    Runs of two or more white-space characters become one blank; a single tab or line break stays, as released.
    """
    text = _plain(text).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return _cut(text, max_words)


def clean_question(text: str, max_words: int) -> str:
    """A question likewise, but with its inner white space as it is: two blanks enclose an (empty) word, as released."""
    return _cut(_plain(text).rstrip(" "), max_words)


def _plain(text: str) -> str:
    return _DROPPED.sub("", text.lower()).translate(_BLANKED)


def _cut(text: str, max_words: int) -> str:
    words = text.split(" ")
    return text if len(words) <= max_words else " ".join(words[:max_words])
