"""Measures accuracy: the share of right decisions, with its interval and with counts by class. Higher is better.

Q examples. Percent, as in the papers' tables.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.metrics.intervals import Interval, bootstrap_means, interval


@dataclass(frozen=True)
class Estimate:
    """A mean in percent, its 95 % bootstrap interval, and the number of items."""

    value: float
    interval: Interval
    count: int


def estimate(
    values: Float[np.ndarray, "Q"], groups: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Computes the mean in percent of values between 0 and 1.

    Examples of one group (`groups[q]`, say the picture) succeed and fail together, so the interval resamples groups;
    without `groups` each example is a group. Raises ValueError for no values, and for different numbers of groups and
    values.

    >>> estimate(np.array([1.0, 0.0, 1.0, 1.0])).value
    75.0
    """
    unit = np.arange(len(values))
    if groups is not None:
        if len(groups) != len(values):
            raise ValueError(f"{len(values)} values, but {len(groups)} groups: each value belongs to one")
        number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        unit = np.array([number[group] for group in groups], dtype=np.int64)
    if len(values) == 0:
        raise ValueError("nothing to measure: the evaluation holds no example")
    sums, counts = np.bincount(unit, weights=values), np.bincount(unit).astype(np.float64)
    means = bootstrap_means(sums[:, None], counts[:, None], resamples, seed)[:, 0]
    return Estimate(100.0 * float(values.mean()), interval(100.0 * means), len(values))


@dataclass(frozen=True)
class ClassCounts:
    """Counts of a class: examples of it, predictions of it, and right predictions."""

    labelled: int
    predicted: int
    right: int


@dataclass(frozen=True)
class Accuracy:
    """The share of right decisions, and the counts of each class by name."""

    overall: Estimate
    classes: dict[str, ClassCounts]


def accuracy(
    predictions: Int[Tensor, "Q"],
    labels: Int[Tensor, "Q"],
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Accuracy:
    """Measures the accuracy of class numbers, with the class names `names`. `groups` are those of `estimate`.

    Raises ValueError for a number that is no class.

    >>> measured = accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ("no", "yes"))
    >>> round(measured.overall.value, 2), measured.classes["no"]
    (66.67, ClassCounts(labelled=2, predicted=1, right=1))
    """
    for kind, numbers in (("label", labels), ("prediction", predictions)):
        outside = ((numbers < 0) | (numbers >= len(names))).nonzero()
        if len(outside):
            row = int(outside[0])
            raise ValueError(
                f"the {kind} of example {row} is {int(numbers[row])}, which is no class:"
                f" 0 to {len(names) - 1} are {', '.join(names)}"
            )
    right = predictions == labels
    labelled, predicted, both = (
        torch.bincount(numbers, minlength=len(names)).tolist() for numbers in (labels, predictions, labels[right])
    )
    return Accuracy(
        estimate(right.double().cpu().numpy(), groups, resamples, seed),
        {name: ClassCounts(labelled[c], predicted[c], both[c]) for c, name in enumerate(names)},
    )
