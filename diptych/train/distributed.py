"""Lets the processes of a run meet, exchange values, add up their losses and agree on each step.

`torchrun` starts the processes. A process alone needs none of this, and exchanges nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.data.workers import small_shared_memory
from diptych.launched import local_rank, processes
from diptych.schema import RunConfig
from diptych.types import Losses, Term

Result = TypeVar("Result")
LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL", "recvValue failed")
"""Parts of the errors that the backends raise when another process does not answer any more."""


@dataclass(frozen=True)
class World:
    """All processes of a run, as one of them sees them. By default that one is alone."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """The process group through which values are exchanged; None is the default group."""
    background: World | None = None
    """The same processes with a group of their own, for checkpoints that are written while training goes on: in the
    default group their messages would mix with those of the training."""

    @property
    def first(self) -> bool:
        """Whether this process prints and writes for all of them."""
        return self.rank == 0

    def broadcast(self, value: Result | None) -> Result:
        """Returns the first process's value in every process. All must call this."""
        if self.size == 1:
            return value  # type: ignore[return-value]
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the first process only and returns its result in all. A ValueError is raised in all, too."""
        result: Result | None = None
        error: ValueError | None = None
        if self.first:
            try:
                result = work()
            except ValueError as raised:
                error = raised
        if failure := self.broadcast(error):
            raise failure
        return self.broadcast(result)

    def gather(self, value: Any) -> list[Any]:
        """Returns each process's value, in the order of their ranks. All must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


@contextmanager
def joined(run: RunConfig) -> Iterator[World]:
    """Joins the processes that `torchrun` started, if it did. A process group that exists already is used and kept."""
    opens_group = processes() > 1 and not dist.is_initialized()
    if opens_group:
        backend = "nccl" if torch.cuda.is_available() and run.device != "cpu" else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(local_rank())
        dist.init_process_group(backend, timeout=timedelta(seconds=2 * run.timeout))
    try:
        if dist.is_initialized() and dist.get_world_size() > 1:
            rank, size = dist.get_rank(), dist.get_world_size()
            # Without a limit of its own, this group would wait half an hour. A disk may be slow: at least a minute.
            limit = timedelta(seconds=max(60.0, 2 * run.timeout))
            yield World(rank, size, background=World(rank, size, dist.new_group(backend="gloo", timeout=limit)))
        else:
            yield World()
    except RuntimeError as error:
        if opens_group and any(sign in str(error) for sign in LOST):
            raise OSError(
                f"another process of this run is gone, and this one ends with it ({error}){small_shared_memory()}"
            ) from error
        raise
    finally:
        if opens_group:
            dist.destroy_process_group()


# --------------------------------------------------------------------------- sums over all processes


def loss_share(losses: Losses, world: World) -> Tensor:
    """Returns what this process differentiates; its average over the processes is the loss of the global batch.

    Each term is a mean over the items of all processes, however unequally the items are spread over them.
    """
    if world.size == 1:
        return losses.total
    counts = torch.stack([term.count.float() for _, term in losses.terms.values()])
    dist.all_reduce(counts)
    terms = {
        name: (weight, Term(term.sum * world.size, count))
        for (name, (weight, term)), count in zip(losses.terms.items(), counts, strict=True)
    }
    return Losses(terms).total


def global_losses(losses: Losses, world: World) -> Losses:
    """Adds up the terms and measures of all processes, detached from the graph."""
    terms = {name: (weight, term.detach()) for name, (weight, term) in losses.terms.items()}
    measures = {name: term.detach() for name, term in losses.measures.items()}
    if world.size == 1:
        return Losses(terms, measures)
    means = [term for _, term in terms.values()] + list(measures.values())
    flat = torch.stack([part.float() for term in means for part in (term.sum, term.count)])
    dist.all_reduce(flat)  # one message for all sums and counts
    totals = iter(type(term)(*pair) for term, pair in zip(means, flat.view(-1, 2), strict=True))
    return Losses(
        {name: (weight, next(totals)) for name, (weight, _) in terms.items()},
        {name: next(totals) for name in measures},
    )


@dataclass(frozen=True)
class StepConsensus:
    """The facts about a step that all processes share before they take it."""

    finite: bool
    """Whether the loss and the gradient of every process are finite."""
    pairs: int
    """Samples in the global batch."""
    stopped: signal.Signals | None
    """The signal to stop, if any process received one."""


STOPS = (signal.SIGINT, signal.SIGTERM)


def agree(world: World, loss: Tensor, norm: Tensor, pairs: int, caught: signal.Signals | None) -> StepConsensus:
    """Exchanges, in one message, whether each process can take the step, its samples, and its signal to stop."""
    finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
    if world.size == 1:
        return StepConsensus(finite, pairs, caught)
    counts = torch.tensor(
        [not finite, pairs, *(caught == stop for stop in STOPS)], dtype=torch.long, device=loss.device
    )
    dist.all_reduce(counts)
    failed, total_pairs, *stops = counts.tolist()
    stopped = next((stop for stop, count in zip(STOPS, stops, strict=True) if count), None)
    return StepConsensus(not failed, total_pairs, stopped)
