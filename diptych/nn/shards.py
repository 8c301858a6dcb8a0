"""A process's own shard of a tensor where a model is sharded (FSDP): some rows of its first dimension."""

from __future__ import annotations

import sys

from torch import Tensor


def own_part(tensor: Tensor) -> Tensor:
    """Gives this process's shard of a tensor, the same memory. A tensor that is not sharded is returned as it is.

    There is a sharded tensor only where its module has been imported, which takes most of a second.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return tensor.to_local() if module is not None and isinstance(tensor, module.DTensor) else tensor


def own_rows(rows: int, rank: int, size: int) -> slice:
    """Tells which of `rows` rows process `rank` of `size` holds: equal shards; the last may have fewer or none."""
    each = -(-rows // size)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))
