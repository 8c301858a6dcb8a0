"""Items to vectors, a portion at a time.

N items that could be read, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.items import Item
from diptych.data.record import BadRecord
from diptych.predict import Predictor

PORTION = 1_000
"""Items that are embedded and written down together: what a kill costs at most."""


@dataclass(frozen=True)
class Portion:
    """Some items with their vectors, and those that could not be read."""

    items: list[Item]
    vectors: Float32[np.ndarray, "N E"]
    """Normalised, a row an item."""
    skipped: list[BadRecord]


def embed(items: Sequence[Item], root: Path, predictor: Predictor) -> Portion:
    """The vectors of items in their order; pictures that cannot be read are left out and named by their ids."""
    found = np.empty((len(items), predictor.model.embed_dim), np.float32)
    lost: set[int] = set()
    skipped: list[BadRecord] = []
    pictures = [place for place, item in enumerate(items) if item.kind == "picture"]
    if pictures:
        files = [root / items[place].content for place in pictures]
        readable, vectors, errors = predictor.embed_readable(files)
        found[[pictures[one] for one in readable]] = vectors.numpy()
        unread = [pictures[one] for one in sorted({*range(len(pictures))} - {*readable})]
        skipped = [_named(error, items[place].id) for place, error in zip(unread, errors, strict=True)]
        lost.update(unread)
    texts = [place for place, item in enumerate(items) if item.kind == "text"]
    if texts:
        found[texts] = predictor.embed_texts([items[place].content for place in texts]).numpy()
    kept = [place for place in range(len(items)) if place not in lost]
    finite = np.isfinite(found[kept]).all(axis=1)
    if not finite.all():
        bad = items[kept[int(np.argmin(finite))]].id
        raise ValueError(f"the vector of {bad} is not finite: the model's weights are broken, or overflow")
    return Portion([items[place] for place in kept], found[kept], skipped)


def _named(error: BadRecord, id: str) -> BadRecord:
    return BadRecord(id, error.reason, error.detail)
