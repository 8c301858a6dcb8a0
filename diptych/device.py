"""Turns a device's name into a torch device. Nothing else in the library knows devices by name."""

from __future__ import annotations

import torch

from diptych.launched import local_rank, processes


def find_device(name: str) -> torch.device:
    """Returns the device of that name; `auto` takes CUDA, else MPS, else the CPU.

    Each process that `torchrun` starts takes a GPU of its own. Raises ValueError for a device that the machine lacks.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in present.items() if available)
    if not present.get(name.split(":")[0], False):
        choices = ", ".join(["auto", *(kind for kind, available in present.items() if available)])
        raise ValueError(f"no device '{name}' on this machine: choose one of {choices}")
    return torch.device(f"cuda:{local_rank()}" if name == "cuda" and processes() > 1 else name)
