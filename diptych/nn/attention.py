"""Attention over padded grids, and the two attention layers of a text that lies packed.

G groups, Q query places, K key places, H heads, D width, N rows, R queried rows, I images, T image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diptych.nn.packed import Layout


def split_heads(x: Float[Tensor, "G L D"], heads: int) -> Float[Tensor, "G H L d"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    query: Float[Tensor, "G Q D"],
    key: Float[Tensor, "G K D"],
    value: Float[Tensor, "G K D"],
    heads: int,
    visible: Bool[Tensor, "G K"] | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Float[Tensor, "G Q D"]:
    """Scaled dot-product attention through torch's fused kernel. Keys that are not `visible` are left out.

    `causal`: the queries are the last Q of the K places, and none sees a key behind its own place.
    """
    mask = None if visible is None else visible[:, None, None, :]
    if causal:
        before = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device)
        before = before.tril(key.shape[1] - query.shape[1])
        mask = before if mask is None else mask & before
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


def attend_with_map(
    query: Float[Tensor, "G Q D"],
    key: Float[Tensor, "G K D"],
    value: Float[Tensor, "G K D"],
    heads: int,
    rows: int | None = None,
    first: int = 1,
    bias: Float[Tensor, "#G #H #Q K"] | None = None,
) -> tuple[Float[Tensor, "G Q D"], Float[Tensor, "G H Q2 K2"]]:
    """The same, written out, and the probabilities of the first `rows` queries (None: all) to the keys from `first` on.

    By default that is all keys but [CLS]. The result is computed from that very map, so that Grad-CAM can differentiate
    by it: a slice taken afterwards would be a side branch of the graph. `bias` is added to the scores.
    """
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    rows = q.shape[2] if rows is None else rows
    shown, others = probabilities[:, :, :rows, first:], probabilities[:, :, rows:]
    probabilities = torch.cat([torch.cat([probabilities[:, :, :rows, :first], shown], dim=3), others], dim=2)
    return (probabilities @ v).transpose(1, 2).flatten(2), shown


def attend_biased(
    query: Float[Tensor, "G L D"],
    key: Float[Tensor, "G L D"],
    value: Float[Tensor, "G L D"],
    heads: int,
    bias: Float[Tensor, "H L L"],
    visible: Bool[Tensor, "G L"] | None = None,
) -> Float[Tensor, "G L D"]:
    """Attention with a learnt bias of every score, which all groups share. Keys that are not `visible` are left out.

    torch's fused kernel gives the bias no gradient (on a CPU it takes a slow path instead). Here it computes the
    result, and the backward pass forms the scores again, a few groups at a time, so that nothing of their size is kept.
    """
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    if torch.compiler.is_exporting():  # a graph for another runtime has no gradient, and no loop over its groups
        whole = _score_mask(bias, visible, slice(None))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=whole).transpose(1, 2).flatten(2)
    return _Biased.apply(q, k, v, bias, visible).transpose(1, 2).flatten(2)


CHUNK = 1 << 22
"""Scores that are in memory at once where a bias needs its gradient; 16 MB in fp32."""


class _Biased(torch.autograd.Function):
    """q, k, v [G H L d], bias [H L L], visible [G L]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias, visible, out := torch.empty_like(q))
        for part in _chunks(q):
            mask = _score_mask(bias.detach().to(q.dtype), visible, part)
            out[part] = F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, visible, out = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        g_q, g_k, g_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        g_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for part in _chunks(q):
            scores = (q[part] * scale) @ k[part].transpose(-1, -2) + _score_mask(bias, visible, part)
            probabilities = torch.softmax(scores, dim=-1)
            g_v[part] = probabilities.to(g.dtype).transpose(-1, -2) @ g[part]
            mean = (g[part] * out[part]).sum(-1, keepdim=True, dtype=scores.dtype)
            g_scores = (g[part] @ v[part].transpose(-1, -2)).sub(mean).mul_(probabilities)
            if g_bias is not None:
                g_bias += g_scores.sum(0)
            g_scores = g_scores.to(q.dtype).mul_(scale)
            g_q[part] = g_scores @ k[part]
            g_k[part] = g_scores.transpose(-1, -2) @ q[part]
        return g_q, g_k, g_v, g_bias, None


def _chunks(q: Float[Tensor, "G H L d"]) -> Iterator[slice]:
    groups, heads, length, _ = q.shape
    size = max(1, CHUNK // (heads * length * length))
    return (slice(start, start + size) for start in range(0, groups, size))


def _score_mask(bias: Float[Tensor, "H L L"], visible: Bool[Tensor, "G L"] | None, part: slice) -> Tensor:
    """What is added to the scores of the groups `part`."""
    if visible is None:
        return bias[None]
    return bias[None].masked_fill(~visible[part, None, None, :], -torch.inf)


class SelfAttention(nn.Module):
    """Multi-head self-attention of packed sequences."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        hidden: Float[Tensor, "N D"],
        layout: Layout,
        visible: Bool[Tensor, "G L"] | None,
        queried: tuple[Int[Tensor, "R"], Layout] | None = None,
    ) -> Float[Tensor, "R D"]:
        """Rows attend within their sequence. `queried`: the rows wanted and their layout, if not all are."""
        dropout = self.dropout if self.training else 0.0
        if queried is None:
            query, key, value = layout.pad(self.qkv(hidden)).chunk(3, dim=-1)
            return self.out(layout.unpad(attend(query, key, value, self.heads, visible, dropout)))
        rows, row_layout = queried
        width = hidden.shape[-1]
        query = row_layout.pad(F.linear(hidden[rows], self.qkv.weight[:width], self.qkv.bias[:width]))
        key, value = layout.pad(F.linear(hidden, self.qkv.weight[width:], self.qkv.bias[width:])).chunk(2, dim=-1)
        return self.out(row_layout.unpad(attend(query, key, value, self.heads, visible, dropout)))


class CrossAttention(nn.Module):
    """Packed text rows attend to their image, whose tokens `kv` projects to keys and values once, for all rows.

    Not `projects`: there is no `kv` here, and keys and values are another layer's.
    """

    def __init__(self, width: int, image_width: int, heads: int, dropout: float, projects: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        if projects:
            self.kv = nn.Linear(image_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, hidden: Float[Tensor, "N D"], by_image: Layout, key_value: Float[Tensor, "I T 2*D"]
    ) -> Float[Tensor, "N D"]:
        """`by_image` groups the rows by the image that they attend to."""
        key, value = key_value.chunk(2, dim=-1)
        query = by_image.pad(self.q(hidden))
        dropout = self.dropout if self.training else 0.0
        return self.out(by_image.unpad(attend(query, key, value, self.heads, dropout=dropout)))

    def with_map(
        self,
        hidden: Float[Tensor, "N D"],
        by_pair: Layout,
        key_value: Float[Tensor, "I T 2*D"],
        image_index: Int[Tensor, "P"],
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "P H L patches"]]:
        """The same result, and the probabilities from each pair's text to the patches."""
        key, value = key_value[image_index].chunk(2, dim=-1)
        mixed, probabilities = attend_with_map(by_pair.pad(self.q(hidden)), key, value, self.heads)
        return self.out(by_pair.unpad(mixed)), probabilities
