"""VLMo's pre-training on two processes against the released code's: `two_ranks`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.schema import VLMO_AS_RELEASED
from tests.parity.vlmo.golden import Golden
from tests.parity.vlmo.stage3 import build_task, gradients, pairs, recorded, weighted
from tests.traces import traced
from tests.worlds import run_world

RANKS = 2
LOSSES = ("itc_loss", "itm_loss", "total_loss")
"""Those of which there are gradients."""

Found = dict[str, Tensor]


def both_gathers(rank: int, size: int, folder: Path) -> dict[str, Found]:
    """What one process finds, as released and with gradients gathered."""
    return {gather: share(rank, size, folder, gather) for gather in ("released", "gradient")}


def rows_of(golden: Golden) -> list[slice]:
    """The consecutive rows of `vl/` that each process holds: one for each negative that it drew.

    The folder may have more rows than the processes use.
    """
    counts = [len(golden[f"rank{rank}/neg_image_index"]) for rank in range(RANKS)]
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def share(rank: int, size: int, folder: Path, gather: str) -> Found:
    """What one process finds for its rows, or for those of all in a world of one, under the folder's names."""
    inputs, golden = Golden(folder, "inputs"), Golden(folder, "two_ranks")
    parts = rows_of(golden)
    rows = parts[rank] if size > 1 else slice(0, parts[-1].stop)
    assert rows.stop <= len(inputs["vl/image"])
    released = replace(VLMO_AS_RELEASED, gather_without_gradient=gather == "released")
    task, batch = build_task(folder, released=released), pairs(inputs, "vl", rows)
    places = torch.arange(len(batch))
    drawn = [golden[f"rank{rank}/neg_{kind}_index"] for kind in ("image", "text")] if size > 1 else [places, places]
    made, losses = traced(task, batch, draws=recorded(inputs, "vl", *drawn, rows))
    assert made.match_logits is not None
    found = {
        "itc_i2t_logits": made.similarities["main"].image_to_text,
        "itc_vl_i2t_logits": made.similarities["vl"].image_to_text,
        "itm_logits": made.match_logits,
        "neg_image_index": drawn[0], "neg_text_index": drawn[1],
    } | weighted(losses)  # fmt: skip
    for loss in LOSSES:
        name = f"grad_{loss.replace('total_loss', 'total')}"
        found |= {f"{name}/{key}": value for key, value in gradients(task, weighted(losses)[loss]).items()}
    return {name: value.detach() for name, value in found.items()}


@pytest.fixture(scope="module")
def ranks(golden_vlmo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return run_world(RANKS, partial(both_gathers, folder=golden_vlmo), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def golden(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "two_ranks")


def compare(golden: Golden, group: str, found: Found) -> int:
    """Every stored number of a group, gradients by their largest entry. Returns how many there are."""
    keys = golden.keys(f"{group}/")
    for key in keys:
        name = key.removeprefix(f"{group}/")
        golden.check(key, found[name], within=1e-5 if name.startswith("grad_") else None)
    return len(keys)


def mean_gradients(ranks: list[dict[str, Found]], gather: str) -> Found:
    return {
        name: torch.stack([found[gather][name] for found in ranks]).mean(0)
        for name in ranks[0][gather]
        if name.startswith("grad_")
    }


def test_each_process_gives_the_released_numbers_and_so_does_their_mean(
    golden: Golden, ranks: list[dict[str, Found]]
) -> None:
    for rank, found in enumerate(ranks):
        assert compare(golden, f"rank{rank}", found["released"])
    assert compare(golden, "mean_over_ranks", mean_gradients(ranks, "released"))
    assert compare(golden, "one_process_whole_batch", share(0, 1, golden.folder, "released"))
    assert set(golden.tensors) == golden.used


def test_with_gradients_gathered_the_contrasts_are_those_of_one_process(
    golden: Golden, ranks: list[dict[str, Found]]
) -> None:
    """As released they are divided by the number of processes, but for the temperatures'."""
    gathered, released = (mean_gradients(ranks, gather) for gather in ("gradient", "released"))
    prefix = "one_process_whole_batch/"
    keys = golden.keys(f"{prefix}grad_itc_loss/")
    assert keys
    for key in keys:
        name = key.removeprefix(prefix)
        golden.check(key, gathered[name], within=1e-5)
        golden.check(key, released[name] * (1 if name.endswith("_scale") else RANKS), within=1e-5)
