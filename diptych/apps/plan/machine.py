"""Rates of this machine, measured now: matrix products, memory, and operations that take longer than their bytes.

Each rate is the best of a few rounds, so that other processes on the machine disturb little.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from diptych.timing import least_seconds as least_seconds
from diptych.timing import now as now
from diptych.train.memory import trim

SQUARES = tuple((size, size, size) for size in (1024, 2048, 4096))


def peak(
    dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]] = SQUARES, device: torch.device | str = "cpu"
) -> float:
    """Measures the FLOP/s of matrix products [m, k] × [k, n] and returns the best. The default is square ones."""
    best = 0.0
    for m, k, n in shapes:
        a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
        best = max(best, 2 * m * k * n / least_seconds(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


# --------------------------------------------------------------------------- operations slower than their bytes

NUMBERS = 1 << 20
ROW = 1 << 10


def addition(numbers: int, device: torch.device | str) -> Callable[[], object]:
    """Builds an addition of two tensors into a new one, which moves twelve bytes a number."""
    x, y = (torch.randn(numbers, device=device) for _ in range(2))
    return lambda: x + y


def slow_operations(device: torch.device | str) -> dict[str, Callable[[], object]]:
    """Builds operations on `NUMBERS` numbers, by the names that torch has for them."""
    x, w = torch.randn(NUMBERS // ROW, ROW, device=device), torch.ones(ROW, device=device)
    normed, mean, rstd = torch.native_layer_norm(x, [ROW], w, w, 1e-6)
    chances = torch.softmax(x, -1)
    everything = [True, True, True]
    return {
        "gelu": lambda: F.gelu(x),
        "gelu_backward": lambda: torch.ops.aten.gelu_backward(x, x),
        "_softmax": lambda: torch.softmax(x, -1),
        "_softmax_backward_data": lambda: torch.ops.aten._softmax_backward_data(chances, chances, 1, x.dtype),
        "_log_softmax": lambda: torch.log_softmax(x, -1),
        "native_layer_norm": lambda: torch.native_layer_norm(x, [ROW], w, w, 1e-6),
        "native_layer_norm_backward": lambda: torch.ops.aten.native_layer_norm_backward(
            normed, x, [ROW], mean, rstd, w, w, everything
        ),
        "exp": lambda: x.exp(),
        "rand": lambda: torch.rand_like(x),
        "bernoulli_": lambda: torch.empty_like(x).bernoulli_(0.9),
    }


def attention_rate(shape: tuple[int, int, int, int], device: torch.device | str) -> float:
    """Measures the FLOP/s of attention [groups, heads, length, width of a head], forward and backward."""
    groups, heads, length, width = shape
    query = torch.randn(groups, heads, length, width, device=device, requires_grad=True)
    flops = (4 + 10) * groups * heads * length**2 * width
    return flops / least_seconds(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward(), device)


# --------------------------------------------------------------------------- memory of a process


class PeakMemory:
    """Measures the peak growth of resident memory within its block, in bytes. It works on Linux only."""

    grown: int

    def __enter__(self) -> PeakMemory:
        gc.collect()
        trim()
        Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = status("VmHWM") - self.before


def status(name: str) -> int:
    """Reads a size in bytes that Linux keeps for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
