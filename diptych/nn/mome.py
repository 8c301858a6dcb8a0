"""Mixture-of-Modality-Experts (MoME) transformer blocks (VLMo §3.2).

A block has one self-attention for all modalities, and feed-forward networks that specialise: a vision expert (V-FFN),
a language expert (L-FFN) and, in the top blocks, a vision-language expert (VL-FFN).

The N tokens of a pass are packed: the tokens of all texts first, then those of all images. Each of the G sequences is a
text, an image, or a text with an image behind it. Attention sees them in a padded grid [G, L]. D width, H heads,
R queried tokens, Q of them a sequence at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.attention import attend, attend_biased, attend_with_map, split_heads
from diptych.nn.blocks import Block, init_weights
from diptych.nn.counter_rng import branches_kept
from diptych.nn.fused_norm import norm_linear, norm_mlp, scaled
from diptych.nn.lowered import is_lowered
from diptych.nn.packed import PackedSequences, PaddedGrid, Queries

Route = Literal["modality", "vl"]
"""Which expert tokens pass: that of their own modality (V-FFN or L-FFN), or the VL-FFN."""


@dataclass(frozen=True)
class MultimodalLayout:
    """What the blocks must know about the packed tokens of texts and images. Built once, used by all blocks."""

    grid: PaddedGrid
    """Text stands at the left of each grid row; images stand behind the longest text."""
    sequence_ids: Int[Tensor, "N"]
    attention_mask: Bool[Tensor, "G L"] | None
    """Tokens of the grid that may be attended to. None: all."""
    text_tokens: int
    """How many of the N tokens are text; they come first."""
    text_length: int
    """Length of the longest text: the first columns of the grid."""
    rng_keys: Int[Tensor, "G"] | None = None
    """RNG key of each sequence, for stochastic depth."""

    @classmethod
    def of(
        cls, packed: PackedSequences | None, groups: int, image_tokens: int, device: torch.device,
        attention_mask: Bool[Tensor, "N"] | None = None, rng_keys: Int[Tensor, "G"] | None = None,
    ) -> MultimodalLayout:  # fmt: skip
        """Lays out texts (None: none) and images of `image_tokens` tokens (0: none), each text beside one image.

        `attention_mask` is that of the text tokens. `rng_keys` are those of images alone; texts bring their own.
        """
        rng_keys = rng_keys if packed is None else packed.rng_keys
        tokens = torch.arange(groups * image_tokens, device=device)
        sequence_ids, columns = tokens // max(1, image_tokens), tokens % max(1, image_tokens)
        text_tokens = text_length = 0
        if packed is not None:
            text_tokens, text_length = len(packed.sequence_ids), packed.max_seqlen
            sequence_ids = torch.cat([packed.sequence_ids, sequence_ids])
            columns = torch.cat([packed.position_ids, columns + text_length])
        length = text_length + image_tokens
        index = sequence_ids * length + columns
        in_order = len(index) == groups * length and (text_tokens == 0 or image_tokens == 0)
        grid = PaddedGrid(groups, length, None if in_order else index)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(groups * image_tokens)])
        full = attention_mask is None and len(index) == groups * length
        return cls(grid, sequence_ids, None if full else grid.mask(attention_mask), text_tokens, text_length, rng_keys)

    def queries(self, index: Int[Tensor, "R"]) -> Queries:
        """Makes queries of some tokens; those of text must come first."""
        sequence_ids = self.sequence_ids[index]
        cells = index if self.grid.index is None else self.grid.index[index]
        grid = PaddedGrid.of(sequence_ids, self.grid.groups)
        columns, text_tokens = grid.pad(cells % self.grid.length), int((index < self.text_tokens).sum())
        return Queries(index, sequence_ids, grid, columns=columns, text_tokens=text_tokens)


class FeedForward(nn.Module):
    """A pre-norm feed-forward network: one expert."""

    def __init__(self, width: int, mlp_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, hidden: Float[Tensor, "N D"], scale: Float[Tensor, "D"] | None) -> Float[Tensor, "N D"]:
        return norm_mlp(hidden, self.norm, self.fc1, self.fc2, scale)


def by_modality(
    hidden: Float[Tensor, "M D"], text_tokens: int, text: Callable[[Tensor], Tensor], image: Callable[[Tensor], Tensor]
) -> Float[Tensor, "M E"]:
    """Applies `text` to the first `text_tokens` tokens and `image` to the others; neither is called for no tokens."""
    if not text_tokens:
        return image(hidden)
    if text_tokens == hidden.shape[0]:
        return text(hidden)
    return torch.cat([text(hidden[:text_tokens]), image(hidden[text_tokens:])])


class MultiHeadSelfAttention(nn.Module):
    """Self-attention (MSA) within each sequence, over text and image tokens alike.

    Keys have no bias: it would move all scores of a query alike.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(
        self, hidden: Float[Tensor, "N D"], norm: nn.LayerNorm, scale: Float[Tensor, "D"] | None,
        layout: MultimodalLayout, bias: Float[Tensor, "H L L"] | None, queries: Queries | None = None,
        want_map: bool = False, text_attention: MultiHeadSelfAttention | None = None,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "G H Q patches"] | None]:  # fmt: skip
        """Normalises the tokens and attends. The output is that of the `queries` only, where there are any.

        The map, if wanted, goes from the text to the patches, or from an image's [CLS] where there is no text. `bias`
        is that of the relative positions. `text_attention` holds the matrices of text tokens where modalities do not
        share them; this module's then serve image tokens only.
        """
        attention_map = None

        def project(tokens: Tensor, text_tokens: int, part: slice) -> Tensor:
            if text_attention is None:
                return self._project(tokens, norm, part)
            own = partial(self._project, norm=norm, part=part)
            return by_modality(tokens, text_tokens, partial(text_attention._project, norm=norm, part=part), own)

        if queries is not None:
            query = queries.grid.pad(project(hidden[queries.index], queries.text_tokens, slice(0, 1)))  # [G, Q, D]
            key, value = layout.grid.pad(project(hidden, layout.text_tokens, slice(1, 3))).chunk(2, dim=-1)
            mixed = queries.grid.unpad(self._attend_from(query, key, value, layout, bias, queries))
        else:
            projected = layout.grid.pad(project(hidden, layout.text_tokens, slice(0, 3)))
            query, key, value = projected.chunk(3, dim=-1)  # each [G, L, D]
            if want_map:
                score_bias = _score_bias(bias, layout.attention_mask, query.dtype)
                mixed, attention_map = attend_with_map(
                    query, key, value, self.heads, queries=max(1, layout.text_length),
                    first_key=layout.text_length + 1, bias=score_bias,
                )  # fmt: skip
            elif bias is None:
                mixed = attend(query, key, value, self.heads, layout.attention_mask)
            else:
                mixed = attend_biased(query, key, value, self.heads, bias, layout.attention_mask)
            mixed = layout.grid.unpad(mixed)
        if text_attention is None:
            return self._project_out(mixed, scale), attention_map
        text_tokens = layout.text_tokens if queries is None else queries.text_tokens
        text_out, image_out = partial(text_attention._project_out, scale=scale), partial(self._project_out, scale=scale)
        return by_modality(mixed, text_tokens, text_out, image_out), attention_map

    def _project(self, hidden: Float[Tensor, "M D"], norm: nn.LayerNorm, part: slice) -> Float[Tensor, "M E"]:
        """Projects normalised tokens to queries, keys and values side by side, or to the `part` of these three."""
        width = len(self.v_bias)  # a layer that only gives keys and values has no query bias
        start, stop, _ = part.indices(3)
        weight = self.qkv.weight[start * width : stop * width]
        offset = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias][part])
        return norm_linear(hidden, norm, weight, offset)

    def _project_out(self, mixed: Float[Tensor, "M D"], scale: Float[Tensor, "D"] | None) -> Float[Tensor, "M D"]:
        if is_lowered(self.out):
            return self.out(mixed) if scale is None else self.out(mixed) * scale
        return F.linear(mixed, *scaled(self.out, scale))

    def _attend_from(
        self, query: Tensor, key: Tensor, value: Tensor, layout: MultimodalLayout, bias: Tensor | None, queries: Queries
    ) -> Float[Tensor, "G Q D"]:
        """Attends from few queries. The bias is gathered for them, so the scores are computed step by step."""
        if bias is None:
            return attend(query, key, value, self.heads, layout.attention_mask)
        q, k, v = (split_heads(x, self.heads) for x in (query, key, value))
        query_bias = bias[:, queries.columns].transpose(0, 1)  # [G, H, Q, L]
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5 + query_bias
        if layout.attention_mask is not None:
            scores = scores.masked_fill(~layout.attention_mask[:, None, None, :], -torch.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _score_bias(
    bias: Float[Tensor, "H L L"] | None, attention_mask: Bool[Tensor, "G L"] | None, dtype: torch.dtype
) -> Float[Tensor, "#G #H #L L"] | None:
    """Builds the term that is added to the scores: the bias, −∞ at masked keys."""
    if attention_mask is None:
        return None if bias is None else bias[None]
    zeros = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    masked = zeros.masked_fill_(~attention_mask, -torch.inf)
    return masked[:, None, None] if bias is None else bias[None] + masked[:, None, None]


class MoMEBlock(Block):
    """A MoME block, pre-norm: x + γ₁ · MSA(norm(x)), then x + γ₂ · FFN(norm(x)) with the FFN of the token's expert.

    `vision_ffn`, `language_ffn` and `vl_ffn` are V-FFN, L-FFN and VL-FFN; only top blocks have a VL-FFN. With
    `one_ffn`, the block is that of a standard transformer: `ffn` serves all tokens. With `separate_attention`, text
    tokens have matrices of their own, `text_attention`.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, layer_scale: float | None, drop_path: float,
        has_vl_ffn: bool, one_ffn: bool = False, separate_attention: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = MultiHeadSelfAttention(width, heads)
        self.text_attention = MultiHeadSelfAttention(width, heads) if separate_attention else None
        feed_forward = partial(FeedForward, width, int(width * mlp_ratio), norm_eps)
        self.ffn = feed_forward() if one_ffn else None
        self.language_ffn = None if one_ffn else feed_forward()
        self.vision_ffn = None if one_ffn else feed_forward()
        self.vl_ffn = feed_forward() if has_vl_ffn and not one_ffn else None
        start = None if layer_scale is None else torch.full((width,), layer_scale)
        self.gamma_1 = None if start is None else nn.Parameter(start)
        self.gamma_2 = None if start is None else nn.Parameter(start.clone())
        self.apply(init_weights)

    def forward(
        self, hidden: Float[Tensor, "N D"], layout: MultimodalLayout, bias: Float[Tensor, "H L L"] | None, route: Route,
        queries: Queries | None = None, want_map: bool = False,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "G H Q patches"] | None]:  # fmt: skip
        """Returns the output at all tokens, or at the `queries` only, and the attention map if it is wanted."""
        attended, attention_map = self.attention(
            hidden, self.norm1, self.gamma_1, layout, bias, queries, want_map, self.text_attention
        )
        if queries is None:
            sequence_ids, text_tokens = layout.sequence_ids, layout.text_tokens
        else:
            sequence_ids, text_tokens, hidden = queries.sequence_ids, queries.text_tokens, hidden[queries.index]
        hidden = hidden + self._drop_path(attended, sequence_ids, layout, 0)
        if self.ffn is not None:
            return hidden + self._feed_forward(self.ffn, hidden, sequence_ids, layout, 3), attention_map
        if route == "vl":  # VLMo §3.2
            return hidden + self._feed_forward(self.vl_ffn, hidden, sequence_ids, layout, 3), attention_map
        # Each token passes the expert of its modality. Text comes first.
        sizes = [text_tokens, hidden.shape[0] - text_tokens]  # which an exported graph has no numbers for
        (text, image), (text_ids, image_ids) = hidden.split(sizes), sequence_ids.split(sizes)
        if not sizes[1]:
            return hidden + self._feed_forward(self.language_ffn, text, text_ids, layout, 1), attention_map
        if not sizes[0]:
            return hidden + self._feed_forward(self.vision_ffn, image, image_ids, layout, 2), attention_map
        fed_text = self._feed_forward(self.language_ffn, text, text_ids, layout, 1)
        fed_image = self._feed_forward(self.vision_ffn, image, image_ids, layout, 2)
        return hidden + torch.cat([fed_text, fed_image]), attention_map

    def _feed_forward(
        self, ffn: FeedForward | None, hidden: Float[Tensor, "M D"], sequence_ids: Int[Tensor, "M"],
        layout: MultimodalLayout, sublayer: int,
    ) -> Float[Tensor, "M D"]:  # fmt: skip
        assert ffn is not None, "this block has no such expert"
        return self._drop_path(ffn(hidden, self.gamma_2), sequence_ids, layout, sublayer)

    def _drop_path(
        self, branch: Float[Tensor, "M D"], sequence_ids: Int[Tensor, "M"], layout: MultimodalLayout, sublayer: int
    ) -> Float[Tensor, "M D"]:
        """Drops the branch for whole sequences (stochastic depth), text and image of a pair apart.

        `sublayer` separates the draws: 0 for attention, 1 for L-FFN, 2 for V-FFN, 3 for VL-FFN.
        """
        if self.drop_path == 0 or not self.training:
            return branch
        layer_id = self.layer_id + sublayer
        kept = branches_kept(self.drop_path, layout.grid.groups, layout.rng_keys, layer_id, branch.device)
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)[sequence_ids, None]
