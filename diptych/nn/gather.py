"""What data-parallel processes see of each other: the rows of all of them (VLMo §3.3).

A world of one process costs nothing and needs no process group. B rows of this process, W processes, G rows of all of
them, in the order of the processes, Q rows that a loss of one process is about, L text length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from diptych.nn.packed import Packed, TextState
from diptych.types import Texts


class _AllGather(torch.autograd.Function):
    """The rows of all processes; backwards, this process's rows get what every process asks of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        before = sum(counts[: dist.get_rank()])
        ctx.own = slice(before, before + len(rows))
        return _gathered(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        asked = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(asked)
        return asked[ctx.own], None


def _gathered(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Where processes have unlike numbers of rows, all send as many as the one that has most."""
    most = max(counts)
    padded = rows.contiguous()
    if len(rows) < most:
        padded = torch.cat([padded, padded.new_zeros(most - len(rows), *rows.shape[1:])])
    places = [torch.empty_like(padded, memory_format=torch.contiguous_format) for _ in counts]
    dist.all_gather(places, padded)
    return torch.cat([place[:count] for place, count in zip(places, counts, strict=True)])


@dataclass(frozen=True)
class Processes:
    """The processes of the default group, each with its rows of one global batch."""

    rows: int
    """B."""
    rank: int = 0
    counts: tuple[int, ...] = ()
    """Rows of each process; () for a process alone. They differ where records could not be read."""
    own_first: bool = False
    """Gather this process's rows in front of the others', and lead no gradient to those, as released for VLMo."""

    @classmethod
    def meet(cls, rows: int, own_first: bool = False) -> Processes:
        """All processes, which must call this together."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(rows, own_first=own_first)
        device = "cpu" if dist.get_backend() == "gloo" else "cuda"
        counts = _gathered(torch.tensor([rows], device=device), (1,) * dist.get_world_size()).tolist()
        return cls(rows, dist.get_rank(), tuple(counts), own_first)

    @property
    def size(self) -> int:
        """W."""
        return len(self.counts) or 1

    @property
    def total(self) -> int:
        """G."""
        return sum(self.counts) or self.rows

    @property
    def own(self) -> slice:
        """This process's rows of the global batch."""
        before = sum(self.counts[: self.rank])
        return slice(before, before + self.rows)

    def places(self, device: torch.device) -> Int[Tensor, "B"]:
        """Where `gather` puts this process's rows."""
        return torch.arange(self.rows, device=device) + (0 if self.own_first else self.own.start)

    def gather(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "G *D"]:
        """The rows of all processes. Gradients lead back to the process that each row comes from."""
        if self.size == 1:
            return rows
        if not self.own_first:
            return _AllGather.apply(rows, self.counts) if rows.requires_grad else _gathered(rows, self.counts)
        everyone = _gathered(rows.detach(), self.counts)
        return torch.cat([rows, everyone[: self.own.start], everyone[self.own.stop :]])

    def added(self, values: Shaped[Tensor, "*D"]) -> Shaped[Tensor, "*D"]:
        """The sum over all processes. Gradients lead back to each."""
        return values if self.size == 1 else _AllGather.apply(values[None], (1,) * self.size).sum(0)

    def asked(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "Q *D"]:
        """The rows that a loss of this process is about: its own, or all of them, as released."""
        return self.gather(rows) if self.own_first else rows

    def compared(self, rows: Shaped[Tensor, "B *D"]) -> tuple[Shaped[Tensor, "Q *D"], Shaped[Tensor, "G *D"]]:
        """Returns the rows that a loss of this process is about, and the rows of all processes to compare them with."""
        return self.asked(rows), self.gather(rows)

    def gather_texts(self, texts: Texts) -> Texts:
        """The texts of all processes, padded to the longest of them."""
        if self.size == 1:
            return texts
        more = self._longest(texts.input_ids.shape[1], texts.input_ids.device) - texts.input_ids.shape[1]
        ids, mask = (F.pad(grid.long(), (0, more)) for grid in (texts.input_ids, texts.attention_mask))
        keys = None if texts.keys is None else self.gather(texts.keys)
        return Texts(self.gather(ids), self.gather(mask).bool(), keys)

    def gather_states(self, states: TextState) -> TextState:
        """The encoded texts of all processes, with their gradients."""
        if self.size == 1:
            return states
        packed, layout = states.packed, states.packed.layout
        longest = self._longest(layout.length, states.hidden.device)
        grid = self.gather(F.pad(layout.pad(states.hidden), (0, 0, 0, longest - layout.length)))
        lengths = self.gather(packed.lengths)
        keys = None if packed.keys is None else self.gather(packed.keys)
        everyone = Packed(lengths, keys)
        places = everyone.sequence * longest + everyone.position
        visible = None
        if states.visible is not None:
            shown = self.gather(F.pad(layout.pad(states.visible), (0, longest - layout.length)).long())
            visible = shown.flatten()[places].bool()
        return TextState(grid.flatten(0, 1)[places], everyone, visible)

    def _longest(self, length: int, device: torch.device) -> int:
        return int(_gathered(torch.tensor([length], device=device), (1,) * self.size).max())

    def locate(self, drawn: Int[Tensor, "B"], behind: int) -> tuple[Int[Tensor, "B"], Int[Tensor, "m"]]:
        """Where drawn rows of all processes stand once those of others are fetched behind `behind` rows that begin
        with this process's, and which others to fetch."""
        place = drawn - (0 if self.own_first else self.own.start)
        foreign = (place < 0) | (place >= self.rows)
        others, order = drawn[foreign].unique(return_inverse=True)
        return place.masked_scatter(foreign, behind + order), others
