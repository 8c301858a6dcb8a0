"""Blocks of one attention and an expert feed-forward a modality (VLMo §3.2).

The N rows of a pass lie end to end: those of all texts first, then those of all images. G sequences hold text, an
image, or a text and an image behind it; attention sees them in a padded grid [G, L]. D width, H heads, R queried rows.
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
from diptych.nn.packed import Layout, Packed


@dataclass(frozen=True)
class Frame:
    """How the rows of a pass hang together; made once, used by all blocks."""

    layout: Layout
    """The place of each row in the grid; texts stand at its left, images behind the longest text."""
    sequence: Int[Tensor, "N"]
    visible: Bool[Tensor, "G L"] | None
    """Places that may be attended to; None: all."""
    text_rows: int
    """How many of the rows are text."""
    text_length: int
    """Places of the grid for text."""
    keys: Int[Tensor, "G"] | None = None
    """Of each sequence, for what is dropped (nn/draws.py)."""

    @classmethod
    def of(
        cls, packed: Packed | None, groups: int, image_tokens: int, device: torch.device,
        visible: Bool[Tensor, "N"] | None = None, keys: Int[Tensor, "G"] | None = None,
    ) -> Frame:  # fmt: skip
        """Of texts (None: none), images of so many tokens (0: none), or both side by side.

        `visible`: the text rows that may be attended to. `keys`: of the sequences, where they are not those of texts.
        """
        keys = keys if packed is None else packed.keys
        images = torch.arange(groups * image_tokens, device=device)
        sequence, place = images // max(1, image_tokens), images % max(1, image_tokens)
        text_rows = text_length = 0
        if packed is not None:
            text_rows, text_length = len(packed.sequence), int(packed.lengths.max())
            sequence = torch.cat([packed.sequence, sequence])
            place = torch.cat([packed.position, place + text_length])
        length = text_length + image_tokens
        index = sequence * length + place
        in_order = len(index) == groups * length and (text_rows == 0 or image_tokens == 0)
        layout = Layout(groups, length, None if in_order else index)
        if visible is not None:
            visible = torch.cat([visible, visible.new_ones(groups * image_tokens)])
        full = visible is None and len(index) == groups * length
        return cls(layout, sequence, None if full else layout.filled(visible), text_rows, text_length, keys)

    def at(self, rows: Int[Tensor, "R"]) -> Asked:
        """The frame of some of the rows, text rows first."""
        sequence = self.sequence[rows]
        places = rows if self.layout.index is None else self.layout.index[rows]
        layout = Layout.of(sequence, self.layout.groups)
        return Asked(
            rows, sequence, layout, layout.pad(places % self.layout.length), int((rows < self.text_rows).sum())
        )


@dataclass(frozen=True)
class Asked:
    """The only rows whose output is wanted, text rows first."""

    rows: Int[Tensor, "R"]
    sequence: Int[Tensor, "R"]
    layout: Layout
    place: Int[Tensor, "G Q"]
    """Of each in the frame's grid."""
    text_rows: int


Route = Literal["own", "fusion"]
"""Which expert rows pass: that of their `own` modality, or the vision-language one."""


class Expert(nn.Module):
    """A pre-norm feed-forward."""

    def __init__(self, width: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, rows: Float[Tensor, "N D"], scale: Float[Tensor, "D"] | None) -> Float[Tensor, "N D"]:
        return norm_mlp(rows, self.norm, self.fc1, self.fc2, scale)


class Experts(nn.Module):
    """Of one layer. `fusion` is there in the upper layers only."""

    def __init__(self, width: int, hidden: int, norm_eps: float, fusion: bool) -> None:
        super().__init__()
        self.text = Expert(width, hidden, norm_eps)
        self.image = Expert(width, hidden, norm_eps)
        self.fusion = Expert(width, hidden, norm_eps) if fusion else None


