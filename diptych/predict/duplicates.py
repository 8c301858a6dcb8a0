"""Folds near-duplicates among the hits of a search: one picture at several sizes or qualities is one hit.

Pictures are compared by their pixels, not by a model's vectors, which may be equal for different pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from diptych.data.record import BadRecord
from diptych.predict.inputs import Picture, open_any

SIDE = 16
"""Pictures are compared at this many pixels a side."""
MOST_DIFFERENT = 20
"""The largest difference, of 255, in any pixel and colour at that size. Photographs at a quarter to twice their size,
with a JPEG quality from 30 to 80, stay below 7. Those without their left 3 % are at 40 or above."""
SPARE = 3
"""A search that folds looks at this many times the hits that it shows."""
SHOWN = 3
"""Near-duplicates that a line of the terminal names."""
ASPECT = 0.05
"""The largest difference of the logarithms of width / height."""


Thumbnail = tuple[float, Int[np.ndarray, "S S 3"]]
"""A picture's logarithm of width / height, and the picture at `SIDE` pixels."""


def thumbnail(picture: Picture) -> Thumbnail:
    """Reduces a picture to what is compared. Raises BadRecord."""
    image = open_any(picture)
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return float(np.log(image.width / image.height)), np.asarray(small, dtype=np.int16)


def fold(pictures: Iterable[Picture], k: int) -> list[list[int]]:
    """Groups pictures, the best first, and returns the places of the first k groups, each in the given order.

    A picture joins the first group whose first picture it nearly equals. One that cannot be opened is a group alone.
    Pictures behind the first one of group k + 1 are not opened.
    """
    groups: list[list[int]] = []
    known: list[Thumbnail | None] = []
    for place, picture in enumerate(pictures):
        try:
            seen = thumbnail(picture)
        except BadRecord:
            seen = None
        same = next((number for number, other in enumerate(known) if _both_nearly_equal(seen, other)), None)
        if same is not None:
            groups[same].append(place)
        elif len(groups) == k:
            break
        else:
            groups.append([place])
            known.append(seen)
    return groups


def _both_nearly_equal(one: Thumbnail | None, other: Thumbnail | None) -> bool:
    return one is not None and other is not None and nearly_equal(one, other)


def nearly_equal(one: Thumbnail, other: Thumbnail) -> bool:
    """Returns whether two pictures look the same at `SIDE` pixels."""
    return abs(one[0] - other[0]) <= ASPECT and int(np.abs(one[1] - other[1]).max()) <= MOST_DIFFERENT


def copies_noted(names: Sequence[str]) -> str:
    """Says how many near-duplicates a hit has, and the first of them; nothing for none.

    >>> copies_noted(["b.jpg", "c.jpg"])
    '  (and 2 near-duplicates: b.jpg, c.jpg)'
    """
    if not names:
        return ""
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return f"  (and {len(names)} near-duplicate{'s' if len(names) > 1 else ''}: {shown})"


def named_copies(groups: Sequence[Sequence[int]], names: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
    """Returns the place of each group's first picture, with the names of its near-duplicates."""
    return [(group[0], tuple(names[place] for place in group[1:])) for group in groups]
