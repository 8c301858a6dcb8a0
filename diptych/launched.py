"""What `torchrun` tells the processes that it starts. This file does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import os


def processes() -> int:
    """Returns the number of processes; 1 for a process that `torchrun` did not start."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns this process's number among all of them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns this process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew after a fault."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
