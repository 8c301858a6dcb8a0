"""Tells whether the pictures of an index are still there, and still those that were embedded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from diptych.apps.index.items import Item
from diptych.data.pictures import file_of

NAMED = 5
"""Number of ids that a note names."""
STAMP = re.compile(r"\d+:\d+")
"""The stamps that sources give; an item that a program made may have any other."""


def presence(item: Item, file: Path) -> Literal["there", "gone", "changed"]:
    """Compares a picture's file with the size and time that the index stores."""
    try:
        status = os.stat(file_of(str(file)))  # noqa: PTH116 — as in items.py
    except (OSError, ValueError):  # ValueError: no file can have this name
        return "gone"
    stamp = f"{status.st_size}:{status.st_mtime_ns}"
    return "changed" if STAMP.fullmatch(item.stamp) and item.stamp != stamp else "there"


def named(ids: Sequence[str]) -> str:
    """Lists the first few of some ids.

    >>> named(["a", "b"]), named(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = len(ids) - NAMED
    return ", ".join(ids[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def notes_of_hits(gone: Sequence[str], changed: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    """Says, by their ids, which hits are gone or changed, and what re-ranking left out."""
    prune = "`diptych index add PLACE SOURCE --prune` removes what is gone"
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out):,} left out of re-ranking, whose files cannot be opened: {named(left_out)} ({prune})"
        )
    if gone:
        notes.append(f"{len(gone):,} of the hits are no longer there: {named(gone)} ({prune})")
    if changed:
        again = "`diptych index add PLACE SOURCE` embeds them again"
        notes.append(f"{len(changed):,} of the hits changed since they were embedded: {named(changed)} ({again})")
    return tuple(notes)
