"""Worlds of real processes that exchange rows by gloo, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Work = Callable[[int, int], Any]
"""What a process does, told its rank and how many there are; a function of a module, so that processes find it."""

PRELOADED = ["diptych.run", "tests.tiny"]
"""What a server process imports once, of which the processes of all worlds are forks."""


def run_world(size: int, work: Work, folder: Path) -> list[Any]:
    """What each of `size` processes gives, by rank. A world of one is this process, without a process group."""
    if size == 1:
        return [work(0, 1)]
    multiprocessing.set_forkserver_preload(PRELOADED)
    mp.start_processes(_process, (size, work, folder), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(rank: int, size: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    try:
        torch.save(work(rank, size), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def mean_gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter that has one, averaged over the processes as data-parallel training does."""
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    if not dist.is_initialized():
        return found
    flat = torch.cat([gradient.flatten() for gradient in found.values()])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in found.values()])
    return {name: part.view_as(gradient) for (name, gradient), part in zip(found.items(), parts, strict=True)}
