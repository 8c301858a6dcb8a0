"""A batch computed piece by piece, each computed again on the way back: the memory of one piece, the result of all.

P pairs, R rows, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.types import Joint, RowList, Rows

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *args: Any) -> Result:
    """What the function gives; of what it computes on the way, nothing is kept for the gradient."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Result = checkpoint(function, *args, use_reentrant=False)
    return result


def cuts(count: int, pieces: int) -> list[slice]:
    """Of `count` samples, in order, as equal as can be; none is empty."""
    ends = [count * number // pieces for number in range(pieces + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def in_pieces(function: Callable[..., Tensor], pieces: int, *batches: Any) -> Tensor:
    """A function of samples, each of whose rows depends on one of them. What is None stays None."""
    if pieces == 1:
        return function(*batches)
    parts = (tuple(None if one is None else one[cut] for one in batches) for cut in cuts(len(batches[0]), pieces))
    return torch.cat([recomputed(function, *part) for part in parts])


def listed_in(rows: RowList, cut: slice) -> tuple[RowList, Int[Tensor, "r"]]:
    """The rows of some of the pairs, which count from the first of them, and their places in the list."""
    places = ((rows.pair >= cut.start) & (rows.pair < cut.stop)).nonzero().squeeze(1)
    return RowList(rows.pair[places] - cut.start, rows.position[places]), places


def rows_in_pieces(function: Callable[[Any, RowList], Tensor], pieces: int, states: Any, rows: RowList) -> Tensor:
    """The listed rows of states, in the order of the list."""
    if pieces == 1:
        return function(states, rows)
    found = [(states[cut], *listed_in(rows, cut)) for cut in cuts(len(states), pieces)]
    made = torch.cat([recomputed(function, state, listed) for state, listed, _ in found])
    return made[torch.cat([places for *_, places in found]).argsort()]


def fuse_in_pieces(
    fuse: Callable[..., Joint],
    pieces: int,
    texts: Any,
    images: Any,
    text_index: Int[Tensor, "P"],
    image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
    rows: RowList | None,
) -> Joint:
    """The pairs piece by piece. Each piece is given the images that are in it, so that no other one is projected."""

    def one(cut: slice, listed: RowList | None) -> Joint:
        shown, where = image_index[cut].unique(return_inverse=True)
        return fuse(texts, images[shown], text_index[cut], where, listed)

    joints, order = list[Joint](), list[Tensor]()
    for cut in cuts(len(text_index), pieces):
        listed = None
        if rows is not None:
            listed, places = listed_in(rows, cut)
            order.append(places)
        joints.append(recomputed(one, cut, listed))
    pooled = torch.cat([joint.pooled for joint in joints])
    if rows is None:
        return Joint(pooled, None)
    return Joint(pooled, torch.cat(list(_rows(joints)))[torch.cat(order).argsort()])


def _rows(joints: list[Joint]) -> Iterator[Tensor]:
    for joint in joints:
        assert joint.rows is not None
        yield joint.rows


def can_be_cut(rows: Rows, maps: Any) -> bool:
    """Whether a fusion may be computed in pieces: where all rows or maps are wanted, they are what takes the memory."""
    return not maps and rows != "all"
