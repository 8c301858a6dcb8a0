"""What `torchrun` says to the processes that it starts. No torch here: `--help` asks too."""

from __future__ import annotations

import os


def processes() -> int:
    """How many there are in all; 1 for a process that nobody else started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarted() -> bool:
    """Whether they were started anew after a fault."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
