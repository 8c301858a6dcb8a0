"""Relative positions: index tables and biases of both stages, and the table for another grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.nn.relative import RelativePositions, entry_count, max_text_of, relative_index, resize_table
from tests.parity.golden import read_tensors
from tests.parity.vlmo.golden import Golden, manifest


@pytest.fixture(scope="module")
def stored(golden_vlmo: Path) -> Golden:
    if not (golden_vlmo / "rel_pos.safetensors").exists():
        assert not manifest(golden_vlmo)["config"]["relative_position_bias"]
        pytest.skip("a folder of the absolute style has no relative positions")
    return Golden(golden_vlmo, "rel_pos")


def test_index_tables_and_biases_are_the_released_ones(golden_vlmo: Path, stored: Golden) -> None:
    sizes = manifest(golden_vlmo)["config"]
    side, longest = sizes["img_size"] // sizes["patch_size"], sizes["max_text_len_of_initckpt"]
    positions = RelativePositions(side, longest, sizes["depth"], sizes["num_heads"])
    assert len(positions.table) == manifest(golden_vlmo)["rel_pos"]["all_num_relative_distance"]
    for stage, length in (("pretrain", sizes["max_text_len"]), ("textmlm", sizes["max_text_len_textmlm"])):
        weights = read_tensors(golden_vlmo / f"weights_{stage}.safetensors")
        positions.load_state_dict({"table": weights["relative_position_bias_table"]})
        for kind, tokens in {"image": (0, side), "text": (length, None), "fusion": (length, side)}.items():
            stored.check(f"{stage}/index/{kind}", relative_index(*tokens, side, longest, "cpu"))
            stored.check(f"{stage}/bias/{kind}", positions(*tokens))
    assert not stored.unused


# --------------------------------------------------------------------------- another size


def random_table(side: int, max_text: int, columns: int = 6) -> torch.Tensor:
    return torch.randn(entry_count(side, max_text), columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 30), (4, 12), (7, 5), (3, 9)])
def test_the_grid_is_resized_by_the_spline_that_scipy_fits(old: int, new: int) -> None:
    interpolate, optimize = (pytest.importorskip(f"scipy.{part}") for part in ("interpolate", "optimize"))

    def overshoot(ratio: float) -> float:
        return sum(ratio**power for power in range(old - 1)) - (new - 1)

    ratio = 1.5 if overshoot(1.5) < 0 else 1.01 if overshoot(1.01) > 0 else optimize.brentq(overshoot, 1.01, 1.5)
    positive = np.cumsum([ratio**i for i in range(old - 1)])
    axis = np.concatenate([-positive[::-1], [0.0], positive])
    wanted = np.clip(np.arange(-(new - 1), new), axis[0], axis[-1])
    table = random_table(old, 5)
    ours = resize_table(table, old, new, 5, 5)
    for column in range(table.shape[1]):
        grid = table[: (2 * old - 1) ** 2, column].double().view(2 * old - 1, -1).numpy()
        theirs = interpolate.RectBivariateSpline(axis, axis, grid, s=0)(wanted, wanted)
        found = ours[: (2 * new - 1) ** 2, column].double().view(2 * new - 1, -1).numpy()
        assert np.abs(found - theirs).max() < 1e-3  # released: the ratio is known to 1e-6 only


def test_text_and_grid_change_together_as_they_do_one_after_the_other() -> None:
    table = random_table(4, 20)
    both = resize_table(table, 4, 6, 20, 12)
    assert torch.equal(both, resize_table(resize_table(table, 4, 6, 20, 20), 6, 6, 20, 12))
    assert torch.equal(both, resize_table(resize_table(table, 4, 4, 20, 12), 4, 6, 12, 12))
    assert len(both) == entry_count(6, 12)
    assert max_text_of(len(both), 6) == 12


def filled(side: int, max_text: int, table: torch.Tensor) -> RelativePositions:
    positions = RelativePositions(side, max_text, 3, 2)
    positions.load_state_dict({"table": table})
    return positions


@pytest.mark.parametrize("other", [7, 13, 40])
def test_a_table_for_other_text_lengths_gives_the_same_bias_at_every_distance_that_it_knew(other: int) -> None:
    table = random_table(4, 20)
    resized = filled(4, other, resize_table(table, 4, 4, 20, other))
    known = min(other, 20)
    assert torch.equal(resized(known, 4), filled(4, 20, table)(known, 4))


def test_distances_beyond_the_known_ones_count_as_the_outermost() -> None:
    table = random_table(2, 4)
    longer = filled(2, 9, resize_table(table, 2, 2, 4, 9))(9, None)
    known = filled(2, 4, table)(4, None)
    assert torch.equal(longer[:, :, 1, 4:], known[:, :, 1, 3:4].expand(-1, -1, 5))
    assert torch.equal(longer[:, :, 4:, 1], known[:, :, 3:4, 1].expand(-1, -1, 5))


@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_grids_can_be_resized(side: int) -> None:
    table = torch.ones(entry_count(side, 5), 2)
    resized = resize_table(table, side, 4, 5, 5)
    assert torch.allclose(resized, torch.ones(entry_count(4, 5), 2))


def test_texts_and_tables_of_a_wrong_length_are_refused() -> None:
    positions = RelativePositions(2, 5, 1, 1)
    with pytest.raises(ValueError, match="6 tokens is longer than the model's 5 positions"):
        positions(6, 2)
    with pytest.raises(ValueError, match="model for 2 × 2: build it with another image_size"):
        positions(5, 3)
    with pytest.raises(ValueError, match="at least 2"):
        RelativePositions(2, 1, 1, 1)
    with pytest.raises(ValueError, match="not those of side 3"):
        resize_table(positions.table, 3, 4, 5, 5)
    with pytest.raises(ValueError, match="do not belong to a grid of 3 × 3"):
        max_text_of(entry_count(2, 5), 3)
