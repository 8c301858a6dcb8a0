"""Packed sequences: the tokens of several sequences lie end to end, without padding.

Every linear layer then works on real tokens only. Attention, which needs sequences side by side, gets a padded
[G, L, D] view, which a `PaddedGrid` builds and takes apart again.

N tokens in all, G groups (sequences, or the tokens that attend to one image), L the longest group, D width, R queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from diptych.nn.counter_rng import derived
from diptych.types import Texts, TokenPositions


@dataclass(frozen=True)
class PaddedGrid:
    """Maps N packed tokens to the cells of a padded [groups, length] grid and back."""

    groups: int
    length: int
    index: Int[Tensor, "N"] | None
    """Flat cell of each token. None: the tokens, in order, fill the grid."""

    @classmethod
    def of(cls, group: Int[Tensor, "N"], groups: int) -> PaddedGrid:
        """Puts token n into grid row group[n], behind the earlier tokens of the same group."""
        counts = torch.bincount(group, minlength=groups)
        length = int(counts.max())
        order = torch.argsort(group, stable=True)  # tokens by group, in their own order within a group
        starts = counts.cumsum(0) - counts
        ordered = group[order]
        columns = torch.arange(len(group), device=group.device) - starts[ordered]
        index = torch.empty_like(group)
        index[order] = ordered * length + columns
        full = len(group) == groups * length and bool((order[1:] > order[:-1]).all())
        return cls(groups, length, None if full else index)

    def pad(self, tokens: Shaped[Tensor, "N *D"]) -> Shaped[Tensor, "G L *D"]:
        """Puts the tokens into their cells, zeros into the others."""
        if self.index is not None:
            cells = tokens.new_zeros(self.groups * self.length, *tokens.shape[1:])
            tokens = cells.index_copy(0, self.index, tokens)
        return tokens.unflatten(0, (self.groups, self.length))

    def unpad(self, grid: Shaped[Tensor, "G L *D"]) -> Shaped[Tensor, "N *D"]:
        """Takes the tokens out of their cells."""
        cells = grid.flatten(0, 1)
        return cells if self.index is None else cells.index_select(0, self.index)

    def mask(self, attention_mask: Bool[Tensor, "N"] | None = None) -> Bool[Tensor, "G L"] | None:
        """Marks the cells that hold a token, of the unmasked ones if a mask is given. None: every cell does."""
        if attention_mask is None:
            if self.index is None:
                return None
            attention_mask = torch.ones(len(self.index), dtype=torch.bool, device=self.index.device)
        return self.pad(attention_mask)


@dataclass(frozen=True)
class PackedSequences:
    """Where each of G sequences lies among N packed tokens."""

    lengths: Int[Tensor, "G"]
    rng_keys: Int[Tensor, "G"] | None = None
    """RNG key of each sequence, for dropout (nn/counter_rng.py)."""

    @cached_property
    def max_seqlen(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, "ends"]:
        """Cumulative lengths [G + 1], from 0 to N, as variable-length attention kernels take them."""
        return F.pad(self.lengths.cumsum(0), (1, 0))

    @property
    def starts(self) -> Int[Tensor, "G"]:
        """Index of each sequence's first token, [CLS]."""
        return self.cu_seqlens[:-1]

    @cached_property
    def sequence_ids(self) -> Int[Tensor, "N"]:
        """The sequence of each token."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def position_ids(self) -> Int[Tensor, "N"]:
        """The position of each token within its sequence, from 0."""
        sequence_ids = self.sequence_ids
        return torch.arange(len(sequence_ids), device=sequence_ids.device) - self.starts[sequence_ids]

    @cached_property
    def token_rng_keys(self) -> Int[Tensor, "N"] | None:
        """RNG key of each token, derived from that of its sequence."""
        return None if self.rng_keys is None else derived(self.rng_keys[self.sequence_ids], self.position_ids)

    @cached_property
    def grid(self) -> PaddedGrid:
        """The padded grid with one row a sequence."""
        groups, length, sequence_ids = len(self.lengths), self.max_seqlen, self.sequence_ids
        if len(sequence_ids) == groups * length:
            return PaddedGrid(groups, length, None)
        return PaddedGrid(groups, length, sequence_ids * length + self.position_ids)

    def index_of(self, positions: TokenPositions) -> Int[Tensor, "R"]:
        """Finds the listed tokens among the packed ones."""
        return self.starts[positions.pair] + positions.position

    def select(self, which: Int[Tensor, "P"]) -> tuple[PackedSequences, Int[Tensor, "M"]]:
        """Picks sequences `which`, in that order and as often. Returns them and the index of their tokens in these."""
        rng_keys = None if self.rng_keys is None else self.rng_keys[which]
        chosen = PackedSequences(self.lengths[which], rng_keys)
        return chosen, self.starts[which][chosen.sequence_ids] + chosen.position_ids

    def fused_with(self, image_rng_keys: Int[Tensor, "G"] | None) -> PackedSequences:
        """Mixes each sequence's RNG key with that of its image, so that a text draws anew in every pair it is in."""
        if image_rng_keys is None or self.rng_keys is None:
            return self
        return PackedSequences(self.lengths, derived(self.rng_keys, image_rng_keys))


