"""Gathering over data-parallel processes: the samples that all of them hold (VLMo §3.3).

With one process this costs nothing and needs no process group. B rows (samples) of this process, W processes, G rows of
all of them in the order of the processes, Q rows that one process's loss is about, L text length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from diptych.nn.packed import PackedSequences, TextState
from diptych.types import Texts


class _AllGather(torch.autograd.Function):
    """Gathers the rows of all processes; backwards, sums over processes the gradients of this process's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        before = sum(counts[: dist.get_rank()])
        ctx.own = slice(before, before + len(rows))
        return _gathered(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None


def _gathered(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Gathers rows without gradient. Processes with fewer rows than the largest one send padding, which is cut off."""
    most = max(counts)
    padded = rows.contiguous()
    if len(rows) < most:
        padded = torch.cat([padded, padded.new_zeros(most - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded, memory_format=torch.contiguous_format) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@dataclass(frozen=True)
class Processes:
    """The processes of the default group, each with its rows of one global batch."""

    rows: int
    """B."""
    rank: int = 0
    counts: tuple[int, ...] = ()
    """Rows of each process; () for a single process. They differ where records could not be read."""
    own_first: bool = False
    """As released for VLMo: this process's rows are gathered in front, and the others' get no gradient."""

    @classmethod
    def meet(cls, rows: int, own_first: bool = False) -> Processes:
        """Exchanges how many rows each process has. All processes must call this together."""
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
        """Returns where `gather` puts this process's rows."""
        return torch.arange(self.rows, device=device) + (0 if self.own_first else self.own.start)

    def gather(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "G *D"]:
        """Gathers the rows of all processes. Gradients flow back to the process that each row comes from."""
        if self.size == 1:
            return rows
        if not self.own_first:
            return _AllGather.apply(rows, self.counts) if rows.requires_grad else _gathered(rows, self.counts)
        everyone = _gathered(rows.detach(), self.counts)
        return torch.cat([rows, everyone[: self.own.start], everyone[self.own.stop :]])

    def added(self, values: Shaped[Tensor, "*D"]) -> Shaped[Tensor, "*D"]:
        """Sums over all processes. Gradients flow back to each."""
        return values if self.size == 1 else _AllGather.apply(values[None], (1,) * self.size).sum(0)

    def queries(self, rows: Shaped[Tensor, "B *D"]) -> Shaped[Tensor, "Q *D"]:
        """Returns the rows that this process's contrastive loss is about: its own or, as released, all of them."""
        return self.gather(rows) if self.own_first else rows

    def compared(self, rows: Shaped[Tensor, "B *D"]) -> tuple[Shaped[Tensor, "Q *D"], Shaped[Tensor, "G *D"]]:
        """Returns the rows that a loss of this process is about, and the rows of all processes to compare them with."""
        return self.queries(rows), self.gather(rows)

    def gather_texts(self, texts: Texts) -> Texts:
        """Gathers the texts of all processes, padded to the longest."""
        if self.size == 1:
            return texts
        more = self._longest(texts.input_ids.shape[1], texts.input_ids.device) - texts.input_ids.shape[1]
        ids, mask = (F.pad(tokens.long(), (0, more)) for tokens in (texts.input_ids, texts.attention_mask))
        rng_keys = None if texts.rng_keys is None else self.gather(texts.rng_keys)
        return Texts(self.gather(ids), self.gather(mask).bool(), rng_keys)

    def gather_states(self, states: TextState) -> TextState:
        """Gathers the encoded texts of all processes, with their gradients."""
        if self.size == 1:
            return states
        packed, grid = states.packed, states.packed.grid
        longest = self._longest(grid.length, states.hidden.device)
        hidden = self.gather(F.pad(grid.pad(states.hidden), (0, 0, 0, longest - grid.length)))  # [G, longest, D]
        rng_keys = None if packed.rng_keys is None else self.gather(packed.rng_keys)
        everyone = PackedSequences(self.gather(packed.lengths), rng_keys)
        cells = everyone.sequence_ids * longest + everyone.position_ids
        attention_mask = None
        if states.attention_mask is not None:
            mask = F.pad(grid.pad(states.attention_mask), (0, longest - grid.length))
            attention_mask = self.gather(mask.long()).flatten()[cells].bool()
        return TextState(hidden.flatten(0, 1)[cells], everyone, attention_mask)

    def _longest(self, length: int, device: torch.device) -> int:
        return int(_gathered(torch.tensor([length], device=device), (1,) * self.size).max())

    def locate(self, drawn: Int[Tensor, "B"], behind: int) -> tuple[Int[Tensor, "B"], Int[Tensor, "m"]]:
        """Returns where drawn rows of the global batch are found, and which rows of other processes to fetch for that.

        The fetched rows are appended to `behind` rows here, which begin with this process's own.
        """
        place = drawn - (0 if self.own_first else self.own.start)
        foreign = (place < 0) | (place >= self.rows)
        others, order = drawn[foreign].unique(return_inverse=True)
        return place.masked_scatter(foreign, behind + order), others
