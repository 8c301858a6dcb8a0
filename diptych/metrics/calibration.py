"""Calibrates scores: fits a probability to them by logistic regression, and measures how far probabilities are off.

A probability is calibrated if, of the answers that get 80 %, 80 % are right. N scored answers, F features, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017, §2, who use 15)."""
STEPS = 100
"""The most Newton steps of a fit, which takes about ten."""
SMALL = 1e-9
"""Newton's method ends with a step of this size."""
RIDGE = 1e-6
"""Weight of the squared coefficients, which keeps a fit finite that data would let grow without limit."""


def fit_logistic(
    features: Float[Tensor, "N F"], labels: Bool[Tensor, "N"], weights: Float[Tensor, "N"] | None = None
) -> tuple[float, ...]:
    """Fits P(right) = sigmoid(w · features + b) by maximum likelihood, and returns the F entries of w, then b.

    With one feature this is Platt scaling (Platt 1999). As there, the targets of R right and W wrong answers are
    (R + 1) / (R + 2) and 1 / (W + 2), not 1 and 0, so that a few answers never give certainty. An answer of weight n
    counts like n answers. The likelihood is concave; Newton's method finds its maximum, halving a step that would go
    down. Raises ValueError unless there are right and wrong answers.

    >>> scores = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0], [1.0], [1.0]]).repeat(1000, 1)
    >>> labels = torch.tensor([False, False, True, False, True, True]).repeat(1000)
    >>> [round(value, 2) + 0.0 for value in fit_logistic(scores, labels)]  # log 2: two right for a wrong one at score 1
    [0.69, 0.0]
    """
    if labels.all() or not labels.any():
        raise ValueError("calibration needs right and wrong answers, and here all are the same")
    x = torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
    times = torch.ones_like(x[:, 0]) if weights is None else weights.double()
    right, wrong = float(times[labels].sum()), float(times[~labels].sum())
    targets = torch.where(labels, (right + 1) / (right + 2), 1 / (wrong + 2)).double()
    fit = x.new_zeros(x.shape[1])

    def loss(fit: Tensor) -> Tensor:
        likelihood = torch.nn.functional.binary_cross_entropy_with_logits(x @ fit, targets, times, reduction="sum")
        return likelihood + RIDGE / 2 * fit.square().sum()

    for _ in range(STEPS):
        p = torch.sigmoid(x @ fit)
        gradient = x.T @ (times * (p - targets)) + RIDGE * fit
        curvature = (x * (times * p * (1 - p))[:, None]).T @ x + RIDGE * torch.eye(len(fit), dtype=x.dtype)
        step = torch.linalg.solve(curvature, gradient)
        while not bool(loss(fit - step) <= loss(fit)) and float(step.abs().max()) > SMALL:
            step = step / 2
        fit = fit - step
        if float(step.abs().max()) <= SMALL:
            break
    return tuple(fit.tolist())


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers of similar probability."""

    count: int
    probability: float
    """Their mean probability in 0..1."""
    right: float
    """The share of them that is right, in 0..1."""


def reliability(
    probabilities: Float[Tensor, "N"], labels: Bool[Tensor, "N"], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Sorts the answers by probability and cuts them into bins of equal numbers of answers, fewer if there are fewer.

    Bins of equal width would be nearly empty where a search gives few answers, and their shares would be chance.

    >>> reliability(torch.tensor([0.1, 0.3, 0.8, 0.8]), torch.tensor([False, False, True, True]), bins=2)[0]
    ReliabilityBin(count=2, probability=0.2, right=0.0)
    """
    order = probabilities.argsort(stable=True)
    parts = zip(
        probabilities[order].double().tensor_split(bins), labels[order].double().tensor_split(bins), strict=True
    )
    return tuple(
        ReliabilityBin(len(part), round(float(part.mean()), 6), round(float(right.mean()), 6))
        for part, right in parts
        if len(part)
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Computes the mean difference of probability and share of right answers, over all answers, in percent.

    Lower is better (Naeini et al. 2015; Guo et al. 2017, Eq. 3). Raises ValueError for no answers.

    >>> expected_calibration_error([ReliabilityBin(30, 0.9, 0.6), ReliabilityBin(10, 0.2, 0.2)])
    22.5
    """
    total = sum(part.count for part in bins)
    if total == 0:
        raise ValueError("nothing to measure: there is no scored answer")
    return round(100 * sum(part.count * abs(part.probability - part.right) for part in bins) / total, 6)
