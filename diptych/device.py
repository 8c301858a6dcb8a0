"""The choice of a device by its name."""

from __future__ import annotations

import torch

from diptych.launched import local_rank, processes


def find_device(device: str | int | torch.device | None) -> torch.device:
    """Finds a device by its name, as torch has it, or by the number of a GPU; None is `auto`.

    `auto` prefers CUDA, then MPS, then the CPU. Each process of `torchrun` has its own GPU. Raises ValueError for a
    device that this machine does not have.
    """
    name = "auto" if device is None else f"cuda:{device}" if isinstance(device, int) else str(device).lower()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, exists in available.items() if exists)
    if not available.get(name.split(":")[0], False):
        choices = ", ".join(["auto", *(kind for kind, exists in available.items() if exists)])
        raise ValueError(f"no device '{name}' on this machine: choose one of {choices}")
    return torch.device(f"cuda:{local_rank()}" if name == "cuda" and processes() > 1 else name)
