"""How long operations take: on a card by its data sheet and a stated share of it, on this machine as measured now.

A matrix product takes its FLOPs, anything else the time in which its bytes are read and written; on a processor some
take longer than that (random numbers, the exponential), and are measured one by one.
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
"""Of a data sheet's peak that matrix products are planned to reach. Not measured here: whole steps of well-tuned
language models reached 44 to 52 % of an A100's (Narayanan et al., arXiv 2104.04473, table 1). `--efficiency` replaces
it."""
MEASURED_SHARE = 0.75
"""Of the best square product on this machine that a step's products reach: between 0.6 (width 128) and 0.85 (width 768)
in five steps measured beside it, of `benchmarks plan`'s recipes."""
SHEET_BANDWIDTH = 0.8
"""Of a data sheet's bandwidth that element-wise operations are planned to reach. An assumption, not measured here."""
LAUNCH = 5e-6
"""Seconds of an operation on a card, at least. An assumption, not measured here; of no weight but for tiny models."""
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "bmm",
)


@dataclass(frozen=True)
class Rates:
    """Of one device."""

    products: float
    """FLOP/s that are planned with."""
    peak: float
    """FLOP/s that these are a share of."""
    traffic: tuple[tuple[float, float], ...]
    """(bytes of an operation, bytes/s), by size: between the sizes the rate follows their logarithms."""
    launch: float
    """Seconds of an operation at least."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """Numbers a second that an operation writes, where that is less than its bytes allow."""
    small_products: float | None = None
    """FLOP/s of attention and batched products, where they are slower than others."""
    origin: tuple[str, ...] = ()
    """Where the numbers come from."""

    def seconds(self, name: str, total: Sum) -> float:
        """Of all operations of one kind."""
        if not total.count:
            return 0.0
        rate = self.small_products if self.small_products and name in ATTENTION else self.products
        moving = total.moved / self.traffic_at(total.moved / total.count) if total.moved else 0.0
        making = total.elements / self.slow[name] if name in self.slow else 0.0
        return max(total.flops / rate, moving, making) + total.count * self.launch

    def traffic_at(self, size: int | float) -> float:
        """Bytes/s of an operation of so many bytes."""
        before = self.traffic[0]
        for point in self.traffic:
            if size < point[0]:
                share = (math.log(size) - math.log(before[0])) / (math.log(point[0]) - math.log(before[0]) or 1.0)
                return before[1] if point == before else before[1] ** (1 - share) * point[1] ** share
            before = point
        return before[1]


def of_card(card: Card, precision: str, efficiency: float | None, tf32: bool) -> Rates:
    """By the data sheet. Raises ValueError where the card has no TF32."""
    if tf32 and card.tf32 is None:
        raise ValueError(f"--tf32: {card.name} has no TF32")
    full = card.half if precision == "bf16" else (card.tf32 if tf32 and card.tf32 else card.fp32)
    kind = card.half_kind if precision == "bf16" else ("TF32" if tf32 else "fp32")
    share = SHEET_SHARE if efficiency is None else efficiency
    said = "assumed" if efficiency is None else "as given"
    return Rates(
        products=share * full,
        peak=full,
        traffic=((1.0, SHEET_BANDWIDTH * card.bandwidth),),
        launch=LAUNCH,
        origin=(
            f"peak {full / 1e12:g} TFLOP/s in {kind}, memory {card.bandwidth / 1e9:g} GB/s: {card.source}",
            f"products at {share:.0%} of the peak ({said}), "
            f"other operations at {SHEET_BANDWIDTH:.0%} of the memory's rate (assumed)",
        ),
    )


# --------------------------------------------------------------------------- this machine

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Numbers of the additions that are timed: from the first cache to fresh memory of the system."""


def measured(
    precision: str,
    attention: tuple[int, int, int, int],
    efficiency: float | None = None,
    device: torch.device | str = "cpu",
) -> Rates:
    """Of this machine, in a few seconds. `attention`: groups, heads, length and width of a head of the commonest."""
    best = peak(torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    share = MEASURED_SHARE if efficiency is None else efficiency
    attending = attention_rate(attention, device)
    said = "diptych/apps/plan/rates.py" if efficiency is None else "as given"
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
            f"products at {share:.0%} of the best ({said}), other operations at rates measured now",
        ),
    )
