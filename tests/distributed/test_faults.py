"""A fault of one process ends the whole run, which says so, loses nothing, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints import store
from tests.distributed.warm import ALL
from tests.smoke.test_resume import KILLED, ROOT, result

Run = Callable[..., tuple[list[int], str]]
FSDP = {"run__parallel": "fsdp", "run__checkpoint_async": True}


@pytest.fixture(scope="module")
def run() -> Any:
    """Returns `run(folder, size, changes, resume, fault)`, which gives exit statuses and the log."""
    command = [sys.executable, "-m", "tests.distributed.ordered"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ordered(
            folder: Path, size: int = 2, changes: dict[str, Any] | None = None, resume: bool = False,
            fault: tuple[str, int, int] | None = None,
        ) -> tuple[list[int], str]:  # fmt: skip
            request = {"folder": str(folder), "size": size, "changes": changes or {}, "resume": resume, "fault": fault}
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            statuses = json.loads(process.stdout.readline())
            return statuses, folder.with_suffix(".log").read_text()

        yield ordered
        assert process.stdin
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, changes in (("ddp", {}), ("fsdp", FSDP)):
        assert run(folder / name, changes=changes)[0] == [0, 0]
    return {name: folder / name for name in ("ddp", "fsdp")}


@pytest.mark.parametrize(("name", "changes"), [("ddp", {}), ("fsdp", FSDP)])
@pytest.mark.parametrize(("rank", "step"), [(0, 9), (1, 6)])
def test_a_process_killed_at_any_step_leaves_a_run_that_ends_with_the_same_bits(
    run: Run, undisturbed: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], rank: int, step: int
) -> None:
    statuses, log = run(tmp_path / "run", changes=changes, fault=("kill", rank, step))
    assert statuses[rank] == KILLED
    assert statuses[1 - rank] != 0
    assert "another process of this run is gone" in log or statuses[1 - rank] == KILLED
    assert run(tmp_path / "run", changes=changes, resume=True)[0] == [0, 0]
    assert result(tmp_path / "run") == result(undisturbed[name])


def test_a_signal_to_one_process_saves_the_step_of_all_and_any_number_goes_on(
    run: Run, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    statuses, log = run(tmp_path / "run", changes=FSDP, fault=("terminate", 1, 6))
    assert statuses == [143, 143]
    assert "SIGTERM: step 7 is saved. Go on with: diptych resume" in log
    assert run(tmp_path / "run", size=4, changes=FSDP, resume=True)[0] == [0] * 4
    ours, theirs = (store.load_from(folder).weights() for folder in (tmp_path / "run", undisturbed["fsdp"]))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(told(key, ours[key]), told(key, value), rtol=0, atol=1e-4, msg=key)


def told(name: str, weight: Tensor) -> Tensor:
    """Leaves out biases of keys. No softmax depends on them, so their gradients are rounding, which Adam enlarges."""
    return torch.cat([*weight.chunk(3)[::2]]) if name.endswith(".qkv.bias") else weight


def test_a_number_of_one_process_that_is_none_stops_all_before_the_weights_and_names_it(
    run: Run, tmp_path: Path
) -> None:
    statuses, log = run(tmp_path / "run", fault=("poison", 1, 6))
    assert statuses == [2, 2]
    assert "not finite at step 7: the loss of process 1 is nan; the weights are still those of step 6" in log
    assert "Records: scenes/train/" in log


@pytest.mark.parametrize(("fault", "rank"), [("stop", 0), ("stop", 1), ("sleep", 1)])
def test_a_process_that_hangs_is_named_and_all_end(run: Run, tmp_path: Path, fault: str, rank: int) -> None:
    statuses, log = run(tmp_path / "run", changes={"run__timeout": 3.0}, fault=(fault, rank, 6))
    assert 75 in statuses
    why = "does not answer" if fault == "stop" else "has not got its data yet"
    assert f"no step for 3 s (run.timeout), in step 7: process {rank} {why}" in log


def test_a_disk_that_is_full_for_one_process_stops_all_and_leaves_the_checkpoint_before(
    run: Run, tmp_path: Path
) -> None:
    changes = {"run__parallel": "fsdp"}
    statuses, log = run(tmp_path / "run", changes=changes, fault=("fill disk", 1, 6))
    assert statuses == [2, 2]
    assert "checkpoint of step 8 could not be written" in log
    assert "the last whole one is" in log
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert run(tmp_path / "run", changes=changes, resume=True)[0] == [0, 0]


def test_a_disk_that_is_full_for_all_before_their_workers_start_ends_all(run: Run, tmp_path: Path) -> None:
    """Shared memory consists of files, too: workers that hand batches over in it could not, and all would wait."""
    changes = {"run__parallel": "fsdp"}
    statuses, log = run(tmp_path / "run", changes=changes, fault=("fill disk", ALL, 0))
    assert statuses == [2, 2]
    assert "could not be written" in log
    assert run(tmp_path / "run", changes=changes, resume=True)[0] == [0, 0]


def test_a_folder_that_holds_a_run_is_refused_by_all(run: Run, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text("{}")
    statuses, log = run(folder)
    assert statuses == [2, 2]
    assert "already holds a run: go on with" in log


def test_torchrun_starts_a_killed_process_anew_and_the_run_ends_with_the_same_bits(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2",
            "-m", "tests.distributed.once_killed", str(folder),
        ],
        cwd=ROOT,
        # Without it the first restart waits for a store that ended with the processes.
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    assert result(folder) == result(undisturbed["ddp"])


def test_trainers_and_their_workers_end_when_what_started_them_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, threading, time
from pathlib import Path
from tests.distributed.warm import children_of, run, small

def tell():
    while True:
        trainers = children_of(os.getpid())
        workers = [worker for trainer in trainers for worker in children_of(trainer)]
        if len(workers) == 4:
            print(*trainers, *workers, flush=True)
            return
        time.sleep(0.05)

threading.Thread(target=tell, daemon=True).start()
run(2, small(run__steps=100_000, data__workers=2), Path({str(tmp_path / "run")!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        processes = [Path(f"/proc/{number}") for number in process.stdout.readline().split()]
        process.kill()
    assert len(processes) == 6
    deadline = time.monotonic() + 30
    while any(place.exists() for place in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(place.exists() for place in processes)