class OneExpert(nn.Module):
    """The feed-forward of a standard transformer, which all rows pass."""

    def __init__(self, width: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.all = Expert(width, hidden, norm_eps)


def by_kind(
    rows: Float[Tensor, "M D"], text_rows: int, text: Callable[[Tensor], Tensor], image: Callable[[Tensor], Tensor]
) -> Float[Tensor, "M E"]:
    """The first `text_rows` through `text`, the others through `image`; neither is called for no rows at all."""
    if not text_rows:
        return image(rows)
    if text_rows == rows.shape[0]:
        return text(rows)
    return torch.cat([text(rows[:text_rows]), image(rows[text_rows:])])


class ModalAttention(nn.Module):
    """Self-attention of every modality, or of image rows where `text` has matrices for the others.

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
        self, rows: Float[Tensor, "N D"], norm: nn.LayerNorm, scale: Float[Tensor, "D"] | None, frame: Frame,
        bias: Float[Tensor, "H L L"] | None, asked: Asked | None = None, want_map: bool = False,
        text: ModalAttention | None = None,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "G H Q patches"] | None]:  # fmt: skip
        """What rows, normalised here, gather within their sequence; of the `asked` rows only, if any are.

        The map goes from the text, or from an image's [CLS] where there is none, to the patches. `text`: whose matrices
        text rows pass instead.
        """
        here = frame if asked is None else asked
        shown = None

        def projected(some: Tensor, text_rows: int, part: slice) -> Tensor:
            if text is None:
                return self._projected(some, norm, part)
            own = partial(self._projected, norm=norm, part=part)
            return by_kind(some, text_rows, partial(text._projected, norm=norm, part=part), own)

        if asked is not None:
            query = asked.layout.pad(projected(rows[asked.rows], asked.text_rows, slice(0, 1)))
            keys_and_values = projected(rows, frame.text_rows, slice(1, 3))
            key, value = frame.layout.pad(keys_and_values).chunk(2, dim=-1)
            mixed = asked.layout.unpad(self._some(query, key, value, frame, bias, asked))
        else:
            query, key, value = frame.layout.pad(projected(rows, frame.text_rows, slice(0, 3))).chunk(3, dim=-1)
            if want_map:
                mask = _additive(bias, frame.visible, query.dtype)
                first = frame.text_length + 1
                mixed, shown = attend_with_map(
                    query, key, value, self.heads, rows=max(1, frame.text_length), first=first, bias=mask
                )
            elif bias is None:
                mixed = attend(query, key, value, self.heads, frame.visible)
            else:
                mixed = attend_biased(query, key, value, self.heads, bias, frame.visible)
            mixed = frame.layout.unpad(mixed)
        if text is None:
            return self._out(mixed, scale), shown
        return by_kind(mixed, here.text_rows, partial(text._out, scale=scale), partial(self._out, scale=scale)), shown

    def _projected(self, rows: Float[Tensor, "M D"], norm: nn.LayerNorm, part: slice) -> Float[Tensor, "M E"]:
        """Queries, keys and values side by side, or the `part` of the three."""
        weight = self.qkv.weight.unflatten(0, (3, -1))[part].flatten(0, 1)
        offset = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias][part])
        return norm_linear(rows, norm, weight, offset)

    def _out(self, mixed: Float[Tensor, "M D"], scale: Float[Tensor, "D"] | None) -> Float[Tensor, "M D"]:
        return F.linear(mixed, *scaled(self.out, scale))

    def _some(
        self, query: Tensor, key: Tensor, value: Tensor, frame: Frame, bias: Tensor | None, asked: Asked
    ) -> Float[Tensor, "G Q D"]:
        """Written out: few queries, each with its own row of the bias."""
        if bias is None:
            return attend(query, key, value, self.heads, frame.visible)
        q, k, v = (split_heads(x, self.heads) for x in (query, key, value))
        own = bias[:, asked.place].transpose(0, 1)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5 + own
        if frame.visible is not None:
            scores = scores.masked_fill(~frame.visible[:, None, None, :], -torch.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _additive(
    bias: Float[Tensor, "H L L"] | None, visible: Bool[Tensor, "G L"] | None, dtype: torch.dtype
) -> Float[Tensor, "#G #H #L L"] | None:
    """What is added to scores."""
    if visible is None:
        return None if bias is None else bias[None]
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
    return hidden[:, None, None] if bias is None else bias[None] + hidden[:, None, None]


class ExpertBlock(Block):
    """Pre-norm: x + γ₁ · attention(norm(x)), then x + γ₂ · expert(norm(x))."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, layer_scale: float | None, drop_path: float,
        fusion: bool, one_expert: bool = False, separate: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path, hidden = drop_path, int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = ModalAttention(width, heads)
        self.text_attention = ModalAttention(width, heads) if separate else None
        self.experts = OneExpert(width, hidden, norm_eps) if one_expert else Experts(width, hidden, norm_eps, fusion)
        start = None if layer_scale is None else torch.full((width,), layer_scale)
        self.gamma_1 = None if start is None else nn.Parameter(start)
        self.gamma_2 = None if start is None else nn.Parameter(start.clone())
        self.apply(init_weights)

    def forward(
        self, rows: Float[Tensor, "N D"], frame: Frame, bias: Float[Tensor, "H L L"] | None, route: Route,
        asked: Asked | None = None, want_map: bool = False,
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "G H Q patches"] | None]:  # fmt: skip
        """The block's output at all rows, or at the `asked` ones, and its map if it is wanted."""
        mixed, shown = self.attention(rows, self.norm1, self.gamma_1, frame, bias, asked, want_map, self.text_attention)
        here = frame if asked is None else asked
        rows = rows if asked is None else rows[asked.rows]
        rows = rows + self._dropped(mixed, here.sequence, frame, 0)
        if isinstance(self.experts, OneExpert):
            return rows + self._branch(self.experts.all, rows, here.sequence, frame, 3), shown
        if route == "fusion":  # VLMo §3.2
            return rows + self._branch(self.experts.fusion, rows, here.sequence, frame, 3), shown
        sizes = [here.text_rows, rows.shape[0] - here.text_rows]  # which an exported graph has no numbers for
        (text, image), (text_of, image_of) = rows.split(sizes), here.sequence.split(sizes)
        if not sizes[1]:
            return rows + self._branch(self.experts.text, text, text_of, frame, 1), shown
        if not sizes[0]:
            return rows + self._branch(self.experts.image, image, image_of, frame, 2), shown
        made = (
            self._branch(self.experts.text, text, text_of, frame, 1),
            self._branch(self.experts.image, image, image_of, frame, 2),
        )
        return rows + torch.cat(made), shown

    def _branch(
        self, expert: Callable[..., Tensor] | None, rows: Float[Tensor, "M D"], sequence: Int[Tensor, "M"],
        frame: Frame, draw: int,
    ) -> Float[Tensor, "M D"]:  # fmt: skip
        assert expert is not None, "this layer has no vision-language expert"
        return self._dropped(expert(rows, self.gamma_2), sequence, frame, draw)

    def _dropped(
        self, branch: Float[Tensor, "M D"], sequence: Int[Tensor, "M"], frame: Frame, draw: int
    ) -> Float[Tensor, "M D"]:
        """Stochastic depth: the branch is left out for whole sequences, each draw apart for text and images.

        `draw`: 0 for attention, then those of the text, the image and the fusion expert.
        """
        if self.drop_path == 0 or not self.training:
            return branch
        kept = branches_kept(self.drop_path, frame.layout.groups, frame.keys, self.place + draw, branch.device)
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)[sequence, None]
