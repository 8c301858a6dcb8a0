"""A process that trains on request and can be killed at any moment: `python -m tests.smoke.killable`.

It imports and warms up once, then forks for each request, one JSON line `{"folder", "resume", "kill_at", "kind"}` on
stdin. `kind` is the recipe's `optim.kind`. The child kills itself with SIGKILL when Python has entered or left its
`kill_at`-th function: so a kill falls anywhere, in a step, in a validation, in the writing of a checkpoint or of a log
line, and a test can repeat it. The answer is a line `{"status", "moments"}`: the exit status, -9 for a kill, and how
many such moments the whole run had.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from diptych.catalog import find_recipe
from diptych.recipes.override import override
from diptych.run import train

OVERRIDES = {
    "model.vision": {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "heads": 2},
    "model.text": {"width": 32, "layers": 2, "fusion_start": 1, "heads": 2, "intermediate": 64, "dropout": 0.1},
    "model.embed_dim": 16,
    "task.queue_size": 20,
    "data.scenes": {"sprites": "shapes", "size": 32, "count": 40, "evaluation_count": 16},
    "tokenizer.size": 150,
    "optim.accumulate": 2,
    "optim.kind": "adamw",
    "optim.lr": 6e-4,
    "schedule.warmup_steps": 5,
    "run": {
        "steps": 12, "batch_size": 6, "log_every": 1, "checkpoint_every": 4, "validate_every": 5,
        "validation_items": 16, "threads": 1,
    },
}  # fmt: skip
"""A small run with everything that has state: dropout, accumulation, a queue that wraps, a worker, validations."""


RECIPE = override(find_recipe("albef_tiny"), OVERRIDES)
RECIPES = {kind: override(RECIPE, {"optim.kind": kind}) for kind in ("adamw", "muon")}


def count_moments(kill_at: int | None) -> Callable[[], int]:
    """Counts from now on, and kills this process at `kill_at`. Returns a function that tells the count."""
    moments, process = 0, os.getpid()

    def moment(frame: FrameType, event: str, argument: object) -> None:
        nonlocal moments
        moments += 1
        if moments == kill_at and os.getpid() == process:  # not in a loader's worker, which inherits this
            os.kill(process, signal.SIGKILL)

    sys.setprofile(moment)
    return lambda: moments


def child(request: dict[str, Any], answer: int) -> None:
    moments = count_moments(request["kill_at"])
    train(RECIPES[request["kind"]], Path(request["folder"]), resume=request["resume"])
    sys.setprofile(None)
    os.write(answer, str(moments()).encode())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:  # whatever is imported on first use is imported now
        train(RECIPE, Path(folder) / "warm")
    for line in sys.stdin:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                child(json.loads(line), writing)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(process, 0)
        os.close(writing)
        os.set_blocking(reading, False)  # a killed child's loader holds the other end until it notices
        try:
            moments = int(os.read(reading, 100) or 0)
        except BlockingIOError:
            moments = 0
        os.close(reading)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "moments": moments}), flush=True)


if __name__ == "__main__":
    main()
