"""Computes intervals: how far a measured mean could move with other queries or other seeds.

G groups that are resampled together (the captions of one picture succeed and fail together, so the picture is the
unit), M measures, S resamples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MOST_RUNS = 10_000
"""More runs than anybody would make to see an effect."""
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


def paired_p(differences: Sequence[float]) -> float | None:
    """Computes the two-sided probability of paired differences as large as these if there were no effect.

    Student's t-test of n differences. The result is None for fewer than two and for equal ones, which have no spread.

    >>> round(paired_p([2.0, 3.0, 4.0]), 3)
    0.035
    """
    n, spread = len(differences), _spread(differences)
    if spread == 0:
        return None
    t = abs(float(np.mean(differences))) / spread * math.sqrt(n)
    return 1.0 - _within(math.atan(t / math.sqrt(n - 1)), n - 1)


def _spread(values: Sequence[float]) -> float:
    """Computes the standard deviation, which is 0 for fewer than two values and for those equal but for rounding."""
    return 0.0 if len(values) < 2 or np.ptp(values) < 1e-9 else float(np.std(values, ddof=1))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Corrects the probabilities of tests that are made together (Holm, 1979).

    The i-th smallest of m is multiplied by m - i + 1. A corrected value is never below an earlier one, nor above 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(probabilities), 0.0
    for rank, place in enumerate(np.argsort(probabilities, kind="stable")):
        least = max(least, min(1.0, (len(probabilities) - rank) * probabilities[place]))
        corrected[place] = least
    return corrected


def seeds_for(differences: Sequence[float], share: float, power: float = 0.8, level: float = 0.95) -> int | None:
    """Counts the paired runs with which one t-test would find `share` of the mean difference with probability `power`.

    It takes the spread of the differences as given, and the normal approximation of the t-test's power: the smallest n
    with (t of n - 1 degrees of freedom + z of the power) · s / √n at most the effect. The result is None for fewer than
    two or equal differences, for a mean of 0, and for more than 10,000 runs.

    >>> seeds_for([2.0, 3.0, 4.0], share=0.5)
    6
    """
    spread, reserve = _spread(differences), NormalDist().inv_cdf(power)
    effect = abs(float(np.mean(differences))) * share if spread else 0.0

    def found_with(n: int) -> bool:
        return (t_quantile(n - 1, level) + reserve) * spread <= effect * math.sqrt(n)

    if effect == 0.0 or not found_with(MOST_RUNS):
        return None
    return bisect_left(range(MOST_RUNS + 1), True, lo=2, key=found_with)


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Finds the t below which |T| stays with probability `level`, for a Student-distributed T of `freedom` degrees.

    >>> round(t_quantile(2), 4), round(t_quantile(9), 4)
    (4.3027, 2.2622)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Computes the probability that |T| stays below √freedom · tan(angle), for a Student-distributed T.

    Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4: it is a finite sum of cosines.
    """
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd + 1, freedom, 2):  # terms to cos^(freedom - 2)
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
