"""Ragged sequences without their padding.

Rows of all sequences lie end to end in one [N, D] matrix, so that every linear layer works on real rows only;
attention, which needs sequences side by side, sees a padded [G, L, D] view that a `Layout` fills and empties.

N rows in all, G groups (sequences, or the rows that share an image), L the longest group, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


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
    def layout(self) -> Layout:
        """One grid row a sequence."""
        length = int(self.lengths.max())
        sequence = self.sequence
        if len(sequence) == len(self.lengths) * length:
            return Layout(len(self.lengths), length, None)
        return Layout(len(self.lengths), length, sequence * length + self.position)

    def select(self, which: Int[Tensor, "P"]) -> tuple[Packed, Int[Tensor, "M"]]:
        """Sequences `which`, in that order and as often: their lengths, and the rows to take."""
        chosen = Packed(self.lengths[which])
        return chosen, self.starts[which][chosen.sequence] + chosen.position
