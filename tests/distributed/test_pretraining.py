"""One global batch on 1, 2, 4 processes: the same losses and gradients, in pre-training (VLMo §3.3) and retrieval."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.equality import CASES, LENGTHS, StepResult, everything
from tests.worlds import run_world

World = list[dict[str, Any]]
"""The results of each process."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, World]:
    return {size: run_world(size, everything, tmp_path_factory.mktemp("world")) for size in (1, 2, 4)}


def assert_same(ours: StepResult, theirs: StepResult, factor: float = 1.0) -> None:
    """Compares losses to 1e-5, and gradients, which may all be small, to 1e-5 of the tensor's largest entry."""
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5, abs=1e-5)
    assert set(ours.gradients) == set(theirs.gradients)
    for name, gradient in theirs.gradients.items():
        limit = 1e-5 * gradient.abs().max().item() + 1e-9
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", [*CASES, "dual encoder"])
def test_the_same_global_batch_gives_the_same_losses_and_gradients(
    worlds: dict[int, World], case: str, size: int
) -> None:
    alone = worlds[1][0][case]
    assert alone.losses
    for process in worlds[size]:
        assert_same(process[case], alone)


@pytest.mark.parametrize("size", [2, 4])
def test_negatives_are_the_same_pairs_and_come_from_other_processes_with_texts_of_other_lengths(
    worlds: dict[int, World], size: int
) -> None:
    results = [process["all three losses"] for process in worlds[size]]
    assert len({result.width for result in results}) > 1
    drawn = [pair for result in results for pair in result.drawn]
    assert drawn == worlds[1][0]["all three losses"].drawn
    each = len(LENGTHS) // size
    assert any(image // each != b // each or text // each != b // each for b, (image, text) in enumerate(drawn))


@pytest.mark.parametrize("size", [2, 4])
def test_own_negatives_stay_in_the_process_and_change_matching_alone(worlds: dict[int, World], size: int) -> None:
    each, alone = len(LENGTHS) // size, worlds[1][0]["all three losses"]
    for rank, process in enumerate(worlds[size]):
        places = {place for pair in process["own"].drawn for place in pair}
        assert places <= set(range(rank * each, (rank + 1) * each))
    losses = worlds[size][0]["own"].losses
    assert losses["itc"] == pytest.approx(alone.losses["itc"], rel=1e-5)
    assert losses["mlm"] == pytest.approx(alone.losses["mlm"], rel=1e-5)
    assert losses["itm"] != alone.losses["itm"]
    assert [pair for process in worlds[size] for pair in process["own"].drawn] != alone.drawn
    assert worlds[1][0]["own"].losses == pytest.approx(alone.losses), "one process is all there are"