@dataclass(frozen=True)
class Queries:
    """The only tokens that a layer computes an output for; all tokens remain keys and values."""

    index: Int[Tensor, "R"]
    """Which of the N packed tokens."""
    sequence_ids: Int[Tensor, "R"]
    grid: PaddedGrid
    """The queries by sequence: Q a sequence at most."""
    by_source: PaddedGrid | None = None
    """ALBEF: the queries by the image that they cross-attend to."""
    rng_keys: Int[Tensor, "R"] | None = None
    """ALBEF: RNG key of each query, for dropout."""
    columns: Int[Tensor, "G Q"] | None = None
    """VLMo: where in its grid row of all tokens each query stands, for its row of the relative position bias."""
    text_tokens: int = 0
    """VLMo: how many of the queries are text; they come first."""


@dataclass(frozen=True)
class TextState:
    """Encoded or embedded texts, packed."""

    hidden: Float[Tensor, "N D"]
    packed: PackedSequences
    attention_mask: Bool[Tensor, "N"] | None = None
    """Tokens that may be attended to. None: all, since padding is not stored unless the model keeps it."""

    def __len__(self) -> int:
        return len(self.packed.lengths)

    def __getitem__(self, index: Tensor | slice) -> TextState:
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self.hidden.device)[index]
        packed, tokens = self.packed.select(index)
        attention_mask = None if self.attention_mask is None else self.attention_mask[tokens]
        return TextState(self.hidden[tokens], packed, attention_mask)

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes

    @classmethod
    def cat(cls, states: Sequence[TextState]) -> TextState:
        lengths = torch.cat([state.packed.lengths for state in states])
        rng_keys = cat_or_none([state.packed.rng_keys for state in states])
        attention_mask = cat_or_none([state.attention_mask for state in states])
        hidden = torch.cat([state.hidden for state in states])
        return cls(hidden, PackedSequences(lengths, rng_keys), attention_mask)


def cat_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenates the tensors. None if any of them is None."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present and len(present) == len(tensors) else None


def pack(
    texts: Texts, keep_padding: bool, longest: int
) -> tuple[Int[Tensor, "N"], PackedSequences, Bool[Tensor, "N"] | None]:
    """Packs padded texts. Returns their token ids, where each text lies, and the attention mask (None: all tokens).

    `keep_padding` packs padding as well and masks it. Raises ValueError for texts of more than `longest` tokens.
    """
    mask = texts.attention_mask.bool()
    if mask.shape[1] > longest:
        raise ValueError(
            f"a text of {mask.shape[1]} tokens is longer than the model's {longest} positions: cut texts to that length"
        )
    kept = torch.ones_like(mask) if keep_padding else mask
    cells = kept.flatten().nonzero().squeeze(1)
    attention_mask = mask.flatten()[cells] if keep_padding else None
    return texts.input_ids.flatten()[cells], PackedSequences(kept.sum(1), texts.rng_keys), attention_mask
