"""Transformer blocks: of images (pre-norm, dense) and of text (BERT's, packed, with or without cross-attention).

B images, T tokens, D width, N packed text rows, R queried rows, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.attention import CrossAttention, SelfAttention, attend, attend_with_map
from diptych.nn.counter_rng import branches_kept, dropout
from diptych.nn.fused_norm import norm_linear, norm_mlp
from diptych.nn.packed import Layout

PUBLISHED_WIDTH = 768
DRAWS = 4
"""Places for the draws of one block."""


def init_weights(module: nn.Module) -> None:
    """BERT's and ViT's start: normal with deviation 0.02, biases 0, norms 1.

    0.02 is for the published width of 768; narrower layers start larger, so that a layer's gain is the same.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        width = module.embedding_dim if isinstance(module, nn.Embedding) else min(module.weight.shape)
        nn.init.trunc_normal_(module.weight, std=0.02 * (PUBLISHED_WIDTH / width) ** 0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def drop_path(
    x: Float[Tensor, "B *D"], probability: float, training: bool, keys: Int[Tensor, "B"] | None, place: int
) -> Float[Tensor, "B *D"]:
    """Leave out a residual branch for whole samples, scaling the others up. Keys and place as for `dropout`."""
    if probability == 0 or not training:
        return x
    kept = branches_kept(probability, len(x), keys, place, x.device)
    return x * kept.view(-1, *[1] * (x.ndim - 1)) / (1 - probability)


class Block(nn.Module):
    """A layer: what is compiled, cut into parts, or computed again as a whole.

    All its weights are used in `forward`.
    """

    place = 0
    """Where its draws begin (nn/draws.py); set by `stacked`."""


def stacked(blocks: Iterable[Block]) -> nn.ModuleList:
    """Blocks one upon another, with the draws of each apart from those of the others."""
    found = nn.ModuleList()
    for number, block in enumerate(blocks):
        block.place = DRAWS * number
        found.append(block)
    return found


class VisionBlock(Block):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(
        self, x: Float[Tensor, "B T D"], want_map: bool = False, keys: Int[Tensor, "B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H 1 patches"] | None]:
        """The block's output; the map goes from [CLS] to the patches."""
        query, key, value = norm_linear(x, self.norm1, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        if want_map:
            mixed, attention_map = attend_with_map(query, key, value, self.heads, rows=1)
        else:
            mixed, attention_map = attend(query, key, value, self.heads), None
        x = x + drop_path(self.out(mixed), self.drop_path, self.training, keys, self.place)
        made = norm_mlp(x, self.norm2, self.fc1, self.fc2)
        x = x + drop_path(made, self.drop_path, self.training, keys, self.place + 1)
        return x, attention_map


@dataclass(frozen=True)
class TextFrame:
    """How the packed rows of a layer hang together; made once, used by all layers."""

    layout: Layout
    visible: Bool[Tensor, "P L"] | None
    keys: Int[Tensor, "N"] | None = None
    """Of each row, for dropout."""
    by_image: Layout | None = None
    """Rows grouped by image; None in layers without cross-attention."""
    image_index: Int[Tensor, "P"] | None = None


@dataclass(frozen=True)
class Queried:
    """The only rows whose output is wanted, with their own layouts."""

    rows: Int[Tensor, "R"]
    layout: Layout
    by_image: Layout | None
    keys: Int[Tensor, "R"] | None = None


class TextBlock(Block):
    """BERT's layer; in fusion layers, cross-attention stands between self-attention and feed-forward (ALBEF §3.1)."""

    def __init__(
        self, width: int, heads: int, intermediate: int, norm_eps: float, norm: Literal["post", "pre"],
        dropout: float, attention_dropout: float, image_width: int | None, projects: bool = True,
    ) -> None:  # fmt: skip
        """`image_width` None: no cross-attention. Not `projects`: it takes an earlier layer's keys and values."""
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
        frame: TextFrame,
        image: Float[Tensor, "I T Dv"] | None = None,
        queried: Queried | None = None,
        want_map: bool = False,
        key_value: Float[Tensor, "I T 2*D"] | None = None,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "P H L patches"] | None, Float[Tensor, "I T 2*D"] | None]:
        """The layer's output at all rows, or at the `queried` ones, its map, and its keys and values of the images.

        A map wants all rows. Keys and values are projected here from `image`, so that all of a layer's weights are
        used within its forward, or they are those that an earlier layer returned.
        """
        before = self.attention_norm(hidden) if self.norm_place == "pre" else hidden
        which = None if queried is None else (queried.rows, queried.layout)
        keys = frame.keys if queried is None else queried.keys
        mixed = self.attention(before, frame.layout, frame.visible, which)
        hidden = self._add(hidden if queried is None else hidden[queried.rows], mixed, self.attention_norm, keys, 0)
        attention_map = None
        if key_value is None and image is not None:
            key_value = self.cross.kv(image)
        if key_value is not None:
            before = self.cross_norm(hidden) if self.norm_place == "pre" else hidden
            if want_map:
                assert queried is None
                assert frame.image_index is not None
                mixed, attention_map = self.cross.with_map(before, frame.layout, key_value, frame.image_index)
            else:
                by_image = frame.by_image if queried is None else queried.by_image
                assert by_image is not None
                mixed = self.cross(before, by_image, key_value)
            hidden = self._add(hidden, mixed, self.cross_norm, keys, 1)
        if self.norm_place == "pre":
            mixed = norm_mlp(hidden, self.mlp_norm, self.fc1, self.fc2)
        else:
            mixed = self.fc2(F.gelu(self.fc1(hidden)))
        return self._add(hidden, mixed, self.mlp_norm, keys, 2), attention_map, key_value

    def _add(self, hidden: Tensor, branch: Tensor, norm: nn.LayerNorm, keys: Tensor | None, sublayer: int) -> Tensor:
        total = hidden + dropout(branch, self.dropout, self.training, keys, self.place + sublayer)
        return norm(total) if self.norm_place == "post" else total
