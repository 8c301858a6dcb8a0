"""Measures NLVR2 by accuracy over statements about pairs of pictures, and by consistency. Higher is better.

A statement was written for one set of pictures and is used with several pairs of them. It is answered consistently if
the answers for all its pairs are right (Suhr et al. 2019, arXiv 1811.00491).

Q examples: a statement with one of its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from diptych.metrics.accuracy import Estimate, estimate


@dataclass(frozen=True)
class Nlvr2Accuracy:
    """Both measures. Their intervals resample statements with all their pairs."""

    accuracy: Estimate
    """The share of right examples."""
    consistency: Estimate
    """The share of statements with right answers for all their pairs."""


def nlvr2_accuracy(
    right: Bool[Tensor, "Q"], statements: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Nlvr2Accuracy:
    """Measures accuracy and consistency. `statements[q]` names the statement of example q.

    That is a record's `group`: in the published identifiers, SPLIT-SET-PAIR-SENTENCE, all but the pair. Raises
    ValueError for no examples, and for different numbers of examples and statements.

    >>> import torch
    >>> statements = ["dev-850-0", "dev-850-0", "dev-850-1", "dev-850-1"]
    >>> measured = nlvr2_accuracy(torch.tensor([True, True, True, False]), statements)
    >>> measured.accuracy.value, measured.consistency.value
    (75.0, 50.0)
    """
    values = right.double().cpu().numpy()
    single = estimate(values, statements, resamples, seed)
    all_right: dict[str, float] = {}
    for statement, value in zip(statements, values.tolist(), strict=True):
        all_right[statement] = min(value, all_right.get(statement, 1.0))
    return Nlvr2Accuracy(single, estimate(np.array(list(all_right.values())), None, resamples, seed))
