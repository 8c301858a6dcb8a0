"""The part of a tensor that this process holds where a model is cut into parts (FSDP): some of its first dimension."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def own_part(tensor: Tensor) -> Tensor:
    """The same memory, without what other processes hold; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(rows: int, rank: int, size: int) -> slice:
    """Which of so many rows process `rank` of `size` holds: equal parts, the last ones less or none."""
    each = -(-rows // size)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))
