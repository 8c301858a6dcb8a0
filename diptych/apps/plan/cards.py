"""Rates of graphics cards by their vendor's data sheets, and the names by which a user chooses them: `8xA100-40G`.

Peaks are without sparsity, since no training reaches the doubled numbers with it. This module imports no torch.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

GB, TERA = 10**9, 10**12
THIS = "this"
"""Name of the machine that computes the plan."""


@dataclass(frozen=True)
class Card:
    """A card: sizes in bytes, peaks in FLOP/s, rates in bytes/s. A vendor's GB of memory is 2³⁰ bytes, its GB/s 10⁹."""

    name: str
    memory: int
    fp32: float
    """Peak without tensor cores, as torch multiplies fp32 unless TF32 is allowed."""
    tf32: float | None
    half: float
    """Peak of the tensor cores with sums in fp32."""
    half_kind: str
    """The type of `half`: bf16, or fp16 where the card has no bf16."""
    bandwidth: float
    """Rate of its memory."""
    link: float
    """Rate to the other cards of its machine, in one direction."""
    network: float | None
    """Rate to other machines, for each card and in one direction, in the vendor's own machine of eight cards; None
    where the vendor sells no such machine."""
    source: str


_V100 = "NVIDIA V100 data sheet (SXM2); DGX-1 data sheet: four 100 Gb/s InfiniBand for eight cards"
_A100 = "NVIDIA A100 data sheet (SXM4); DGX A100 data sheet: eight 200 Gb/s InfiniBand for eight cards"
_H100 = "NVIDIA H100 data sheet (SXM5); DGX H100 data sheet: eight 400 Gb/s InfiniBand for eight cards"


def _card(
    name: str, memory: int, peaks: tuple[float, float | None, float], half: str, bandwidth: float, link: float,
    network: float | None, source: str,
) -> Card:  # fmt: skip
    """Builds a card from memory in GB as sold, peaks in TFLOP/s and rates in GB/s."""
    fp32, tf32, tensor = peaks
    tf32 = None if tf32 is None else tf32 * TERA
    network = None if network is None else network * GB
    return Card(name, memory << 30, fp32 * TERA, tf32, tensor * TERA, half, bandwidth * GB, link * GB, network, source)


CARDS = {
    card.name: card
    for card in (
        # NVLink is sold by the sum of both directions; PCIe 4.0 x16 carries 32 GB/s one way, PCIe 3.0 x16 16 GB/s.
        _card("V100-16G", 16, (15.7, None, 125.0), "fp16", 900.0, 150.0, 6.25, _V100),
        _card("V100-32G", 32, (15.7, None, 125.0), "fp16", 900.0, 150.0, 6.25, _V100),
        _card("A100-40G", 40, (19.5, 156.0, 312.0), "bf16", 1555.0, 300.0, 25.0, _A100),
        _card("A100-80G", 80, (19.5, 156.0, 312.0), "bf16", 2039.0, 300.0, 25.0, _A100),
        # Sold with sparsity: 989 TF32, 1,979 bf16.
        _card("H100-80G", 80, (67.0, 494.5, 989.5), "bf16", 3350.0, 450.0, 50.0, _H100),
        _card("T4", 16, (8.1, None, 65.0), "fp16", 320.0, 16.0, None, "NVIDIA T4 data sheet; PCIe 3.0 x16"),
        # Sold with sparsity: 120 TF32, 242 bf16.
        _card("L4", 24, (30.3, 60.0, 121.0), "bf16", 300.0, 32.0, None, "NVIDIA L4 data sheet; PCIe 4.0 x16"),
        # Sold with sparsity: 366 TF32, 733 bf16.
        _card("L40S", 48, (91.6, 183.0, 366.0), "bf16", 864.0, 32.0, None, "NVIDIA L40S data sheet; PCIe 4.0 x16"),
        _card("A10", 24, (31.2, 62.5, 125.0), "bf16", 600.0, 32.0, None, "NVIDIA A10 data sheet; PCIe 4.0 x16"),
        _card(
            "RTX3090", 24, (35.6, 35.6, 71.0), "bf16", 936.0, 32.0, None,
            "NVIDIA Ampere GA102 white paper, appendix A; PCIe 4.0 x16, without an NVLink bridge",
        ),
        _card(
            "RTX4090", 24, (82.6, 82.6, 165.2), "bf16", 1008.0, 32.0, None,
            "NVIDIA Ada white paper, appendix A; PCIe 4.0 x16",
        ),
    )
}  # fmt: skip
"""The known cards by name."""

PER_MACHINE = 8
"""Cards of one machine, as in the vendor's own. Further cards are reached through the network."""


@dataclass(frozen=True)
class Fleet:
    """A number of equal cards, or this machine where `card` is None."""

    count: int
    card: Card | None

    def __str__(self) -> str:
        return THIS if self.card is None else f"{self.count}x{self.card.name}"


def find_fleet(text: str) -> Fleet:
    """Reads `8xA100-40G`, `A100-40G` or `this`. Raises ValueError, which lists the known cards for an unknown one."""
    if text == THIS:
        return Fleet(1, None)
    match = re.fullmatch(r"(?:(\d+)[x×*])?(.+)", text.strip())
    if match is None:
        raise ValueError("--devices is empty: write 8xA100-40G, or this")
    count, name = int(match[1] or 1), match[2]
    if count < 1:
        raise ValueError(f"--devices {text}: a plan needs one device at least")
    if name == THIS:
        raise ValueError(f"--devices {text}: this machine is planned as one process; write --devices this")
    return Fleet(count, find_card(name))


def find_card(name: str) -> Card:
    """Finds a card by its name in any case. Raises ValueError that lists the known cards."""
    by_name = {known.lower(): card for known, card in CARDS.items()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    nearest = difflib.get_close_matches(name.lower(), by_name, n=1)
    meant = f" Did you mean '{by_name[nearest[0]].name}'?" if nearest else ""
    raise ValueError(f"no card '{name}'.{meant} Known: {', '.join(CARDS)}, or this for this machine")
