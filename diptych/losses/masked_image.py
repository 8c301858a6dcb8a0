"""Masks patches and computes the loss of masked image modelling (BEiT §2.3).

S side of the grid of patches, N = S² patches, R masked patches, K size of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.types import Term

Draw = Callable[[], float]
"""Returns the next number of a stream that is uniform in [0, 1)."""


def masked_count(side: int, share: float) -> int:
    """Returns how many patches to mask: the share, rounded, but at least one and at most all but one.

    >>> masked_count(14, 0.4), masked_count(4, 0.4)
    (78, 6)
    """
    return min(max(1, round(share * side**2)), side**2 - 1)


def block_mask(side: int, share: float, min_block: int, min_aspect: float, draw: Draw) -> Bool[Tensor, "S S"]:
    """Masks rectangular blocks of patches until exactly `masked_count` are masked (BEiT, Algorithm 1).

    The size of a block is uniform between `min_block` and the number of patches left to mask (or is that number, where
    fewer are left). The logarithm of height / width is uniform between those of `min_aspect` and its inverse. The place
    is uniform within the grid. Blocks may overlap. Algorithm 1 stops once the share is passed; here the last block is
    cut, so that every image has the same number of masked patches.
    """
    if not 0 < min_aspect <= 1:
        raise ValueError(f"task.min_aspect must lie above 0 and be 1 at most, not {min_aspect}")
    mask = torch.zeros(side, side, dtype=torch.bool)
    left = masked_count(side, share)
    while left:
        size = min(min_block, left) + draw() * (left - min(min_block, left))
        root_aspect = min_aspect ** (draw() - 0.5)  # its square is log-uniform between min_aspect and the inverse
        height = _within(math.sqrt(size) * root_aspect, side)
        width = _within(math.sqrt(size) / root_aspect, side)
        top, start = int(draw() * (side - height + 1)), int(draw() * (side - width + 1))
        block = mask[top : top + height, start : start + width]
        new = (~block).nonzero()[:left]
        block[new[:, 0], new[:, 1]] = True
        left -= len(new)
    return mask


def _within(length: float, side: int) -> int:
    return min(max(1, round(length)), side)


def masked_image_loss(logits: Float[Tensor, "R K"], codes: Int[Tensor, "R"]) -> Term:
    """Cross-entropy to the visual tokens of the hidden patches (BEiT §2.3)."""
    loss = F.cross_entropy(logits.float(), codes, reduction="sum")
    return Term(loss, loss.new_tensor(len(codes)))
