"""Processes that train one model: how they meet, share it, add up what they computed, and stop together.

`torchrun` starts them; a process alone needs none of this and pays nothing for it.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from diptych.checkpoints.store import Stored
from diptych.launched import local_rank, processes
from diptych.nn.blocks import Block
from diptych.nn.recompute import recomputed
from diptych.nn.shards import own_part, own_rows
from diptych.schema import Recipe, RunConfig
from diptych.task import Network, Task
from diptych.train.optim import gradient_norm
from diptych.types import AnyBatch, Losses, Progress, Term

Result = TypeVar("Result")
LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL", "recvValue failed")
"""What the backends say of a process that does not answer any more."""


@dataclass(frozen=True)
class World:
    """All processes of a run."""

    rank: int = 0
    size: int = 1
    files: Any = None
    """A process group of its own for checkpoints, which are written beside the training; None for a process alone."""

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def tell(self, value: Result | None) -> Result:
        """What the first process has, to all. All must call this."""
        if self.size == 1:
            return value  # type: ignore[return-value]
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def first_does(self, work: Callable[[], Result]) -> Result:
        """What the first process finds, to all; where it raises ValueError, all do."""
        made: Result | None = None
        error: ValueError | None = None
        if self.first:
            try:
                made = work()
            except ValueError as found:
                error = found
        if failed := self.tell(error):
            raise failed
        return self.tell(made)

    def exchange(self, value: Any, group: Any = None) -> list[Any]:
        """What each process has, in their order. All must call this."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=group)
        return found


