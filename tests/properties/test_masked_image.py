"""Masked image modelling: which patches are hidden, and the loss there."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from diptych.losses.masked_image import Draw, block_mask, masked_count, masked_image_loss


def stream(*numbers: float, then: int = 0) -> Draw:
    """These numbers, then random ones."""
    rest = random.Random(then)
    first = list(numbers)
    return lambda: first.pop(0) if first else rest.random()


@pytest.mark.parametrize("side", [2, 4, 7, 14])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("min_block", [1, 4, 16, 1000])
def test_exactly_the_documented_number_is_hidden(side: int, share: float, min_block: int) -> None:
    for seed in range(5):
        mask = block_mask(side, share, min_block, 0.3, random.Random(seed).random)
        assert int(mask.sum()) == masked_count(side, share)


def test_the_number_is_the_nearest_with_one_hidden_and_one_seen_at_least() -> None:
    assert [masked_count(4, share) for share in (0.0, 0.4, 0.41, 1.0)] == [1, 6, 7, 15]


@pytest.mark.parametrize(
    ("draws", "height", "width", "corner"),
    [
        ((0.0, 0.5, 0.0, 0.0), 4, 4, (0, 0)),
        ((0.0, 0.5, 0.999, 0.999), 4, 4, (10, 10)),
        ((0.0, 0.0, 0.0, 0.0), 7, 2, (0, 0)),
        ((0.0, 1 - 1e-9, 0.0, 0.0), 2, 7, (0, 0)),
    ],
)
def test_the_first_block_is_as_drawn(draws: Sequence[float], height: int, width: int, corner: tuple[int, int]) -> None:
    """Sixteen patches, square or at the extreme aspects 0.3 and 1 / 0.3; the second block is all that is left."""
    top, left = corner
    mask = block_mask(14, 0.4, 16, 0.3, stream(*draws))
    assert mask[top : top + height, left : left + width].all()
    alone = block_mask(14, height * width / 196, 16, 0.3, stream(*draws))
    assert int(alone.sum()) == height * width
    assert alone[top : top + height, left : left + width].sum() >= 14


def test_aspects_are_symmetric() -> None:
    """Height and width change places where the aspect's draw is reflected, so tall blocks are as likely as wide."""
    for seed in range(20):
        size, aspect, top, left = (random.Random(seed).random() for _ in range(4))
        one = block_mask(14, 16 / 196, 16, 0.3, stream(size, aspect, top, left))
        other = block_mask(14, 16 / 196, 16, 0.3, stream(size, 1 - aspect, left, top))
        assert one.sum() == other.sum()
        if _is_rectangle(one) and _is_rectangle(other):
            assert torch.equal(one, other.T)


def _is_rectangle(mask: torch.Tensor) -> bool:
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    return bool(rows * columns == mask.sum())


def test_every_patch_is_hidden_as_often_on_either_side() -> None:
    masks = torch.stack([block_mask(6, 0.4, 4, 0.3, random.Random(seed).random) for seed in range(3000)]).float()
    often = masks.mean(0)
    assert often.min() > 0.1
    assert (often - often.T).abs().max() < 0.06
    assert (often - often.flip(0)).abs().max() < 0.08


def test_a_mask_is_a_function_of_its_draws() -> None:
    masks = [block_mask(14, 0.4, 16, 0.3, random.Random(seed).random) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("aspect", [0.0, -1.0, 1.5])
def test_an_aspect_that_cannot_be_is_an_error(aspect: float) -> None:
    with pytest.raises(ValueError, match=r"task\.min_aspect must lie above 0 and be 1 at most"):
        block_mask(4, 0.4, 1, aspect, random.Random(0).random)


def test_the_loss_is_the_cross_entropy_and_can_be_cut_anywhere() -> None:
    logits, codes = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    whole = masked_image_loss(logits, codes)
    assert torch.allclose(whole.mean, F.cross_entropy(logits, codes))
    parts = [masked_image_loss(logits[part], codes[part]) for part in (slice(0, 3), slice(3, 7), slice(7, 7))]
    assert torch.allclose(sum(part.sum for part in parts), whole.sum)
    assert [float(part.count) for part in parts] == [3, 4, 0]
    assert float(parts[2].mean) == 0
