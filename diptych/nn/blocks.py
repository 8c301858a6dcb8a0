"""Transformer blocks of images (ViT: pre-norm, dense) and of texts (BERT: packed, with or without cross-attention).

B images, T tokens, D width, H heads, N packed tokens, R queried tokens, P pairs, I images or other sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.attention import CrossAttention, SelfAttention, attend, attend_with_map
from diptych.nn.counter_rng import branches_kept, dropout
from diptych.nn.fused_norm import norm_linear, norm_mlp
from diptych.nn.lowered import is_lowered, multiply
from diptych.nn.packed import PaddedGrid, Queries
from diptych.schema import Activation

PUBLISHED_WIDTH = 768
DRAWS_PER_BLOCK = 4
"""Layer ids that one block may use for its random draws."""


def init_weights(module: nn.Module) -> None:
    """Initialises a layer as BERT and ViT do: normal with standard deviation 0.02, biases 0, norms 1.

    0.02 is for the published width of 768. Narrower layers get a larger deviation, so that a layer's gain is the same.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        width = module.embedding_dim if isinstance(module, nn.Embedding) else min(module.weight.shape)
        nn.init.trunc_normal_(module.weight, std=0.02 * (PUBLISHED_WIDTH / width) ** 0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def drop_path(
    x: Float[Tensor, "B *D"], probability: float, training: bool, rng_keys: Int[Tensor, "B"] | None, layer_id: int
) -> Float[Tensor, "B *D"]:
    """Drops a residual branch for whole samples and scales the others up. Keys and `layer_id` as for `dropout`."""
    if probability == 0 or not training:
        return x
    kept = branches_kept(probability, len(x), rng_keys, layer_id, x.device)
    return x * kept.view(-1, *[1] * (x.ndim - 1)) / (1 - probability)


class Block(nn.Module):
    """A transformer layer: the unit that is compiled, sharded (FSDP) or recomputed as a whole.

    All its weights are used in `forward`.
    """

    layer_id = 0
    """The first of its layer ids for random draws (nn/counter_rng.py); `stacked` sets it."""


def stacked(blocks: Iterable[Block]) -> nn.ModuleList:
    """Stacks blocks and gives each layer ids of its own, so that no two draw the same numbers."""
    stack = nn.ModuleList()
    for number, block in enumerate(blocks):
        block.layer_id = DRAWS_PER_BLOCK * number
        stack.append(block)
    return stack


def activate(x: Float[Tensor, "*N D"], activation: Activation) -> Float[Tensor, "*N D"]:
    """Applies an MLP's activation."""
    if activation == "quick_gelu":
        return x * (1.702 * x).sigmoid()
    return F.gelu(x, approximate="tanh" if activation == "tanh_gelu" else "none")


class VisionBlock(Block):
    """A pre-norm ViT block: x + attention(norm(x)), then x + mlp(norm(x)), both scaled where there is a layer scale."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, drop_path: float,
        activation: Activation = "gelu", layer_scale: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.drop_path, self.activation = heads, drop_path, activation
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)
        self.scale1 = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(width)) if layer_scale else None

    def forward(
        self, x: Float[Tensor, "B T D"], want_map: bool = False, rng_keys: Int[Tensor, "B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H 1 patches"] | None]:
        """Returns the block's output and, if wanted, the attention map from [CLS] to the patches."""
        query, key, value = norm_linear(x, self.norm1, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        if want_map:
            mixed, attention_map = attend_with_map(query, key, value, self.heads, queries=1)
        else:
            mixed, attention_map = attend(query, key, value, self.heads), None
        mixed = self.out(mixed) if self.scale1 is None else self.out(mixed) * self.scale1
        x = x + drop_path(mixed, self.drop_path, self.training, rng_keys, self.layer_id)
        if self.activation == "gelu":
            fed = norm_mlp(x, self.norm2, self.fc1, self.fc2, self.scale2)
        else:
            fed = self.fc2(activate(self.fc1(self.norm2(x)), self.activation))
            fed = fed if self.scale2 is None else fed * self.scale2
        x = x + drop_path(fed, self.drop_path, self.training, rng_keys, self.layer_id + 1)
        return x, attention_map


class AttentionPool(Block):
    """Gathers one token from the patches: a learnt query attends to them, and an MLP follows (SigLIP's head)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, norm_eps: float, activation: Activation) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, patches: Float[Tensor, "B T D"]) -> Float[Tensor, "B 1 D"]:
        width = patches.shape[-1]
        weights = self.qkv.weight[:width], self.qkv.weight[width:]
        biases = self.qkv.bias.split([width, 2 * width])
        query = multiply(self.query, weights[0], biases[0]).expand(len(patches), -1, -1)
        key, value = multiply(patches, weights[1], biases[1]).chunk(2, dim=-1)
        pooled = self.out(attend(query, key, value, self.heads))
        if is_lowered(self.out):
            pooled = pooled.to(patches.dtype)  # the residual stream stays fp32, and it begins here
        return pooled + self.fc2(activate(self.fc1(self.norm(pooled)), self.activation))


@dataclass(frozen=True)
class TextLayout:
    """What the layers of a text stack must know about its packed tokens. Built once, used by all layers."""

    grid: PaddedGrid
    """The tokens by sequence."""
    attention_mask: Bool[Tensor, "P L"] | None = None
    """Tokens of the grid that self-attention may attend to. None: all."""
    rng_keys: Int[Tensor, "N"] | None = None
    """RNG key of each token, for dropout."""
    by_source: PaddedGrid | None = None
    """The tokens by the image, or the encoded question, that they cross-attend to. None: no cross-attention."""
    source_mask: Bool[Tensor, "I T"] | None = None
    """Tokens of the sources that cross-attention may attend to. None: all."""
    image_index: Int[Tensor, "P"] | None = None
    """The image of each sequence; needed for attention maps only."""


class TextBlock(Block):
    """BERT's layer. In fusion layers, cross-attention stands between self-attention and feed-forward (ALBEF §3.1)."""

    def __init__(
        self, width: int, heads: int, intermediate: int, norm_eps: float, norm: Literal["post", "pre"],
        dropout: float, attention_dropout: float, image_width: int | None, projects: bool = True,
    ) -> None:  # fmt: skip
        """`image_width` None: no cross-attention. `projects=False`: keys and values come from an earlier layer."""
        super().__init__()
        self.norm_place, self.dropout = norm, dropout
        self.attention = SelfAttention(width, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        if image_width is not None:
            self.cross = CrossAttention(width, image_width, heads, attention_dropout, projects)
            self.cross_norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "N D"],
        layout: TextLayout,
        image: Float[Tensor, "I T Dv"] | None = None,
        queries: Queries | None = None,
        want_map: bool = False,
        key_value: Float[Tensor, "I T 2*D"] | None = None,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "P H L patches"] | None, Float[Tensor, "I T 2*D"] | None]:
        """Returns the output at all tokens, or at the `queries` only; the map, if wanted; and the image's keys, values.

        A map needs all tokens. Keys and values are projected from `image` here, so that all of a layer's weights are
        used within its forward; or they are the `key_value` that an earlier layer returned.
        """
        attended = self.attention(
            self._before(hidden, self.attention_norm), layout.grid, layout.attention_mask, queries
        )
        if queries is None:
            rng_keys, by_source = layout.rng_keys, layout.by_source
        else:
            rng_keys, by_source, hidden = queries.rng_keys, queries.by_source, hidden[queries.index]
        hidden = self._add(hidden, attended, self.attention_norm, rng_keys, 0)
        attention_map = None
        if key_value is None and image is not None:
            key_value = self.cross.kv(image)
        if key_value is not None:
            normed = self._before(hidden, self.cross_norm)
            if want_map:
                assert queries is None
                assert layout.image_index is not None
                attended, attention_map = self.cross.with_map(normed, layout.grid, key_value, layout.image_index)
            else:
                assert by_source is not None
                attended = self.cross(normed, by_source, key_value, layout.source_mask)
            hidden = self._add(hidden, attended, self.cross_norm, rng_keys, 1)
        return self._feed_forward(hidden, rng_keys), attention_map, key_value

    def _before(self, hidden: Float[Tensor, "*n D"], norm: nn.LayerNorm) -> Float[Tensor, "*n D"]:
        """Normalises a sublayer's input where the norms stand before the sublayers."""
        return norm(hidden) if self.norm_place == "pre" else hidden

    def _feed_forward(self, hidden: Float[Tensor, "n D"], rng_keys: Int[Tensor, "n"] | None) -> Float[Tensor, "n D"]:
        if self.norm_place == "pre":
            fed = norm_mlp(hidden, self.mlp_norm, self.fc1, self.fc2)
        else:
            fed = self.fc2(F.gelu(self.fc1(hidden)))
        return self._add(hidden, fed, self.mlp_norm, rng_keys, 2)

    def _add(
        self, hidden: Tensor, branch: Tensor, norm: nn.LayerNorm, rng_keys: Tensor | None, sublayer: int
    ) -> Tensor:
        """Adds a sublayer's output to the residual stream, and normalises the sum where norms stand behind."""
        total = hidden + dropout(branch, self.dropout, self.training, rng_keys, self.layer_id + sublayer)
        return norm(total) if self.norm_place == "post" else total
