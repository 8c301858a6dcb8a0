"""Counts the floating-point operations of a computation, with torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Result = TypeVar("Result")
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, query, key, value, *_, **__: (
        sdpa_backward_flop_count(out, query, key, value)
    ),
}
"""Counts of torch's fused attention on CPUs; torch itself counts the one on graphics cards only."""


def counted(job: Callable[[], Result]) -> tuple[int, Result]:
    """Runs `job` and returns its floating-point operations and its result.

    Matrix products, convolutions and attention are counted, in the forward and in the backward pass.
    """
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
        result = job()
    return counter.get_total_flops(), result
