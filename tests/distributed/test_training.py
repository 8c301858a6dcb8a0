"""A step is the same however its global batch and the weights are divided (processes, accumulation, shards)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diptych.train.optim import muon_matrices
from tests.distributed.training import ALONE, TASKS, WAYS, Steps, everything
from tests.worlds import run_world

ROOT = Path(__file__).parents[2]
World = list[dict[tuple[str, str], Steps]]
CASES = [
    *((1, way) for way in ALONE if way != "alone"), (2, "unequal shares"), *((2, way) for way in WAYS),
    *((4, way) for way in WAYS if "in pieces" in way),
]  # fmt: skip


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, World]:
    return {size: run_world(size, everything, tmp_path_factory.mktemp("world")) for size in (1, 2, 4)}


@pytest.mark.parametrize(("size", "way"), CASES)
@pytest.mark.parametrize("task", TASKS)
def test_losses_gradients_and_weights_do_not_depend_on_the_cut(
    worlds: dict[int, World], task: str, size: int, way: str
) -> None:
    """Compares to 1e-5, and gradients, which may all be small, to 1e-5 of the largest entry of all."""
    alone = worlds[1][0][task, "alone"]
    assert alone.gradients
    for process in worlds[size]:
        result = process[task, way]
        for ours, theirs in zip(result.losses, alone.losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        assert result.norms == pytest.approx(alone.norms, rel=1e-4)
        assert result.gradients.keys() == alone.gradients.keys()
        scale = max(value.abs().max().item() for value in alone.gradients.values())
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(result.gradients[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)
        assert result.weights.keys() == alone.weights.keys()
        for name, weight in alone.weights.items():
            torch.testing.assert_close(result.weights[name], weight, rtol=0, atol=2e-3, msg=name)


def test_muon_takes_the_same_step_on_two_processes_in_pieces(worlds: dict[int, World]) -> None:
    """Compares to a tenth of a step: the root mean square of Muon's update is a fifth of the learning rate, 1e-3."""
    alone, adamw = worlds[1][0]["vlmo", "muon"], worlds[1][0]["vlmo", "alone"]
    matrices = muon_matrices(TASKS["vlmo"]())
    assert any((alone.weights[name] - adamw.weights[name]).abs().max() > 1e-4 for name in matrices)
    for process in worlds[2]:
        result = process["vlmo", "muon"]
        for ours, theirs in zip(result.losses, alone.losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        for name in matrices:
            torch.testing.assert_close(result.weights[name], alone.weights[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("task", ["albef", "vlmo", "language stage"])
def test_dropout_is_there(worlds: dict[int, World], task: str) -> None:
    """Without dropout, the equality of the other tests would not cover it."""
    first, second = worlds[1][0][task, "alone"].losses
    assert first != second


COMPILED = """
import functools, json, torch
from tests.distributed.training import steps
torch.compile = functools.partial(torch.compile, backend="eager")
both = {}, {"run.compile": True}
losses = {name: [steps(name, 0, 1, changes).losses for changes in both] for name in ("albef", "vlmo")}
print(json.dumps([losses, torch._dynamo.utils.counters["stats"]["calls_captured"]]))
"""


def test_compiled_blocks_compute_the_same() -> None:
    """It captures the blocks in a process of its own, because torch.compile cannot trace the checks of shapes here.

    The compiled code is not tested, because compiling takes minutes.
    """
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    losses, captured = json.loads(ended.stdout)
    assert captured > 100
    for plain, compiled in losses.values():
        for ours, theirs in zip(compiled, plain, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
