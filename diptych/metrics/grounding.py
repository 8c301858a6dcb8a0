"""Measures visual grounding by box accuracy: the share of phrases whose box overlaps the right one by half.

R phrases, G pictures, N boxes. Boxes are x, y, width, height in pixels. Accuracies are in percent; higher is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from diptych.metrics.accuracy import Estimate, estimate

HALF = 0.5
"""The overlap from which on a box is right (RefCOCO's measure; ALBEF §6.4)."""


def box_iou(
    first: Float[np.ndarray, "*N 4"],
    second: Float[np.ndarray, "*N 4"],
    whole_pixels: bool = False,
) -> Float[np.ndarray, "*N"]:
    """Computes the intersection over union of boxes, pair by pair, in 0..1. Higher is better.

    The measure is geometric. `whole_pixels` takes the intersection for ranges of whole pixels, whose last one
    (first + size - 1) must lie beyond the first: an overlap of one pixel or less, in either direction, counts as none
    (docs/released_code.md, defect 22).

    Raises ValueError for a box without an area.

    >>> first, second = np.array([0.0, 0, 10, 10]), np.array([9.0, 0, 10, 10])
    >>> round(float(box_iou(first, second)), 3), round(float(box_iou(first, second, whole_pixels=True)), 3)
    (0.053, 0.0)
    """
    for boxes in (first, second):
        if not (boxes[..., 2:] > 0).all():
            raise ValueError("a box has no area: boxes are x, y, width, height, with width and height above 0")
    least = 1.0 if whole_pixels else 0.0
    ends = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    sides = ends - np.maximum(first[..., :2], second[..., :2])
    shared = np.where(sides > least, sides, 0.0).prod(axis=-1)
    areas = first[..., 2:].prod(axis=-1) + second[..., 2:].prod(axis=-1)
    return np.asarray(shared / (areas - shared))


def box_accuracy(
    iou: Float[np.ndarray, "R"],
    splits: Sequence[str],
    pictures: Sequence[Hashable],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Computes the percentage of the phrases of each split whose box has an IoU of at least 0.5. Higher is better.

    `iou[r]` belongs to a phrase of `splits[r]` on picture `pictures[r]`; intervals draw pictures with all their
    phrases, which succeed and fail together. Splits keep the order in which they first come.

    >>> found = box_accuracy(np.array([0.9, 0.5, 0.4]), ["val", "testA", "val"], [1, 2, 3])
    >>> {split: accuracy.value for split, accuracy in found.items()}
    {'val': 50.0, 'testA': 100.0}
    """
    if not len(iou) == len(splits) == len(pictures):
        raise ValueError(f"{len(iou)} overlaps, {len(splits)} splits and {len(pictures)} pictures: give one a phrase")
    rows = {split: [row for row, name in enumerate(splits) if name == split] for split in dict.fromkeys(splits)}
    return {
        split: estimate((iou[of] >= HALF).astype(np.float64), [pictures[row] for row in of], resamples, seed)
        for split, of in rows.items()
    }


# --------------------------------------------------------------------------- what needs no look at the picture


def largest_box(boxes: Float[np.ndarray, "N 4"]) -> int:
    """Returns the number of the largest box, the first of equals: a guess without picture or phrase.

    >>> largest_box(np.array([[0.0, 0, 2, 2], [5, 5, 3, 3]]))
    1
    """
    return int((boxes[:, 2] * boxes[:, 3]).argmax())


def central_box(boxes: Float[np.ndarray, "N 4"], size: tuple[int, int]) -> int:
    """Returns the number of the box whose centre is nearest to that of a picture of `size` (width, height).

    >>> central_box(np.array([[0.0, 0, 2, 2], [4, 4, 3, 3]]), (10, 10))
    1
    """
    offset = boxes[:, :2] + boxes[:, 2:] / 2 - np.array(size) / 2
    return int((offset**2).sum(axis=1).argmin())
