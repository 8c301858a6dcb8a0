"""Masked image modelling: which patches to hide, and the loss at the hidden ones (BEiT §2.3).

S side of the grid of patches, N = S² patches, R hidden patches, K size of the codebook.
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
"""The next of a stream of numbers that are uniform in [0, 1)."""


def hidden_count(side: int, share: float) -> int:
    """Patches that are hidden: the nearest whole number to the share, but one at least and one left at least.

    >>> hidden_count(14, 0.4), hidden_count(4, 0.4)
    (78, 6)
    """
    return min(max(1, round(share * side**2)), side**2 - 1)


def block_mask(side: int, share: float, min_block: int, min_aspect: float, draw: Draw) -> Bool[Tensor, "S S"]:
    """Blocks of patches until exactly `hidden_count` are hidden (BEiT, Algorithm 1).

    A block's size is drawn evenly between `min_block` (or what is left to hide, where that is less) and what is left,
    the logarithm of its height by its width evenly between those of `min_aspect` and its inverse, then its place
    evenly among those where it lies within the grid. Blocks may overlap. Unlike Algorithm 1, which stops once the share
    is passed, the last block loses what it has too much, from its end.
    """
    if not 0 < min_aspect <= 1:
        raise ValueError(f"task.min_aspect must lie above 0 and be 1 at most, not {min_aspect}")
    mask = torch.zeros(side, side, dtype=torch.bool)
    left = hidden_count(side, share)
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
