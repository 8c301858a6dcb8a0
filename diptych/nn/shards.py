"""A process's own shard of a tensor where a model is sharded (FSDP): some rows of its first dimension."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def own_part(tensor: Tensor) -> Tensor:
    """Gives this process's shard of a tensor, the same memory. A tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(rows: int, rank: int, size: int) -> slice:
    """Tells which of `rows` rows process `rank` of `size` holds: equal shards; the last may have fewer or none."""
    each = -(-rows // size)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))
