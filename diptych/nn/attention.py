"""Attention over padded grids, and the self- and cross-attention layers of packed texts.

G groups, L tokens a group, Q queries, K keys, H heads, D width, N packed tokens, R queried tokens, P pairs, I images,
T image tokens.
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

from diptych.nn.lowered import multiply
from diptych.nn.packed import PaddedGrid, Queries


def split_heads(x: Float[Tensor, "G L D"], heads: int) -> Float[Tensor, "G H L d"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    query: Float[Tensor, "G Q D"],
    key: Float[Tensor, "G K D"],
    value: Float[Tensor, "G K D"],
    heads: int,
    attention_mask: Bool[Tensor, "G K"] | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Float[Tensor, "G Q D"]:
    """Computes scaled dot-product attention with torch's fused kernel. Masked keys are left out.

    `causal`: the queries are the last Q of the K positions, and none attends to a later position than its own.
    """
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
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
    queries: int | None = None,
    first_key: int = 1,
    bias: Float[Tensor, "#G #H #Q K"] | None = None,
) -> tuple[Float[Tensor, "G Q D"], Float[Tensor, "G H Q2 K2"]]:
    """Computes attention step by step, and returns the attention map beside its output.

    The map holds the probabilities of the first `queries` queries (None: all) over the keys from `first_key` on; by
    default these are all keys but [CLS]. The output is computed from that very map, so that Grad-CAM can differentiate
    with respect to it: a slice taken afterwards would be a side branch of the graph. `bias` is added to the scores.
    What comes in bf16 is computed in fp32, which costs little beside the precision of a map.
    """
    q, k, v = (split_heads(x.to(torch.promote_types(x.dtype, torch.float32)), heads) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    queries = q.shape[2] if queries is None else queries
    mapped, others = probabilities.split([queries, q.shape[2] - queries], dim=2)
    before, attention_map = mapped[..., :first_key], mapped[..., first_key:]
    probabilities = torch.cat([torch.cat([before, attention_map], dim=3), others], dim=2)
    return (probabilities @ v).transpose(1, 2).flatten(2), attention_map


def attend_biased(
    query: Float[Tensor, "G L D"],
    key: Float[Tensor, "G L D"],
    value: Float[Tensor, "G L D"],
    heads: int,
    bias: Float[Tensor, "H L L"],
    attention_mask: Bool[Tensor, "G L"] | None = None,
) -> Float[Tensor, "G L D"]:
    """Computes attention with a learnt bias on every score, which all groups share. Masked keys are left out.

    torch's fused kernel gives the bias no gradient (on a CPU it takes a slow path instead). Here the kernel computes
    the output only. The backward pass recomputes the scores, a few groups at a time, so that no tensor of their size
    is kept.
    """
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    # A graph for another runtime has no gradient, and no loop over its groups. torch before 2.7 does not say.
    if getattr(torch.compiler, "is_exporting", bool)():
        mask = _score_mask(bias, attention_mask, slice(None))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    return _Biased.apply(q, k, v, bias, attention_mask).transpose(1, 2).flatten(2)


CHUNK = 1 << 22
"""Scores in memory at once while the bias gets its gradient; 16 MB in fp32."""


class _Biased(torch.autograd.Function):
    """Takes q, k, v [G, H, L, d], bias [H, L, L] and attention_mask [G, L]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, attention_mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias, attention_mask, out := torch.empty_like(q))
        for part in _chunks(q):
            mask = _score_mask(bias.detach().to(q.dtype), attention_mask, part)
            out[part] = F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, attention_mask, out = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        g_q, g_k, g_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        g_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for part in _chunks(q):
            scores = (q[part] * scale) @ k[part].transpose(-1, -2) + _score_mask(bias, attention_mask, part)
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


def _score_mask(bias: Float[Tensor, "H L L"], attention_mask: Bool[Tensor, "G L"] | None, part: slice) -> Tensor:
    """Builds the term that is added to the scores of the groups `part`: the bias, −∞ at masked keys."""
    if attention_mask is None:
        return bias[None]
    return bias[None].masked_fill(~attention_mask[part, None, None, :], -torch.inf)


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
        grid: PaddedGrid,
        attention_mask: Bool[Tensor, "G L"] | None,
        queries: Queries | None = None,
    ) -> Float[Tensor, "R D"]:
        """Lets tokens attend to their own sequence. The output is that of the `queries` only, where there are any."""
        dropout = self.dropout if self.training else 0.0
        if queries is None:
            query, key, value = grid.pad(self.qkv(hidden)).chunk(3, dim=-1)  # each [G, L, D]
            return self.out(grid.unpad(attend(query, key, value, self.heads, attention_mask, dropout)))
        width = hidden.shape[-1]
        query = multiply(hidden[queries.index], self.qkv.weight[:width], self.qkv.bias[:width])
        query = queries.grid.pad(query)  # [G, Q, D]
        key_value = multiply(hidden, self.qkv.weight[width:], self.qkv.bias[width:])
        key, value = grid.pad(key_value).chunk(2, dim=-1)
        return self.out(queries.grid.unpad(attend(query, key, value, self.heads, attention_mask, dropout)))


class CrossAttention(nn.Module):
    """Cross-attention from packed text tokens to their image.

    `kv` projects an image's tokens to keys and values once, however many texts attend to it. With `projects=False`
    there is no `kv` here, and keys and values come from another layer.
    """

    def __init__(self, width: int, image_width: int, heads: int, dropout: float, projects: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        if projects:
            self.kv = nn.Linear(image_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        hidden: Float[Tensor, "N D"],
        by_source: PaddedGrid,
        key_value: Float[Tensor, "I T 2*D"],
        source_mask: Bool[Tensor, "I T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Attends to the images, or to other sources. `by_source` groups the tokens by the source they attend to.

        All tokens with the same source are its queries, so that no source is copied for each of its texts.
        """
        key, value = key_value.chunk(2, dim=-1)
        query = by_source.pad(self.q(hidden))  # [I, Q, D]
        dropout = self.dropout if self.training else 0.0
        return self.out(by_source.unpad(attend(query, key, value, self.heads, source_mask, dropout)))

    def with_map(
        self,
        hidden: Float[Tensor, "N D"],
        by_pair: PaddedGrid,
        key_value: Float[Tensor, "I T 2*D"],
        image_index: Int[Tensor, "P"],
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "P H L patches"]]:
        """Gives the same output, and the attention map from each pair's text to the patches of its image."""
        key, value = key_value[image_index].chunk(2, dim=-1)
        mixed, attention_map = attend_with_map(by_pair.pad(self.q(hidden)), key, value, self.heads)
        return self.out(by_pair.unpad(mixed)), attention_map
