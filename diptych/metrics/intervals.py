"""Computes intervals: how far a measured mean could move with other queries or other seeds.

G groups that are resampled together (the captions of one picture succeed and fail together, so the picture is the
unit), M measures, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1 << 22
"""Resampling weights that are held at once (32 MiB)."""


class Interval(NamedTuple):
    """Both ends of an interval, in the unit of the measure."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.1f} … {self.high:.1f}"


def bootstrap_means(
    sums: Float[np.ndarray, "G M"], counts: Float[np.ndarray, "G M"], resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "S M"]:
    """Computes the means of M measures in each of S resamples of the groups.

    Group g adds `sums[g, m]` over `counts[g, m]` items to measure m. All measures see the same resamples, so the
    difference of two columns is a paired difference. The same seed gives the same resamples.

    >>> hits = np.array([[1.0], [0.0], [1.0], [1.0]])
    >>> bootstrap_means(hits, np.ones_like(hits), resamples=1000).shape
    (1000, 1)
    """
    groups = len(sums)
    if groups == 0:
        raise ValueError("nothing to resample: the evaluation holds no query")
    random = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    step = max(1, BLOCK // groups)
    for start in range(0, resamples, step):
        drawn: Int[np.ndarray, "s G"] = random.multinomial(
            groups, np.full(groups, 1 / groups), size=min(step, resamples - start)
        )
        weights = drawn.astype(np.float64)
        means.append((weights @ sums) / np.maximum(weights @ counts, 1e-12))
    return np.concatenate(means)


def interval(means: Float[np.ndarray, "S"], level: float = 0.95) -> Interval:
    """Takes the central `level` of bootstrapped means (percentile method).

    >>> print(interval(np.arange(101.0), level=0.9))
    5.0 … 95.0
    """
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return Interval(float(low), float(high))


def mean_interval(
    values: Float[np.ndarray, "Q"], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Computes the interval of the mean of independent values. For a paired difference, pass the differences.

    If all values are equal, the interval has no width: a bootstrap only knows values that occurred.

    >>> first, second = np.array([1.0, 1, 0, 1, 1, 0]), np.array([0.0, 1, 0, 1, 0, 0])
    >>> mean_interval(first - second).low >= 0
    True
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    return interval(bootstrap_means(column, np.ones_like(column), resamples, seed)[:, 0], level)


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Computes Student's interval of the mean over n runs: mean ± t · s / √n, with t of n - 1 degrees of freedom.

    For a paired difference, pass the differences seed by seed. The result is None for fewer than two runs, which have
    no spread. It assumes that runs are normally distributed.

    >>> print(seed_interval([69.0, 70.0, 71.0]))
    67.5 … 72.5
    """
    if (n := len(values)) < 2:
        return None
    mean = float(np.mean(values))
    half = t_quantile(n - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Finds the t below which |T| stays with probability `level`, for a Student-distributed T of `freedom` degrees.

    Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4: with θ = arctan(t / √freedom)
    the probability is a finite sum of cosines, which is inverted here by halving.

    >>> round(t_quantile(2), 4), round(t_quantile(9), 4)
    (4.3027, 2.2622)
    """

    def within(angle: float) -> float:
        odd = freedom % 2
        term = math.cos(angle) if odd else 1.0
        total = 0.0
        for power in range(odd + 1, freedom, 2):  # terms to cos^(freedom - 2)
            total += term
            term *= math.cos(angle) ** 2 * power / (power + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
