"""Cuts captions into phrases, and draws the part of a caption that training shows.

Phrases end at commas and semicolons that a blank follows, and at the words *and*, *or*, *but*, *while* and *with*; but
not at *with* behind a word in -ed, as in `covered with snow`, which would lose its sense. A part of a caption is a run
of one or more consecutive phrases, with the words between them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations

from diptych.data.cleanup import clean_caption
from diptych.data.record import Part, Record
from diptych.schema import DataConfig
from diptych.types import SAID

_WORD = r"(?:and|or|but|while|with)"
_BETWEEN = re.compile(rf"\s*[,;]+\s+(?:{_WORD}\s+)*|(?:\s+(?:and|or|but|while)|(?<!ed)\s+with)(?:\s+{_WORD})*\s+", re.I)


def check_shares(config: DataConfig) -> None:
    """Raises ValueError unless the shares of captions that are shown in part are shares of one whole."""
    partial, single = config.partial_captions, config.single_phrases
    if not (partial >= 0 and single >= 0 and partial + single <= 1):
        raise ValueError(
            f"data.partial_captions={partial} and data.single_phrases={single} are shares of the training captions: "
            "each is at least 0, and together they are at most 1"
        )


def parts_of(caption: str) -> tuple[Part, ...]:
    """Returns the caption as a whole, then every shorter run of its phrases.

    >>> [part.text for part in parts_of("A fox, a dog and a cat.")]
    ['A fox, a dog and a cat.', 'A fox', 'A fox, a dog', 'a dog', 'a dog and a cat.', 'a cat.']
    """
    spans = list(_spans(caption))
    phrases = tuple(caption[start:stop] for start, stop in spans)
    runs = [run for run in combinations(range(len(spans) + 1), 2) if run != (0, len(spans))]
    parts = (Part(caption[spans[first][0] : spans[last - 1][1]], phrases[first:last]) for first, last in runs)
    return Part(caption, phrases), *parts


def _spans(caption: str) -> Iterator[tuple[int, int]]:
    """Yields where each phrase starts and stops. What has neither letter nor digit is no phrase."""
    start = 0
    for stop, following in [*(match.span() for match in _BETWEEN.finditer(caption)), (len(caption), len(caption))]:
        if re.search(r"\w", caption[start:stop]):
            yield start, stop
        start = following


def parts_in(record: Record, caption: str) -> tuple[Part, ...]:
    """Returns the caption and its shorter runs, from the source if it knows them."""
    return (record.truth.parts() if record.truth else ()) or parts_of(caption)


def draw_part(record: Record, caption: str, config: DataConfig, rng: random.Random) -> Part:
    """Draws whether the whole caption, a run of its phrases or a single phrase is shown, and which one.

    All runs are equally likely, and so are all phrases. A caption of one phrase stays whole.
    """
    whole, *shorter = parts_in(record, caption)
    chance = rng.random()
    if chance < config.single_phrases:
        shorter = [part for part in shorter if len(part.phrases) == 1]
    elif chance >= config.single_phrases + config.partial_captions:
        shorter = []
    return rng.choice(shorter) if shorter else whole


def draw_phrase(record: Record, caption: str, config: DataConfig, rng: random.Random) -> str:
    """Draws one of a caption's phrases, cleaned up. A caption of one phrase is one itself."""
    whole, *shorter = parts_in(record, caption)
    single = [part for part in shorter if len(part.phrases) == 1]
    return said_by(rng.choice(single) if single else whole, config.max_words)[0]


def said_by(part: Part, max_words: int) -> tuple[str, ...]:
    """Returns what a text says, cleaned up: its phrases, or the text as one claim if these are more than `SAID`."""
    phrases = part.phrases if 0 < len(part.phrases) <= SAID else (part.text,)
    return tuple(clean_caption(phrase, max_words) for phrase in phrases)


def claims_of(record: Record, part: Part, max_words: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns what the part of a caption says, and what is known of its picture.

    That is what the part says, then what the source knows, then what all captions say.
    """
    said = said_by(part, max_words)
    shown = (clean_caption(phrase, max_words) for phrase in (record.truth.shown() if record.truth else ()))
    wholes = (parts_in(record, caption)[0] for caption in record.captions)
    told = (phrase for whole in wholes for phrase in said_by(whole, max_words))
    return said, tuple(dict.fromkeys((*said, *shown, *told)))
