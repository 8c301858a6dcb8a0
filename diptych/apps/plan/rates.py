"""Durations of operations: on a card by a stated share of its data sheet, on this machine as measured now.

A matrix product takes the time of its FLOPs, any other operation the time to read and write its bytes. On a CPU some
operations take longer, such as random numbers and the exponential; these are measured one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from diptych.apps.plan.cards import Card
from diptych.apps.plan.ledger import Sum
from diptych.apps.plan.machine import NUMBERS, addition, attention_rate, least_seconds, peak, slow_operations

SHEET_SHARE = 0.5
"""Share of a data sheet's peak at which matrix products are planned. It is not measured here: whole steps of well-tuned
language models reached 44 to 52 % of an A100's peak (Narayanan et al., arXiv 2104.04473, table 1). `--efficiency`
replaces it."""
MEASURED_SHARE = 0.75
"""Share of this machine's best square product that the products of a step reach. Five steps of `benchmarks plan`'s
recipes reached between 0.6 (width 128) and 0.85 (width 768)."""
SHEET_BANDWIDTH = 0.8
"""Share of a data sheet's bandwidth at which element-wise operations are planned. It is an assumption."""
LAUNCH = 5e-6
"""Least seconds of an operation on a card. It is an assumption, which matters for tiny models only."""
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "bmm",
)


@dataclass(frozen=True)
class Rates:
    """The rates of one device."""

    products: float
    """FLOP/s of matrix products in the plan."""
    peak: float
    """FLOP/s of which `products` is a share."""
    traffic: tuple[tuple[float, float], ...]
    """Pairs of an operation's bytes and its bytes/s, by size. Between sizes, logarithms are interpolated."""
    launch: float
    """Least seconds of an operation."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """Numbers a second that an operation writes, for those slower than their bytes."""
    small_products: float | None = None
    """FLOP/s of attention and batched products, where they are slower than other products."""
    origin: tuple[str, ...] = ()
    """Sources of the numbers."""

    def seconds(self, name: str, total: Sum) -> float:
        """Computes the seconds of all operations of one kind."""
        if not total.count:
            return 0.0
        rate = self.small_products if self.small_products and name in ATTENTION else self.products
        moving = total.moved / self.traffic_at(total.moved / total.count) if total.moved else 0.0
        making = total.elements / self.slow[name] if name in self.slow else 0.0
        return max(total.flops / rate, moving, making) + total.count * self.launch

    def traffic_at(self, size: int | float) -> float:
        """Interpolates the bytes/s of an operation of `size` bytes."""
        before = self.traffic[0]
        for point in self.traffic:
            if size < point[0]:
                share = (math.log(size) - math.log(before[0])) / (math.log(point[0]) - math.log(before[0]) or 1.0)
                return before[1] if point == before else before[1] ** (1 - share) * point[1] ** share
            before = point
        return before[1]


def of_card(card: Card, precision: str, efficiency: float | None, tf32: bool) -> Rates:
    """Computes rates from a data sheet. Raises ValueError for TF32 on a card without it."""
    if tf32 and card.tf32 is None:
        raise ValueError(f"--tf32: {card.name} has no TF32; leave the option out")
    full = card.half if precision == "bf16" else (card.tf32 if tf32 and card.tf32 else card.fp32)
    kind = card.half_kind if precision == "bf16" else ("TF32" if tf32 else "fp32")
    share = SHEET_SHARE if efficiency is None else efficiency
    source = "assumed" if efficiency is None else "as given"
    return Rates(
        products=share * full,
        peak=full,
        traffic=((1.0, SHEET_BANDWIDTH * card.bandwidth),),
        launch=LAUNCH,
        origin=(
            f"peak {full / 1e12:g} TFLOP/s in {kind}, memory {card.bandwidth / 1e9:g} GB/s: {card.source}",
            f"products at {share:.0%} of the peak ({source}), "
            f"other operations at {SHEET_BANDWIDTH:.0%} of the memory's rate (assumed)",
        ),
    )


# --------------------------------------------------------------------------- this machine

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Sizes of the additions that are timed, from the first cache to fresh memory of the system."""


def measured(
    precision: str,
    attention: tuple[int, int, int, int],
    efficiency: float | None = None,
    device: torch.device | str = "cpu",
) -> Rates:
    """Measures this machine in a few seconds. `attention` is the commonest one's groups, heads, length, head width."""
    best = peak(torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    share = MEASURED_SHARE if efficiency is None else efficiency
    attending = attention_rate(attention, device)
    source = "diptych/apps/plan/rates.py" if efficiency is None else "as given"
    return Rates(
        products=share * best,
        peak=best,
        traffic=tuple((12.0 * n, 12 * n / least_seconds(addition(n, device), device)) for n in SIZES),
        launch=least_seconds(addition(1, device), device),
        slow={name: NUMBERS / least_seconds(job, device) for name, job in slow_operations(device).items()},
        small_products=min(attending, share * best),
        origin=(
            f"measured now with {torch.get_num_threads()} threads: best square product {best / 1e9:.0f} GFLOP/s, "
            f"attention {attending / 1e9:.0f} GFLOP/s",
            f"products at {share:.0%} of the best ({source}), other operations at rates measured now",
        ),
    )