@contextmanager
def joined(run: RunConfig) -> Iterator[World]:
    """The processes that `torchrun` started, or this one alone. A group that is there already is used, and left."""
    meets = processes() > 1 and not dist.is_initialized()
    if meets:
        backend = "nccl" if torch.cuda.is_available() and run.device != "cpu" else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(local_rank())
        dist.init_process_group(backend, timeout=timedelta(seconds=2 * run.timeout))
    try:
        if dist.is_initialized() and dist.get_world_size() > 1:
            # Its own group: what is written in the background would meet the training's messages in the default one.
            yield World(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
        else:
            yield World()
    except RuntimeError as error:
        if meets and any(sign in str(error) for sign in LOST):
            raise OSError(f"another process of this run is gone, and this one ends with it ({error})") from error
        raise
    finally:
        if meets:
            dist.destroy_process_group()


# --------------------------------------------------------------------------- one model on all processes


@dataclass
class Shared:
    """A task as all processes train it."""

    task: Task
    world: World = field(default_factory=World)
    wrapper: nn.Module | None = None
    """What averages gradients; None where the task does it itself, or is alone."""
    cut: bool = False
    """Whether each process holds a part of every weight."""

    @classmethod
    def of(cls, task: Task, recipe: Recipe, world: World) -> Shared:
        """Prepares the task, on its device already, as the recipe's `run` says. Weights must be equal everywhere."""
        run, blocks = recipe.run, [part for part in task.modules() if isinstance(part, Block)]
        for part in task.modules():
            if isinstance(part, Network):
                part.pieces = recipe.optim.accumulate
        if run.compile:
            torch._dynamo.config.recompile_limit = 64  # blocks of one class differ in what is asked of them
        for block in blocks:
            if run.activation_checkpointing:
                block.forward = _kept_out(block.forward)
            if run.compile:
                block.compile()
        if world.size == 1:
            return cls(task)
        if run.parallel == "fsdp":
            _cut(task, blocks, world)
            return cls(task, world, cut=True)
        device = next(task.parameters()).device
        wrapper = DistributedDataParallel(
            task,
            device_ids=None if device.type == "cpu" else [device],
            forward_sync_buffers=False,
            find_unused_parameters=getattr(recipe.task, "fuse_start", 0) > 0,  # before it, fusion has no gradient
        )
        return cls(task, world, wrapper)

    def forward(self, batch: AnyBatch, progress: Progress) -> Losses:
        losses: Losses = (self.wrapper or self.task)(batch, progress)
        return losses

    def parameters(self) -> dict[str, Tensor]:
        """What trains, by name, as plain tensors: this process's part of each where they are cut."""
        trained = ((name, value) for name, value in self.task.named_parameters() if value.requires_grad)
        return {name: own_part(value.detach()) if self.cut else value for name, value in trained}

    def hand_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Gives `parameters` their gradients, averaged over the processes."""
        if not self.cut:
            return
        for name, value in self.task.named_parameters():
            if value.grad is None or name not in parameters:
                continue
            if value.ndim == 0:  # is not cut, so nobody has averaged it
                dist.all_reduce(value.grad)
                value.grad /= self.world.size
            parameters[name].grad = own_part(value.grad)

    def clear_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        self.task.zero_grad(set_to_none=True)
        for value in parameters.values():
            value.grad = None

    def gradient_norm(self, parameters: Mapping[str, Tensor], clip: float | None) -> Tensor:
        """The norm of the whole gradient, before it is scaled down in place to at most `clip`."""
        if not self.cut:
            return gradient_norm(parameters.values(), clip)
        gradients = [value.grad for value in parameters.values() if value.grad is not None]
        squares = nn.utils.get_total_norm([one for one in gradients if one.ndim]) ** 2
        dist.all_reduce(squares)
        norm = (squares + nn.utils.get_total_norm([one for one in gradients if not one.ndim]) ** 2) ** 0.5
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters.values(), clip, norm)
        return norm

    def own_parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process writes down of a state or of the optimiser's memory.

        Where they are cut, its own rows; the first process writes what is whole besides.
        """
        if not self.cut:
            return dict(tensors)
        parts = {name: (own_part(value), isinstance(value, DTensor) or "/" in name) for name, value in tensors.items()}
        return {
            name: value
            for name, (value, cut) in parts.items()
            if (value.numel() and value.ndim and cut) or self.world.first
        }

    def read(self, stored: Stored, name: str, like: Tensor | None = None) -> Tensor:
        """What this process holds of a stored tensor; `like`: its own, where it may be whole besides those cut."""
        shape = stored.shape(name)
        if not self.cut or not shape or (like is not None and not isinstance(like, DTensor)):
            return stored.whole(name)
        return stored.rows(name, own_rows(shape[0], self.world.rank, self.world.size))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The task with what is not in a block put together, so that it can be asked without its `forward`."""
        if not isinstance(self.task, FSDPModule):
            yield
            return
        self.task.unshard()
        try:
            yield
        finally:
            self.task.reshard()


def _kept_out(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same, of which only what enters is kept for the way back."""

    def again(*args: Any, **kwargs: Any) -> Any:
        return recomputed(lambda *given: forward(*given, **kwargs), *args)

    return again


def _cut(task: Task, blocks: Sequence[nn.Module], world: World) -> None:
    """Each block is put together while it computes, the rest as long as the task does. Scalars cannot be cut."""
    device = next(task.parameters()).device.type
    mesh = init_device_mesh(device, (world.size,))
    scalars = {value for value in task.parameters() if value.ndim == 0}
    # torch warns of each block whose output is a view, which must not be changed in place: nothing here is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)


# --------------------------------------------------------------------------- sums over all processes


def shared_total(losses: Losses, world: World) -> Tensor:
    """What this process differentiates: averaged over the processes, it is the loss of the global batch.

    A term's mean is that over the items of all processes, however unequally they are spread.
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


def added_up(losses: Losses, world: World) -> Losses:
    """The numbers of the global batch, out of the graph."""
    terms = {name: (weight, term.detach()) for name, (weight, term) in losses.terms.items()}
    measures = {name: term.detach() for name, term in losses.measures.items()}
    if world.size == 1:
        return Losses(terms, measures)
    everything = [term for _, term in terms.values()] + list(measures.values())
    flat = torch.stack([part.float() for term in everything for part in (term.sum, term.count)])
    dist.all_reduce(flat)
    added = [type(term)(*pair) for term, pair in zip(everything, flat.view(-1, 2), strict=True)]
    weights = [weight for weight, _ in terms.values()]
    return Losses(
        dict(zip(terms, zip(weights, added, strict=False), strict=True)),
        dict(zip(measures, added[len(terms) :], strict=True)),
    )


@dataclass(frozen=True)
class StepConsensus:
    """What all processes know of a step before they take it."""

    finite: bool
    """Whether every loss and the gradient are numbers."""
    pairs: int
    stopped: signal.Signals | None
    """A signal to stop that any of them was sent."""


STOPS = (signal.SIGINT, signal.SIGTERM)


def agree(world: World, loss: Tensor, norm: Tensor, pairs: int, caught: signal.Signals | None) -> StepConsensus:
    """One message in which each process tells the others how it fares."""
    finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
    if world.size == 1:
        return StepConsensus(finite, pairs, caught)
    told = torch.tensor([not finite, pairs, *(caught == stop for stop in STOPS)], dtype=torch.long, device=loss.device)
    dist.all_reduce(told)
    broken, everyone, *stops = told.tolist()
    stopped = next((stop for stop, number in zip(STOPS, stops, strict=True) if number), None)
    return StepConsensus(not broken, everyone, stopped)
