"""The visual tokenizer: a discrete VAE that encodes an image as one code a patch (BEiT §2.1; DALL-E's dVAE).

I images, S codes a side, K codes in the codebook, C width of a code, D channels, H × W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.blocks import Block
from diptych.nn.recompute import in_pieces
from diptych.schema import VisualTokenizerConfig
from diptych.task import Network

NORM_GROUPS = 8
LEAST_WIDTH = 32
"""Channels at the finest resolution, unless `width` is less; they double with each halving up to `width`."""

SCORE_SPREAD = 2.3
"""Standard deviation of the initial weights of the scores, times √width. With it the scores differ by more than the
noise that codes are drawn with, so that unlike patches have unlike codes from the first step (docs/decisions.md)."""


class ResidualBlock(Block):
    """A residual block of two 3×3 convolutions, each behind a group norm and GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(NORM_GROUPS, width) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "I D S S"]) -> Float[Tensor, "I D S S"]:
        hidden = self.conv1(F.gelu(self.norm1(x)))
        return x + self.conv2(F.gelu(self.norm2(hidden)))


class VisualTokenizer(Network):
    """A convolutional encoder from an image to scores of codes, and a decoder from codes to an image."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.config = config
        self.side = config.image_size // config.patch_size
        """Codes a side."""
        scores = nn.Conv2d(config.width, config.codes, 1)
        nn.init.normal_(scores.weight, std=SCORE_SPREAD / config.width**0.5)
        self.encoder = nn.Sequential(
            *_halvings(widths),
            *(ResidualBlock(config.width) for _ in range(config.residual_blocks)),
            nn.GroupNorm(NORM_GROUPS, config.width),
            nn.GELU(),
            scores,
        )
        self.codebook = nn.Embedding(config.codes, config.code_width)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_width, config.width, 1),
            *(ResidualBlock(config.width) for _ in range(config.residual_blocks)),
            *_doublings(widths),
        )

    def logits(self, pixels: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I K S S"]:
        """Scores each code at each patch. Raises ValueError for images of another size than the configuration's."""
        size = self.config.image_size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise ValueError(f"pixels {tuple(pixels.shape[-2:])} are not {size} × {size}, which this tokenizer reads")
        scores = in_pieces(self.encoder, self.pieces, pixels)
        return scores.float()

    @torch.no_grad()
    def codes(self, pixels: Float[Tensor, "I 3 H W"]) -> Int[Tensor, "I S S"]:
        """Returns the likeliest code of each patch: the visual tokens of BEiT §2.1."""
        return self.logits(pixels).argmax(1)

    def paint(self, weights: Float[Tensor, "I K S S"]) -> Float[Tensor, "I 3 H W"]:
        """Decodes a mixture of codes at each patch to an image."""
        return self._decode(weights.movedim(1, -1) @ self.codebook.weight)  # [I, S, S, K] @ [K, C]

    def paint_codes(self, codes: Int[Tensor, "I S S"]) -> Float[Tensor, "I 3 H W"]:
        """Decodes one code at each patch to an image."""
        return self._decode(self.codebook(codes))

    def _decode(self, patches: Float[Tensor, "I S S C"]) -> Float[Tensor, "I 3 H W"]:
        pixels = in_pieces(self.decoder, self.pieces, patches.movedim(-1, 1))
        return pixels.float()


def _widths(config: VisualTokenizerConfig) -> list[int]:
    """Returns the channels after each halving of the resolution. Raises ValueError for impossible sizes."""
    halvings = config.patch_size.bit_length() - 1
    if halvings < 1 or 2**halvings != config.patch_size:
        raise ValueError(f"model.patch_size must be a power of two from 2 on, not {config.patch_size}")
    if config.image_size % config.patch_size:
        raise ValueError(f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
    if config.width % NORM_GROUPS:
        raise ValueError(f"model.width must be a multiple of {NORM_GROUPS}, not {config.width}")
    least = min(config.width, LEAST_WIDTH)
    return [max(least, config.width >> (halvings - 1 - number)) for number in range(halvings)]


def _halvings(widths: list[int]) -> list[nn.Module]:
    """Builds convolutions of stride 2, one for each halving of the resolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
    for finer, coarser in pairwise(widths):
        layers += [nn.GELU(), nn.Conv2d(finer, coarser, 4, stride=2, padding=1)]
    return layers


def _doublings(widths: list[int]) -> list[nn.Module]:
    """Builds transposed convolutions of stride 2, one for each doubling of the resolution."""
    layers: list[nn.Module] = []
    for coarser, finer in pairwise([*reversed(widths), 3]):
        layers += [nn.GELU(), nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1)]
    return layers
