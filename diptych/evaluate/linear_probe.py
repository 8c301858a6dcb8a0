"""Trains a linear probe on frozen vectors: logistic regression, as CLIP is measured (Radford et al. 2021, A.3).

N pictures, E embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**power for power in range(2, -5, -1))
"""Weights of the squared weights in the loss, the strongest first; one is chosen on a part of the training pictures."""
FOLDS = 5
ITERATIONS = 200


def fit(
    vectors: Float[Tensor, "N E"], labels: Int[Tensor, "N"], classes: int, penalty: float
) -> Float[Tensor, "E+1 C"]:
    """Minimises cross-entropy summed over pictures plus penalty / 2 · |W|², without penalty on the bias (last row).

    The problem is convex, and L-BFGS starts from zeros, so the result depends on nothing but the data.
    """
    features = _with_bias(vectors)
    weights = torch.zeros(features.shape[1], classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weights, labels) + penalty / (2 * len(labels)) * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


def predict(vectors: Float[Tensor, "N E"], weights: Float[Tensor, "E+1 C"]) -> Int[Tensor, "N"]:
    """Predicts the class of each vector."""
    return (_with_bias(vectors) @ weights).argmax(dim=1)


def train_probe(vectors: Float[Tensor, "N E"], labels: Int[Tensor, "N"], classes: int) -> Float[Tensor, "E+1 C"]:
    """Fits a probe with the penalty that does best on a fifth of the pictures; among equal ones the strongest."""
    held = folds(labels.tolist()) == 0
    best, most = PENALTIES[0], -1
    for penalty in PENALTIES:
        right = int(
            (predict(vectors[held], fit(vectors[~held], labels[~held], classes, penalty)) == labels[held]).sum()
        )
        if right > most:
            best, most = penalty, right
    return fit(vectors, labels, classes, best)


def cross_predict(vectors: Float[Tensor, "N E"], labels: Int[Tensor, "N"], classes: int) -> Int[Tensor, "N"]:
    """Predicts each picture by a probe that is trained on the other four fifths."""
    fold = folds(labels.tolist())
    predictions = torch.empty_like(labels)
    for number in range(FOLDS):
        own = fold == number
        if own.any():
            predictions[own] = predict(vectors[own], train_probe(vectors[~own], labels[~own], classes))
    return predictions


def folds(labels: Sequence[int]) -> Int[Tensor, "N"]:
    """Deals the pictures of each class to the folds in turn. Neighbours in a class go to different folds.

    >>> folds([0, 0, 0, 1, 1]).tolist()
    [0, 1, 2, 0, 1]
    """
    seen: dict[int, int] = {}
    numbers = []
    for label in labels:
        numbers.append(seen.get(label, 0) % FOLDS)
        seen[label] = seen.get(label, 0) + 1
    return torch.tensor(numbers)


def _with_bias(vectors: Float[Tensor, "N E"]) -> Float[Tensor, "N E+1"]:
    return F.pad(vectors.double(), (0, 1), value=1.0)
