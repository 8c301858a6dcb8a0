"""A run killed at any moment and resumed ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych.checkpoints import store

ROOT = Path(__file__).parents[2]
CHAINS = 12
STRETCHES = (1.0, 0.5)
"""The share of a whole run's moments into which the kills of a chain fall: the run's, and its first continuation's."""
KILLED = -9


class Trainer:
    """A warm process (tests/smoke/killable.py) that trains on request."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.smoke.killable"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def train(
        self, folder: Path, resume: bool = False, kill_at: int | None = None, kind: str = "adamw"
    ) -> dict[str, int]:
        request = {"folder": str(folder), "resume": resume, "kill_at": kill_at, "kind": kind}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.close()


def result(folder: Path) -> dict[str, Any]:
    """Returns what a run ends with, without times: the bits of its last checkpoint, its state and its log."""
    newest = store.latest(folder / "checkpoints")
    assert newest is not None
    checkpoint = store.load(newest)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest.pop("state.json")
    state = {**checkpoint.state, "run": {**checkpoint.state["run"], "seconds": None}}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: line[key] for key in line if "second" not in key and key != "waiting"} for line in lines]
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return {"manifest": manifest, "state": state, "log": log, "kept": kept}


def begun(folder: Path) -> bool:
    """Whether there is a run to resume. One that was killed before it marked its folder is started again."""
    return (folder / "recipe.json").exists()


def test_killed_anywhere_and_resumed_is_bit_identical(trainer: Trainer, tmp_path: Path) -> None:
    whole = trainer.train(tmp_path / "whole")
    assert whole["status"] == 0
    expected = result(tmp_path / "whole")
    assert expected["state"]["step"] == 12
    draw = random.Random(0)
    kills = []
    for chain in range(CHAINS):
        folder = tmp_path / str(chain)
        for share in STRETCHES:
            answer = trainer.train(folder, begun(folder), kill_at=draw.randrange(1, int(share * whole["moments"])))
            assert answer["status"] in (0, KILLED)
            newest = store.latest(folder / "checkpoints")
            kills += [newest and newest.name] if answer["status"] == KILLED else []
        assert trainer.train(folder, begun(folder))["status"] == 0
        assert result(folder) == expected, f"chain {chain}: killed with checkpoints {kills[-len(STRETCHES) :]}"
    assert len(kills) >= 20
    assert len(set(kills)) > 3, f"the kills did not fall all over the run: {kills}"


def test_muon_killed_after_a_checkpoint_and_resumed_is_bit_identical(trainer: Trainer, tmp_path: Path) -> None:
    whole = trainer.train(tmp_path / "whole", kind="muon")
    folder = tmp_path / "killed"
    assert trainer.train(folder, kill_at=int(0.8 * whole["moments"]), kind="muon")["status"] == KILLED
    assert store.latest(folder / "checkpoints") is not None
    assert trainer.train(folder, resume=True, kind="muon")["status"] == 0
    assert result(folder) == result(tmp_path / "whole")
    stored = store.load_from(folder).optimizer()
    assert {name.partition("/")[0] for name in stored} == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
