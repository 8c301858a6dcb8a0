"""Ragged sequences without their padding.

Rows of all sequences lie end to end in one [N, D] matrix, so that every linear layer works on real rows only;
attention, which needs sequences side by side, sees a padded [G, L, D] view that a `Layout` fills and empties.

N rows in all, G groups (sequences, or the rows that share an image), L the longest group, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from diptych.nn.counter_rng import derived
from diptych.types import Texts


@dataclass(frozen=True)
class Layout:
    """Where each of N rows stands in a [groups, length] grid."""

    groups: int
    length: int
    index: Int[Tensor, "N"] | None
    """Flat place of each row in the grid; None when the rows, in order, fill it."""

    @classmethod
    def of(cls, group: Int[Tensor, "N"], groups: int) -> Layout:
        """The grid in which row n stands in row group[n], behind the earlier rows of the same group."""
        counts = torch.bincount(group, minlength=groups)
        length = int(counts.max())
        order = torch.argsort(group, stable=True)
        starts = counts.cumsum(0) - counts
        ordered = group[order]
        slots = torch.arange(len(group), device=group.device) - starts[ordered]
        index = torch.empty_like(group)
        index[order] = ordered * length + slots
        full = len(group) == groups * length and bool((order[1:] > order[:-1]).all())
        return cls(groups, length, None if full else index)

    def pad(self, rows: Shaped[Tensor, "N *D"]) -> Shaped[Tensor, "G L *D"]:
        """The rows in their grid, zeros elsewhere."""
        if self.index is not None:
            grid = rows.new_zeros(self.groups * self.length, *rows.shape[1:])
            rows = grid.index_copy(0, self.index, rows)
        return rows.unflatten(0, (self.groups, self.length))

    def unpad(self, grid: Shaped[Tensor, "G L *D"]) -> Shaped[Tensor, "N *D"]:
        """The rows back from their grid."""
        rows = grid.flatten(0, 1)
        return rows if self.index is None else rows.index_select(0, self.index)

    def filled(self, visible: Bool[Tensor, "N"] | None = None) -> Bool[Tensor, "G L"] | None:
        """Which places of the grid hold a row (that is visible); None when all do."""
        if visible is None:
            if self.index is None:
                return None
            visible = torch.ones(len(self.index), dtype=torch.bool, device=self.index.device)
        return self.pad(visible)


@dataclass(frozen=True)
class Packed:
    """The lengths of G sequences that lie end to end."""

    lengths: Int[Tensor, "G"]
    keys: Int[Tensor, "G"] | None = None
    """Of each sequence, for dropout (nn/draws.py)."""

    @cached_property
    def starts(self) -> Int[Tensor, "G"]:
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def sequence(self) -> Int[Tensor, "N"]:
        """The sequence of each row."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def position(self) -> Int[Tensor, "N"]:
        """The place of each row within its sequence, from 0."""
        sequence = self.sequence
        return torch.arange(len(sequence), device=sequence.device) - self.starts[sequence]

    @cached_property
    def row_keys(self) -> Int[Tensor, "N"] | None:
        """Of each row, for dropout."""
        return None if self.keys is None else derived(self.keys[self.sequence], self.position)

    @cached_property
    def layout(self) -> Layout:
        """One grid row a sequence."""
        length = int(self.lengths.max())
        sequence = self.sequence
        if len(sequence) == len(self.lengths) * length:
            return Layout(len(self.lengths), length, None)
        return Layout(len(self.lengths), length, sequence * length + self.position)

    def meeting(self, keys: Int[Tensor, "G"] | None) -> Packed:
        """The same lengths, each sequence beside an image of such a key."""
        return self if keys is None or self.keys is None else Packed(self.lengths, derived(self.keys, keys))

    def select(self, which: Int[Tensor, "P"]) -> tuple[Packed, Int[Tensor, "M"]]:
        """Sequences `which`, in that order and as often: their lengths, and the rows to take."""
        chosen = Packed(self.lengths[which], None if self.keys is None else self.keys[which])
        return chosen, self.starts[which][chosen.sequence] + chosen.position


@dataclass(frozen=True)
class TextState:
    """Texts, packed: their rows lie end to end."""

    hidden: Float[Tensor, "N D"]
    packed: Packed
    visible: Bool[Tensor, "N"] | None = None
    """Rows that others may attend to; None: all (padding is not there, unless the model keeps it)."""

    def __len__(self) -> int:
        return len(self.packed.lengths)

    def __getitem__(self, index: Tensor | slice) -> TextState:
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self.hidden.device)[index]
        packed, rows = self.packed.select(index)
        return TextState(self.hidden[rows], packed, None if self.visible is None else self.visible[rows])

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes

    @classmethod
    def cat(cls, states: Sequence[TextState]) -> TextState:
        packed = [state.packed for state in states]
        keys, visible = all_or_none([one.keys for one in packed]), all_or_none([state.visible for state in states])
        lengths = torch.cat([one.lengths for one in packed])
        return cls(torch.cat([state.hidden for state in states]), Packed(lengths, keys), visible)


def all_or_none(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Put together, where every part is there."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found and len(found) == len(parts) else None


def pack(texts: Texts, keep_padding: bool, longest: int) -> tuple[Int[Tensor, "N"], Packed, Bool[Tensor, "N"] | None]:
    """The ids of texts without their padding, their lengths, and which rows may be seen (None: all).

    `keep_padding` packs padding too and hides it. Raises ValueError for texts of more than `longest` tokens.
    """
    mask = texts.attention_mask.bool()
    if mask.shape[1] > longest:
        raise ValueError(
            f"a text of {mask.shape[1]} tokens is longer than the model's {longest} positions: cut texts to that length"
        )
    kept = torch.ones_like(mask) if keep_padding else mask
    flat = kept.flatten().nonzero().squeeze(1)
    visible = mask.flatten()[flat] if keep_padding else None
    return texts.input_ids.flatten()[flat], Packed(kept.sum(1), texts.keys), visible
