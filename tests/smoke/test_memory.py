"""The memory of a training does not depend on how long it trains, however unlike its batches are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, gc, json, random, sys
from pathlib import Path
import torch
from diptych.apps.plan.machine import status
from diptych.data.loader import Loaded
from diptych.data.skips import SkipLedger
from diptych.recipes.override import override
from diptych.recipes.vlmo import vlmo_tiny
from diptych.train import loop
from tests import tiny

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in NAMES]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
loop.TRIM_EVERY = every = 20
steps = 4 * every
measured = []

class Unlike:
    steps_per_epoch = 1000
    ledger = SkipLedger(1.0, 100)

    def batches(self, start_step):
        lengths = random.Random(0)
        for number in range(steps):
            if number and number % every == 0:  # the loop has just returned what is free
                gc.collect()
                info = mallinfo()
                measured.append({"used": info.uordblks + info.hblkhd, "resident": status("VmRSS")})
            yield Loaded(tiny.batch([lengths.randint(3, 12) for _ in range(8)], range(8), number), (), (), 0)

settings = {"run": {"steps": steps, "batch_size": 8, "log_every": 10, "validate_every": 0, "checkpoint_every": 10**6}}
task = tiny.vlmo_pretraining(itm=1.0, mlm=1.0, itc=1.0, fuse_start=0)
loop.train(task, Unlike(), override(vlmo_tiny(), settings), Path(sys.argv[1]))
print(json.dumps(measured))
"""

BETWEEN = """
from diptych.apps.plan.machine import status
from diptych.train.memory import trim

large, small = [], []
for _ in range(2000):
    large.append(bytearray(100_000))
    small.append(bytes(600))  # stays, so that the heap cannot shrink from its end
large.clear()
before = status("VmRSS")
trim()
print(before - status("VmRSS"))
"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux and glibc state it")


@linux
def test_unlike_batches_leave_nothing_behind(tmp_path: Path) -> None:
    # oneDNN keeps the 1,024 newest of what it has compiled for the shapes that it met; here it keeps few.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert len(measured) == 3
    first, last = measured[0], measured[-1]
    assert last["used"] - first["used"] < 1_000_000, "something of every step is kept"
    assert last["resident"] - first["resident"] < 5_000_000, "free memory stays with the process"


@linux
def test_free_memory_between_what_is_in_use_is_returned() -> None:
    # In a process of its own: where earlier tests left small holes in the heap, the small pieces would go there.
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100_000_000
