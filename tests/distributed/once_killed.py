"""Trains under `torchrun`, and kills one process at its first start: `… -m tests.distributed.once_killed RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

from diptych.launched import rank, restarted
from diptych.run import train
from tests.distributed.warm import Fault, inject, small


def main(folder: Path) -> None:
    if rank() == 1 and not restarted():
        (folder.parent / "killed").touch()
        inject(Fault("kill", 1, 7))
    train(small(), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
