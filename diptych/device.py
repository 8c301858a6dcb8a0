"""The one place that knows devices by name."""

from __future__ import annotations

import torch

from diptych.launched import local_rank, processes


def find_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Each process that `torchrun` starts has a GPU of its own.

    Raises ValueError for a device that is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present.get(name.split(":")[0], False):
        choices = ", ".join(["auto", *(kind for kind, there in present.items() if there)])
        raise ValueError(f"no device '{name}' on this machine: choose one of {choices}")
    return torch.device(f"cuda:{local_rank()}" if name == "cuda" and processes() > 1 else name)
