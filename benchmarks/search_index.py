"""Searching an index: queries per second, latency and recall of exact and approximate search.

    python -m benchmarks.search_index [COUNT …]          10,000, 100,000 and 1,000,000 vectors of width 256

Vectors lie in clusters of about a hundred, and queries in the same clusters. Queries come one at a time. Recall is the
share of the ten exact neighbours that are found. Times are of the search alone, without a model. Graphs (HNSW) are
built for up to 100,000 vectors, because a million take most of an hour on one core.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from diptych.apps.index.neighbours import Method, Searcher, choose_method

COUNTS = (10_000, 100_000, 1_000_000)
WIDTH, QUERIES, NEAREST = 256, 500, 10
CLUSTER, SPREAD = 100, 0.7
"""Vectors in a cluster, and their distance from its centre, relative to the centre's length."""
MOST_IN_A_GRAPH = 100_000
MOST_SECONDS = 10.0
"""The most seconds that all queries of one way may take. So exact search of a million vectors gets fewer of them."""


@dataclass(frozen=True)
class Neighbours:
    """The answers to all queries."""

    seconds: np.ndarray
    """The time of each query."""
    places: list[list[int]]
    """The neighbours of each query."""


def clustered(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns normalised vectors and queries."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(10, count // CLUSTER), WIDTH), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = rng.standard_normal((count + queries, WIDTH), dtype=np.float32)
    vectors *= SPREAD / np.sqrt(WIDTH)
    vectors += centres[rng.integers(len(centres), size=len(vectors))]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:count], vectors[count:]


def search(searcher: Searcher, queries: np.ndarray) -> Neighbours:
    """Searches for one query after the other."""
    seconds: list[float] = []
    places: list[list[int]] = []
    searcher.search(queries[0], NEAREST)  # the first one touches all memory
    for query in queries:
        start = time.perf_counter()
        near, _ = searcher.search(query, NEAREST)
        seconds.append(time.perf_counter() - start)
        places.append(near.tolist())
        if sum(seconds) > MOST_SECONDS:
            break
    return Neighbours(np.array(seconds), places)


def measure(vectors: np.ndarray, queries: np.ndarray, method: Method, exact: Neighbours | None = None) -> Neighbours:
    """Builds a searcher, times it, and compares its neighbours with the exact ones."""
    count = len(vectors)
    start = time.perf_counter()
    searcher = Searcher.build(vectors, method)
    built = time.perf_counter() - start
    neighbours = search(searcher, queries)
    p50, p99 = (1_000 * np.quantile(neighbours.seconds, share) for share in (0.5, 0.99))
    recall = 1.0 if exact is None else agreement(neighbours, exact)
    rate = 1 / neighbours.seconds.mean()
    print(f"  {searcher.settings.describe(count)}{' (chosen)' if choose_method(count, 'auto') == method else ''}")
    print(
        f"    {rate:8,.0f} queries/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, recall@{NEAREST} {recall:.3f}"
        f" ({len(neighbours.places)} queries), built in {built:.1f} s",
        flush=True,
    )
    return neighbours


def agreement(neighbours: Neighbours, exact: Neighbours) -> float:
    """Returns the recall: the share of the exact neighbours that were found."""
    pairs = list(zip(neighbours.places, exact.places, strict=False))
    return sum(len(set(places) & set(exact_places)) for places, exact_places in pairs) / (NEAREST * len(pairs))


def main(counts: list[int]) -> None:
    for count in counts or COUNTS:
        print(f"{count:,} vectors of width {WIDTH}, one query at a time")
        vectors, queries = clustered(count, QUERIES)
        exact = measure(vectors, queries, "exact")
        measure(vectors, queries, "ivf", exact)
        if count <= MOST_IN_A_GRAPH:
            measure(vectors, queries, "hnsw", exact)


if __name__ == "__main__":
    main([int(word.replace(",", "")) for word in sys.argv[1:]])
