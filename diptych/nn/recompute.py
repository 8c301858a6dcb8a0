"""Activation recomputation: a batch computed piece by piece, each piece again in the backward pass.

The memory is that of one piece, the result that of the whole batch. P pairs, R listed tokens, B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.types import Joint, OutputPositions, TokenPositions

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *args: Any) -> Result:
    """Calls the function without keeping its activations; the backward pass computes them again."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result


def cuts(count: int, pieces: int) -> list[slice]:
    """Cuts `count` samples, in order, into pieces of as equal sizes as can be. None is empty."""
    ends = [count * number // pieces for number in range(pieces + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def in_pieces(function: Callable[..., Tensor], pieces: int, *batches: Any) -> Tensor:
    """Applies a function piece by piece whose every output row depends on one sample. A batch of None stays None."""
    if pieces == 1:
        return function(*batches)
    arguments = (
        tuple(None if batch is None else batch[cut] for batch in batches) for cut in cuts(len(batches[0]), pieces)
    )
    return torch.cat([recomputed(function, *piece) for piece in arguments])


def positions_in(positions: TokenPositions, cut: slice) -> tuple[TokenPositions, Int[Tensor, "r"]]:
    """Picks the positions in some of the pairs, counted from the first of these, and their places in the list."""
    places = ((positions.pair >= cut.start) & (positions.pair < cut.stop)).nonzero().squeeze(1)
    return TokenPositions(positions.pair[places] - cut.start, positions.position[places]), places


def tokens_in_pieces(
    function: Callable[[Any, TokenPositions], Tensor], pieces: int, states: Any, positions: TokenPositions
) -> Tensor:
    """Applies a function of states and listed tokens piece by piece. The result is in the order of the list."""
    if pieces == 1:
        return function(states, positions)
    parts = [(states[cut], *positions_in(positions, cut)) for cut in cuts(len(states), pieces)]
    hidden = torch.cat([recomputed(function, state, listed) for state, listed, _ in parts])
    return hidden[torch.cat([places for *_, places in parts]).argsort()]


def fuse_in_pieces(
    fuse: Callable[..., Joint],
    pieces: int,
    texts: Any,
    images: Any,
    text_index: Int[Tensor, "P"],
    image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
    positions: TokenPositions | None,
) -> Joint:
    """Fuses the pairs piece by piece. Each piece gets its own images only, so that no other image is projected."""

    def fuse_piece(cut: slice, listed: TokenPositions | None) -> Joint:
        used, where = image_index[cut].unique(return_inverse=True)
        return fuse(texts, images[used], text_index[cut], where, listed)

    pooled, hidden, order = list[Tensor](), list[Tensor](), list[Tensor]()
    for cut in cuts(len(text_index), pieces):
        listed = None
        if positions is not None:
            listed, places = positions_in(positions, cut)
            order.append(places)
        joint = recomputed(fuse_piece, cut, listed)
        pooled.append(joint.pooled)
        if joint.hidden is not None:
            hidden.append(joint.hidden)
    if positions is None:
        return Joint(torch.cat(pooled), None)
    return Joint(torch.cat(pooled), torch.cat(hidden)[torch.cat(order).argsort()])


def can_be_cut(positions: OutputPositions, maps: Any) -> bool:
    """Whether cutting a fusion saves memory. With maps or all tokens wanted, these outputs are what takes it."""
    return not maps and positions != "all"
