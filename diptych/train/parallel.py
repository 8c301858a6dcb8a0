"""One task on all processes of a run: copied to each of them (DDP), or sharded between them (FSDP)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from diptych.checkpoints.store import Stored
from diptych.nn.blocks import Block
from diptych.nn.recompute import recomputed
from diptych.nn.shards import own_part, own_rows
from diptych.schema import Recipe
from diptych.task import Network, Task
from diptych.train.distributed import World
from diptych.train.optim import gradient_norm
from diptych.types import AnyBatch, Losses, Progress


@dataclass
class ParallelTask:
    """A task as all processes train it; for a process alone it is the task itself."""

    task: Task
    world: World = field(default_factory=World)
    wrapper: nn.Module | None = None
    """The DDP module that averages gradients. None where the task is sharded, which averages them too, or is alone."""
    sharded: bool = False
    """Whether each process holds only a part of every weight (FSDP)."""

    @classmethod
    def of(cls, task: Task, recipe: Recipe, world: World) -> ParallelTask:
        """Prepares the task, on its device already, as the recipe's `run` says. All processes must hold equal weights.

        This includes gradient accumulation with recomputation (`optim.accumulate`), activation checkpointing of blocks,
        and their compilation.
        """
        run, blocks = recipe.run, [part for part in task.modules() if isinstance(part, Block)]
        for part in task.modules():
            if isinstance(part, Network):
                part.pieces = recipe.optim.accumulate
        for block in blocks:
            if run.activation_checkpointing:
                block.forward = _checkpointed(block.forward)
        if run.compile:
            compile_blocks(task)
        if world.size == 1:
            return cls(task)
        if run.parallel == "fsdp":
            _shard(task, blocks, world)
            return cls(task, world, sharded=True)
        device = next(task.parameters()).device
        wrapper = DistributedDataParallel(
            task,
            device_ids=None if device.type == "cpu" else [device],
            forward_sync_buffers=False,
            # Before `fuse_start`, the fusion layers get no gradient.
            find_unused_parameters=getattr(recipe.task, "fuse_start", 0) > 0,
        )
        return cls(task, world, wrapper)

    def forward(self, batch: AnyBatch, progress: Progress) -> Losses:
        """Computes the losses of this process's batch."""
        losses: Losses = (self.wrapper or self.task)(batch, progress)
        return losses

    def parameters(self) -> dict[str, Tensor]:
        """Returns the trained parameters by name, as plain tensors: where they are sharded, this process's shards."""
        trained = ((name, value) for name, value in self.task.named_parameters() if value.requires_grad)
        return {name: own_part(value.detach()) if self.sharded else value for name, value in trained}

    def hand_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Gives `parameters` their gradients, averaged over the processes."""
        if not self.sharded:
            return
        for name, value in self.task.named_parameters():
            if value.grad is None or name not in parameters:
                continue
            if value.ndim == 0:  # FSDP leaves scalars whole and does not average their gradients
                dist.all_reduce(value.grad)
                value.grad /= self.world.size
            parameters[name].grad = own_part(value.grad)

    def clear_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Sets the gradients of the task and of `parameters` to None."""
        self.task.zero_grad(set_to_none=True)
        for value in parameters.values():
            value.grad = None

    def gradient_norm(self, parameters: Mapping[str, Tensor], clip: float | None) -> Tensor:
        """Returns the norm of the whole gradient, and then scales the gradient down in place to at most `clip`."""
        if not self.sharded:
            return gradient_norm(parameters.values(), clip)
        gradients = [value.grad for value in parameters.values() if value.grad is not None]
        # Shards are added up over the processes; scalars are the same in each of them and count once.
        squares = nn.utils.get_total_norm([gradient for gradient in gradients if gradient.ndim]) ** 2
        dist.all_reduce(squares)
        norm = (
            squares + nn.utils.get_total_norm([gradient for gradient in gradients if not gradient.ndim]) ** 2
        ) ** 0.5
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters.values(), clip, norm)
        return norm

    def local_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Selects what this process writes into a checkpoint, of the task's state or of the optimiser's.

        Where they are sharded, each process writes its shards, and the first one also writes whole tensors.
        """
        if not self.sharded:
            return dict(tensors)
        parts = {name: (own_part(value), isinstance(value, DTensor) or "/" in name) for name, value in tensors.items()}
        return {
            name: value
            for name, (value, is_shard) in parts.items()
            if (value.numel() and value.ndim and is_shard) or self.world.first
        }

    def read(self, stored: Stored, name: str, like: Tensor | None = None) -> Tensor:
        """Reads this process's part of a stored tensor.

        `like`: the tensor that will hold it. It tells, where the task is sharded, whether this one is kept whole.
        """
        shape = stored.shape(name)
        if not self.sharded or not shape or (like is not None and not isinstance(like, DTensor)):
            return stored.whole(name)
        return stored.rows(name, own_rows(shape[0], self.world.rank, self.world.size))

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Holds the weights outside blocks whole in every process, so that methods beside `forward` can be called."""
        if not isinstance(self.task, FSDPModule):
            yield
            return
        self.task.unshard()
        try:
            yield
        finally:
            self.task.reshard()


def compile_blocks(task: nn.Module, **options: Any) -> None:
    """Compiles each block of a task by `torch.compile`, with its options."""
    torch._dynamo.config.recompile_limit = 64  # blocks of one class are called with different arguments
    for part in task.modules():
        if isinstance(part, Block):
            part.compile(**options)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a block's `forward`, which keeps only its inputs and is computed again in the backward pass."""

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        return recomputed(lambda *inputs: forward(*inputs, **kwargs), *args)

    return recomputing


def _shard(task: Task, blocks: Sequence[nn.Module], world: World) -> None:
    """Shards the task with FSDP. A block is whole while it computes, the rest as long as the task's forward runs."""
    device = next(task.parameters()).device.type
    mesh = init_device_mesh(device, (world.size,))
    scalars = {value for value in task.parameters() if value.ndim == 0}  # which have no dimension to shard
    # torch warns of each block whose output is a view, which must not be changed in place. No output here is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
