"""What data-parallel processes see of each other: the rows of all of them (VLMo §3.3).

A world of one process costs nothing and needs no process group. B rows of this process, W processes, G = W·B rows of
all of them, in the order of the processes, Q rows that a loss of one process is about, L text length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from diptych.types import Term, Texts


class _AllGather(torch.autograd.Function):
    """The rows of all processes; backwards, this process's rows get what every process asks of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(rows), (dist.get_rank() + 1) * len(rows))
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        asked = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(asked)
        return asked[ctx.own]


def _gathered(rows: Tensor) -> Tensor:
    places = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(places, rows.contiguous())
    return torch.cat(places)


@dataclass(frozen=True)
class Processes:
    """The processes of the default group, each with B rows of one global batch."""

    rows: int
    """B."""
    rank: int = 0
    size: int = 1
    """W."""
    own_first: bool = False
    """Gather this process's rows in front of the others', and lead no gradient to those, as released for VLMo."""

    @classmethod
    def meet(cls, rows: int, own_first: bool = False) -> Processes:
        """All processes, which must call this together. Raises ValueError where they differ in the number of rows."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(rows, own_first=own_first)
        device = "cpu" if dist.get_backend() == "gloo" else "cuda"
        counts = _gathered(torch.tensor([rows], device=device)).tolist()
        if set(counts) != {rows}:
            raise ValueError(f"processes need equally many pairs each, not {counts}: drop the rest of the last batch")
        return cls(rows, dist.get_rank(), dist.get_world_size(), own_first)

    @property
    def total(self) -> int:
        """G."""
        return self.rows * self.size

    @property
    def own(self) -> slice:
        """This process's rows of the global batch."""
        return slice(self.rank * self.rows, (self.rank + 1) * self.rows)

    def places(self, device: torch.device) -> Int[Tensor, "B"]:
        """Where `gather` puts this process's rows."""
        return torch.arange(self.rows, device=device) + (0 if self.own_first else self.own.start)

    def gather(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "G *D"]:
        """The rows of all processes. Gradients lead back to the process that each row comes from."""
        if self.size == 1:
            return rows
        if not self.own_first:
            return _AllGather.apply(rows) if rows.requires_grad else _gathered(rows)
        everyone = _gathered(rows.detach())
        return torch.cat([rows, everyone[: self.own.start], everyone[self.own.stop :]])

    def asked(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "Q *D"]:
        """The rows that a loss of this process is about: its own, or all of them, as released."""
        return self.gather(rows) if self.own_first else rows

    def gather_texts(self, texts: Texts) -> Texts:
        """The texts of all processes, padded to the longest of them."""
        if self.size == 1:
            return texts
        length = texts.input_ids.new_tensor([texts.input_ids.shape[1]])
        more = int(_gathered(length).max() - length)
        ids, mask = (F.pad(grid.long(), (0, more)) for grid in (texts.input_ids, texts.attention_mask))
        return Texts(self.gather(ids), self.gather(mask).bool())

    def locate(self, drawn: Int[Tensor, "B"], behind: int) -> tuple[Int[Tensor, "B"], Int[Tensor, "m"]]:
        """Where drawn rows of all processes stand once those of others are fetched behind `behind` rows that begin
        with this process's, and which others to fetch."""
        place = drawn - (0 if self.own_first else self.own.start)
        foreign = (place < 0) | (place >= self.rows)
        others, order = drawn[foreign].unique(return_inverse=True)
        return place.masked_scatter(foreign, behind + order), others

    def shared(self, term: Term) -> Term:
        """A term whose mean, averaged over the processes, is the mean over the items of all of them."""
        return term if self.size == 1 else Term(term.sum * self.size, _gathered(term.count[None]).sum())
