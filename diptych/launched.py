"""What `torchrun` tells the processes that it starts. This file does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import os


def processes() -> int:
    """Returns the number of processes; 1 for a process that `torchrun` did not start."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Returns this process's number among all of them, from 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Returns this process's number among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew after a fault."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _number(variable: str, default: int) -> int:
    """Reads a whole number from the environment. Raises ValueError naming the variable."""
    value = os.environ.get(variable) or str(default)
    if not value.strip().isdecimal():
        raise ValueError(
            f"{variable}={value[:40]!r} in the environment is no whole number: torchrun sets it, or unset it"
        )
    return int(value)
