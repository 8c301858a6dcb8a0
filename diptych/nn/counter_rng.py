"""Dropout by counting: what is dropped depends on (seed, step, sample, layer), and on nothing that was drawn before.

So it is the same however a batch is shared out over processes, cut into pieces or computed twice. Each sample has a
key, a number that stands for (seed, step, its place in the global batch); rows, layers and columns are counted from it.

N rows, D width, G sequences.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""The odd number next to 2⁶⁴ over the golden ratio: consecutive multiples are spread evenly (SplitMix64)."""
FIRST, SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
"""The multipliers of SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014; Stafford's thirteenth variant)."""


def mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """64 bits, each of which depends on all 64 of x."""
    x = x ^ _shift(x, 30)
    x = x.mul_(FIRST)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(SECOND)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def sample_keys(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> Int[Tensor, "G"]:
    """Of rows `first` and on of a global batch. `seed` stands for all that they have in common."""
    return derived(torch.full((count,), seed, device=device), torch.arange(first, first + count, device=device))


def derived(keys: Int[Tensor, "*n"], number: Int[Tensor, "*n"] | int) -> Int[Tensor, "*n"]:
    """Another key for each number: of a sample's parts, or of a pair of samples."""
    step = (number + 1) * GOLDEN
    return mix(mix(keys) + (_wrapped(step) if isinstance(step, int) else step))


def _wrapped(number: int) -> int:
    """As 64 bits with a sign hold it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def kept(width: int, probability: float, keys: Int[Tensor, "N"], place: int) -> tuple[Bool[Tensor, "N D"], float]:
    """Which entries stay, and how likely that was: the probability in steps of 1/65536."""
    words = derived(keys, place)[:, None] + torch.arange(1, -(-width // 4) + 1, device=keys.device) * GOLDEN
    draws = mix(words).view(torch.int16)[:, :width]  # four of 16 bits from each
    dropped = round(probability * 65536)
    return draws >= dropped - 32768, 1 - dropped / 65536


def dropout(
    x: Float[Tensor, "N D"], probability: float, training: bool, keys: Int[Tensor, "N"] | None, place: int
) -> Float[Tensor, "N D"]:
    """`x` with entries zeroed and the others scaled up. `place`: of the layer, unlike in any other.

    Without keys the draws are those of torch's global generator.
    """
    if probability == 0 or not training:
        return x
    if keys is None:
        return F.dropout(x, probability, training)
    stays, share = kept(x.shape[1], probability, keys, place)
    return torch.where(stays, x / share, 0.0)


def branches_kept(
    probability: float, count: int, keys: Int[Tensor, "G"] | None, place: int, device: torch.device
) -> Bool[Tensor, "G"]:
    """Stochastic depth: which sequences keep a residual branch."""
    if keys is None:
        return torch.rand(count, device=device) >= probability
    return _shift(derived(keys, place), 11).double() >= probability * 2.0**53
