"""Measures how well scores separate right candidates from wrong ones: the area under the ROC curve. Higher is better.

Q queries, N candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def roc_areas(scores: Float[Tensor, "Q N"], relevant: Bool[Tensor, "Q N"]) -> Float[Tensor, "Q"]:
    """Computes for each query the probability, 0..1, that a relevant candidate scores above an irrelevant one.

    A tie counts one half, so scores that say nothing have an area of 0.5. Raises ValueError for a query without a
    relevant or without an irrelevant candidate.

    >>> roc_areas(torch.tensor([[0.9, 0.5, 0.5, 0.1]]), torch.tensor([[True, True, False, False]])).tolist()
    [0.875]
    """
    if not (relevant.any(dim=1) & ~relevant.all(dim=1)).all():
        raise ValueError("a query needs a relevant and an irrelevant candidate: leave others out")
    areas = []
    for row, right in zip(scores.double(), relevant, strict=True):
        difference = row[right][:, None] - row[~right][None]
        areas.append(((difference > 0).double() + (difference == 0).double() / 2).mean())
    return torch.stack(areas)
