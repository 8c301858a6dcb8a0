"""Embeddings of images and words, the inputs of the transformers.

B images, S side of the patch grid, T = S² + 1 tokens, D width, N packed text tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.blocks import init_weights
from diptych.nn.counter_rng import dropout

EMBEDDING_LAYER_ID = -1
"""Layer id of the embedding's dropout (nn/counter_rng.py)."""


def resize_positions(table: Float[Tensor, "1 T D"], side: int) -> Float[Tensor, "1 T2 D"]:
    """Resizes a position table to a side × side grid: [CLS] is kept, the square grid is interpolated bicubically.

    ALBEF §3.1 (pre-training at 256 px, fine-tuning at 384 px). Corners are not aligned, and there is no antialiasing.
    A table whose length is a square has no [CLS].
    """
    old_side = math.isqrt(table.shape[1])
    first = table.shape[1] - old_side**2  # 1 with [CLS], otherwise 0
    if old_side == side:
        return table
    grid = table[:, first:].unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2)  # [1, D, S, S]
    grid = F.interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :first], grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def sine_positions(side: int, width: int, size: float = 0.5) -> Float[Tensor, "S2 D"]:
    """Computes sines and cosines of the row and the column of each patch, whose amplitude is `size`.

    Each of the four takes a quarter of the channels, with wavelengths from 2π to 200π patches.
    """
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)  # radians a patch
    angles = torch.arange(side)[:, None] * frequencies  # [S, D / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [S, D / 2], of a row or a column
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)  # [S, S, D / 2]
    return size * torch.cat([rows, columns], dim=2).flatten(0, 1)


class ImageEmbedding(nn.Module):
    """Embeds images as a class token and their patches; adds learnt positions unless the model has others.

    With a convolutional stem, which only small models have, positions start as sines, since few steps do not teach them
    from small random numbers (docs/decisions.md 141).
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, stem: Literal["patch", "conv"], positions: bool = True,
        class_token: bool = True, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.patch_size = patch_size
        self.proj = (
            nn.Conv2d(3, width, patch_size, patch_size, bias=bias) if stem == "patch" else conv_stem(patch_size, width)
        )
        self.cls_token: nn.Parameter | None = None
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.positions: nn.Parameter | None = None
        if positions:
            self.positions = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2 + class_token, width))
            nn.init.trunc_normal_(self.positions, std=0.02)
            if stem == "conv" and not self.positions.is_meta:  # a pretended model has no numbers
                with torch.no_grad():
                    self.positions[0, class_token:] = sine_positions(image_size // patch_size, width)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        """Embeds images of any square size that is a multiple of the patch size. Positions are resized to it."""
        side, rest = divmod(pixels.shape[-1], self.patch_size)
        if rest or pixels.shape[-1] != pixels.shape[-2]:
            raise ValueError(f"pixels {tuple(pixels.shape[-2:])} are not a square of multiples of {self.patch_size}")
        patches = self.proj(pixels).flatten(2).transpose(1, 2)  # [B, D, S, S] → [B, S², D]
        tokens = patches
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(pixels.shape[0], -1, -1), patches], dim=1)
        return tokens if self.positions is None else tokens + resize_positions(self.positions, side)


def conv_stem(patch_size: int, width: int) -> nn.Sequential:
    """Builds log2(patch_size) 3×3 convolutions of stride 2, from 32 channels doubling up to `width`, and a 1×1 one."""
    halvings = patch_size.bit_length() - 1
    if 2**halvings != patch_size:
        raise ValueError(f"the conv stem needs a patch_size that is a power of two, not {patch_size}")
    layers: list[nn.Module] = []
    channels = 3
    for step in range(halvings):
        wider = min(width, 32 << step)
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class WordEmbedding(nn.Module):
    """BERT's embeddings: words + positions (from 0) + type 0, then a norm and dropout.

    Pre-norm blocks normalise their own inputs, and then there is no norm here: [CLS] starts small, so that what it
    gathers from the words shows at once (docs/decisions.md).
    """

    def __init__(
        self,
        vocab_size: int,
        pad_id: int,
        max_positions: int | None,
        width: int,
        norm_eps: float,
        norm: Literal["post", "pre"],
        dropout: float,
    ) -> None:
        """`max_positions` None: no position table, for models with relative positions."""
        super().__init__()
        self.words = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.positions = None if max_positions is None else nn.Embedding(max_positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps) if norm == "post" else nn.Identity()
        self.dropout = dropout
        self.apply(init_weights)

    def forward(
        self, ids: Int[Tensor, "N"], position_ids: Int[Tensor, "N"], rng_keys: Int[Tensor, "N"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Embeds packed tokens. `rng_keys`: the RNG key of each, for dropout (nn/counter_rng.py)."""
        hidden = self.words(ids) + self.types.weight[0]
        if self.positions is not None:
            hidden = hidden + self.positions(position_ids)
        return dropout(self.norm(hidden), self.dropout, self.training, rng_keys, EMBEDDING_LAYER_ID)
