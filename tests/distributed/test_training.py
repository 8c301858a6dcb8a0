"""However a global batch is cut (processes, pieces, parts of weights), a step computes and moves the same."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.distributed.training import ALONE, TASKS, WAYS, Found, everything, steps
from tests.worlds import run_world

World = list[dict[tuple[str, str], Found]]
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
    """To 1e-5; of a tensor whose entries may all be small, 1e-5 of the largest of all."""
    alone = worlds[1][0][task, "alone"]
    assert alone.gradients
    for process in worlds[size]:
        found = process[task, way]
        for ours, theirs in zip(found.losses, alone.losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        assert found.norms == pytest.approx(alone.norms, rel=1e-4)
        assert found.gradients.keys() == alone.gradients.keys()
        scale = max(value.abs().max().item() for value in alone.gradients.values())
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(found.gradients[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)
        assert found.weights.keys() == alone.weights.keys()
        for name, weight in alone.weights.items():
            torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("task", ["albef", "vlmo", "language stage"])
def test_dropout_is_there(worlds: dict[int, World], task: str) -> None:
    """Else the equality would say nothing of it."""
    first, second = worlds[1][0][task, "alone"].losses
    assert first != second


@pytest.mark.parametrize("task", ["albef", "vlmo"])
def test_compiled_blocks_compute_the_same(worlds: dict[int, World], task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.compile reads them; what its machine code makes of them takes minutes, and is not tried here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    alone, found = worlds[1][0][task, "alone"], steps(task, 0, 1, {"run.compile": True})
    for ours, theirs in zip(found.losses, alone.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
