"""Nearest vectors by FAISS: exact, by lists (IVF) or by a graph (HNSW), with what each is set to and how good that is.

N vectors, Q queries, E embedding width, K neighbours. All vectors are normalised, so the inner product is the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

Way = Literal["exact", "ivf", "hnsw"]
Wanted = Literal["auto", "exact", "ivf", "hnsw"]
WANTED: tuple[Wanted, ...] = ("auto", "exact", "ivf", "hnsw")

EXACT_UP_TO = 50_000
"""Vectors up to which `auto` looks at all of them: 3 ms at a width of 256 on one core (`python -m benchmarks index`).
Above it takes lists: a graph answers as fast, but takes about twenty times as long to build."""
RECALL = 0.98
"""Of the ten nearest vectors, the share that a setting must find in the sample; on others it may find fewer, and 0.95
is promised."""
NEAREST, SAMPLE = 10, 200
LISTS_PER_ROOT = 2
"""Lists by the square root of N: 632 for 100,000 vectors, 2,000 for a million."""
TRAINED_ON, LEAST_TRAINED_ON, ROUNDS = 64, 39, 10
"""Vectors a list that its k-means sees, at least (FAISS warns below), and rounds of it."""
LINKS, BUILD_BREADTH = 32, 80
"""HNSW's M and efConstruction."""
GROWN = 2
"""How many times as many vectors as its lists were trained on an index may hold before it is trained anew."""


@dataclass(frozen=True)
class How:
    """How vectors are searched."""

    way: Way
    setting: int = 0
    """IVF: lists that are looked at for ten neighbours; HNSW: efSearch."""
    lists: int = 0
    trained: int = 0
    """Vectors there were when the lists were made."""
    recall: float | None = None
    """Share of the ten nearest that were found in a sample; None: all are."""

    def say(self, count: int) -> str:
        vectors = f"{count:,} vector{'' if count == 1 else 's'}"
        if self.recall is None:
            return f"exact, {vectors}"
        ways = {
            "ivf": f"IVF, {self.setting:,} of {self.lists:,} lists looked at",
            "hnsw": f"HNSW, {LINKS} links a vector, breadth {self.setting:,}",
        }
        return f"{ways[self.way]}, recall@{NEAREST} {self.recall:.3f}, {vectors}"


def choose(count: int, wanted: Wanted) -> Way:
    """The way for so many vectors.

    >>> choose(1_000, "auto"), choose(1_000_000, "auto"), choose(1_000, "hnsw")
    ('exact', 'ivf', 'hnsw')
    """
    if wanted == "auto":
        return "exact" if count <= EXACT_UP_TO else "ivf"
    return wanted


def require_faiss() -> Any:
    """The module. Raises ValueError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError("searching an index needs faiss: pip install 'diptych[search]'") from error
    return faiss


class Searcher:
    """Vectors that can be searched. Threads may share it."""

    def __init__(self, index: Any, how: How) -> None:
        self.index, self.how = index, how

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "N E"],
        wanted: Wanted,
        queries: Float32[np.ndarray, "Q E"] | None = None,
        before: tuple[Searcher, int] | None = None,
    ) -> Searcher:
        """`queries`: what is likely to be asked, by which the setting is found; without, what lies near the vectors.

        `before`: a searcher of the first so many of these vectors, which is gone on with where that is possible.
        """
        faiss, way, width = require_faiss(), choose(len(vectors), wanted), vectors.shape[1]
        if way == "exact":
            index = faiss.IndexFlatIP(width)
            index.add(vectors)
            return cls(index, How("exact"))
        if before and before[0].how.way == way and len(vectors) <= GROWN * max(before[0].how.trained, 1):
            index, how = before[0].index, before[0].how
            index.add(vectors[before[1] :])
        else:
            index, how = _by_lists(faiss, vectors) if way == "ivf" else _by_graph(faiss, width)
            index.add(vectors)
        return cls(index, _tuned(index, how, vectors, queries))

    def search(
        self, query: Float32[np.ndarray, "E"], k: int
    ) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
        """Places and cosines of the k nearest, best first; equal ones in no order. Fewer where there are."""
        k, wider = min(k, len(self)), 1
        while True:
            scores, places = self.index.search(query[None], k, params=_effort(self.how, k, wider))
            found = places[0] >= 0
            if found.all() or self._whole(wider):  # few lists may hold fewer than k
                return places[0][found], scores[0][found]
            wider *= 4

    def _whole(self, wider: int) -> bool:
        return wider * self.how.setting >= max(len(self), self.how.lists)

    def save(self, path: Path) -> None:
        require_faiss().write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path, how: How) -> Searcher:
        return cls(require_faiss().read_index(str(path)), how)


def _by_lists(faiss: Any, vectors: Float32[np.ndarray, "N E"]) -> tuple[Any, How]:
    count, width = vectors.shape
    lists = max(1, min(LISTS_PER_ROOT * math.isqrt(count), count // LEAST_TRAINED_ON))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = ROUNDS
    index.train(vectors[_sample(count, TRAINED_ON * lists)])
    return index, How("ivf", 1, lists, trained=count)


def _by_graph(faiss: Any, width: int) -> tuple[Any, How]:
    index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_BREADTH
    return index, How("hnsw", NEAREST, trained=2**62)


def _tuned(index: Any, how: How, vectors: Float32[np.ndarray, "N E"], queries: Any) -> How:
    """The least setting that finds enough."""
    faiss, k = require_faiss(), min(NEAREST, len(vectors))
    if queries is None or len(queries) < SAMPLE // 2:
        asked = _likely(vectors)
    else:
        asked = np.ascontiguousarray(queries[_sample(len(queries), SAMPLE)])
    _, exact = faiss.knn(asked, np.ascontiguousarray(vectors), k, metric=faiss.METRIC_INNER_PRODUCT)
    setting, most = (1, how.lists) if how.way == "ivf" else (NEAREST, len(vectors))
    while True:
        tried = How(how.way, min(setting, most), how.lists, how.trained)
        _, near = index.search(asked, k, params=_effort(tried, NEAREST, 1))
        met = sum(len({*one} & {*other}) for one, other in zip(near.tolist(), exact.tolist(), strict=True))
        recall = met / exact.size
        if recall >= RECALL or setting >= most:
            return How(how.way, tried.setting, how.lists, how.trained, recall)
        setting *= 2


def _likely(vectors: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, "Q E"]:
    """What may be asked: as far from one of the vectors as that is from its nearest.

    The vectors themselves would not do: a graph leads to its own better than to others.
    """
    faiss = require_faiss()
    some = np.ascontiguousarray(vectors[_sample(len(vectors), SAMPLE)])
    near, _ = faiss.knn(some, np.ascontiguousarray(vectors), min(2, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    away = np.sqrt(np.maximum(0, 2 - 2 * near[:, -1:]))  # of two directions, from their cosine
    drawn = np.random.default_rng(0).standard_normal(some.shape, dtype=np.float32)
    found = some + away * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def _effort(how: How, k: int, wider: int) -> Any:
    """FAISS's parameters. k times as many neighbours may lie in k times as many lists."""
    faiss, much = require_faiss(), wider * max(1, math.ceil((k - 1) / NEAREST))
    if how.way == "ivf":
        return faiss.SearchParametersIVF(nprobe=min(how.setting * much, how.lists))
    return faiss.SearchParametersHNSW(efSearch=max(how.setting * much, k)) if how.way == "hnsw" else None


def _sample(count: int, size: int) -> Int64[np.ndarray, "s"]:
    """Different numbers below `count`, ascending, the same each time."""
    if size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))
