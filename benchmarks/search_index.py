"""Searching an index: queries a second, latency and recall, all vectors looked at against the way that is chosen.

    python -m benchmarks.search_index [COUNT …]          10,000, 100,000 and 1,000,000 vectors of width 256

Vectors lie in clusters of about a hundred, queries in the same clusters. One query at a time, as people ask; recall is
the share of the ten exact neighbours that are found. Times are of the search alone, without a model. Graphs (HNSW) are
built up to 100,000 vectors: a million take most of an hour on a core.
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
"""Vectors a cluster; length of a vector's way from its centre, by that of the centre."""
MOST_IN_A_GRAPH = 100_000
MOST_SECONDS = 10.0
"""Of queries of one way: exact search of a million is asked fewer of them."""


@dataclass(frozen=True)
class Found:
    seconds: np.ndarray
    """Of each query."""
    places: list[list[int]]


def clustered(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries, normalised."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(10, count // CLUSTER), WIDTH), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = rng.standard_normal((count + queries, WIDTH), dtype=np.float32)
    found *= SPREAD / np.sqrt(WIDTH)
    found += centres[rng.integers(len(centres), size=len(found))]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found[:count], found[count:]


def ask(searcher: Searcher, queries: np.ndarray) -> Found:
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
    return Found(np.array(seconds), places)


def measure(vectors: np.ndarray, queries: np.ndarray, wanted: Method, exact: Found | None = None) -> Found:
    count = len(vectors)
    start = time.perf_counter()
    searcher = Searcher.build(vectors, wanted)
    built = time.perf_counter() - start
    found = ask(searcher, queries)
    p50, p99 = (1_000 * np.quantile(found.seconds, share) for share in (0.5, 0.99))
    recall = 1.0 if exact is None else agreement(found, exact)
    rate = 1 / found.seconds.mean()
    print(f"  {searcher.settings.describe(count)}{' (chosen)' if choose_method(count, 'auto') == wanted else ''}")
    print(
        f"    {rate:8,.0f} queries/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, recall@{NEAREST} {recall:.3f}"
        f" ({len(found.places)} queries), built in {built:.1f} s",
        flush=True,
    )
    return found


def agreement(found: Found, exact: Found) -> float:
    pairs = list(zip(found.places, exact.places, strict=False))
    return sum(len(set(one) & set(other)) for one, other in pairs) / (NEAREST * len(pairs))


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
