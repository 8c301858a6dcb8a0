"""Computes the vectors of items, one portion at a time.

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
"""Number of items that are embedded and stored together. A killed process loses at most this much work."""


@dataclass(frozen=True)
class Portion:
    """Holds items with their vectors, and the errors of the items that could not be read."""

    items: list[Item]
    vectors: Float32[np.ndarray, "N E"]
    """Normalised vectors, one row per item."""
    skipped: list[BadRecord]


def embed(items: Sequence[Item], root: Path, predictor: Predictor) -> Portion:
    """Embeds items in their order. Pictures that cannot be read are left out and reported by their ids."""
    vectors = np.empty((len(items), predictor.model.embed_dim), np.float32)
    unread: list[int] = []
    skipped: list[BadRecord] = []
    pictures = [row for row, item in enumerate(items) if item.kind == "picture"]
    if pictures:
        readable, picture_vectors, errors = predictor.embed_readable([root / items[row].content for row in pictures])
        vectors[[pictures[number] for number in readable]] = picture_vectors.numpy()
        unread = sorted({*pictures} - {pictures[number] for number in readable})
        skipped = [
            BadRecord(items[row].id, error.reason, error.detail) for row, error in zip(unread, errors, strict=True)
        ]
    texts = [row for row, item in enumerate(items) if item.kind == "text"]
    if texts:
        vectors[texts] = predictor.embed_texts([items[row].content for row in texts]).numpy()
    kept = sorted({*range(len(items))} - {*unread})
    finite = np.isfinite(vectors[kept]).all(axis=1)
    if not finite.all():
        broken = items[kept[int(np.argmin(finite))]].id
        raise ValueError(f"the vector of {broken} is not finite: the model's weights are broken, or they overflow")
    return Portion([items[row] for row in kept], vectors[kept], skipped)
