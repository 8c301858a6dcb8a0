"""Counter-based random numbers: dropout as a pure function of (seed, step, sample, layer).

No draw depends on an earlier one. So dropout is the same however a batch is shared out over processes, cut into pieces
or computed twice. Each sample has an RNG key, a number that stands for (seed, step, its place in the global batch).
The keys of its tokens, of layers and of columns are counted from it.

N tokens, D width, G sequences.
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
    """Hashes 64 bits to 64 bits, each of which depends on all bits of x."""
    x = x ^ _shift(x, 30)
    x = x.mul_(FIRST)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(SECOND)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shifts to the right and fills with zeros from the left."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def sample_keys(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> Int[Tensor, "G"]:
    """Gives the RNG keys of samples `first` … `first + count - 1` of a global batch.

    `seed` stands for all that they have in common.
    """
    return derived(torch.full((count,), seed, device=device), torch.arange(first, first + count, device=device))


def derived(rng_keys: Int[Tensor, "*n"], number: Int[Tensor, "*n"] | int) -> Int[Tensor, "*n"]:
    """Derives another key for each number, such as the position of a token in its sample or the key of a partner."""
    step = (number + 1) * GOLDEN
    return mix(mix(rng_keys) + (_wrapped(step) if isinstance(step, int) else step))


def _wrapped(number: int) -> int:
    """Wraps a number to a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def keep_mask(
    width: int, probability: float, rng_keys: Int[Tensor, "N"], layer_id: int
) -> tuple[Bool[Tensor, "N D"], float]:
    """Draws which entries dropout keeps. Returns them and the share kept, exact in steps of 1/65536."""
    words = derived(rng_keys, layer_id)[:, None] + torch.arange(1, -(-width // 4) + 1, device=rng_keys.device) * GOLDEN
    draws = mix(words).view(torch.int16)[:, :width]  # four draws of 16 bits from each word
    dropped = round(probability * 65536)
    return draws >= dropped - 32768, 1 - dropped / 65536


def dropout(
    x: Float[Tensor, "N D"], probability: float, training: bool, rng_keys: Int[Tensor, "N"] | None, layer_id: int
) -> Float[Tensor, "N D"]:
    """Zeroes entries of `x` and scales the others up.

    `layer_id` must differ between layers, or they would drop the same entries. Without keys, torch's global generator
    draws.
    """
    if probability == 0 or not training:
        return x
    if rng_keys is None:
        return F.dropout(x, probability, training)
    kept, share = keep_mask(x.shape[1], probability, rng_keys, layer_id)
    return torch.where(kept, x / share, 0.0)


def branches_kept(
    probability: float, count: int, rng_keys: Int[Tensor, "G"] | None, layer_id: int, device: torch.device
) -> Bool[Tensor, "G"]:
    """Draws which sequences keep a residual branch (stochastic depth)."""
    if rng_keys is None:
        return torch.rand(count, device=device) >= probability
    return _shift(derived(rng_keys, layer_id), 11).double() >= probability * 2.0**53
