"""Finds nearest vectors with FAISS: exactly, with inverted lists (IVF) or with a graph (HNSW).

N vectors, Q queries, E embedding width, K neighbours. All vectors are normalised, so the inner product is the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from diptych.printable import brief
from diptych.reading import open_regular

Method = Literal["exact", "ivf", "hnsw"]
MethodChoice = Literal["auto", "exact", "ivf", "hnsw"]
METHOD_CHOICES: tuple[MethodChoice, ...] = ("auto", "exact", "ivf", "hnsw")

EXACT_UP_TO = 50_000
"""Number of vectors up to which `auto` searches exactly: 3 ms at a width of 256 on one core (`python -m benchmarks
index`). Above it uses IVF: HNSW answers as fast, but takes about twenty times as long to build."""
RECALL = 0.98
"""Recall@10 that a setting must reach on the sampled queries. Other queries may reach less; 0.95 is promised."""
NEAREST, SAMPLE = 10, 200
LISTS_PER_ROOT = 2
"""Number of IVF lists divided by the square root of N: 632 lists for 100,000 vectors, 2,000 for a million."""
TRAINED_ON, LEAST_TRAINED_ON, ROUNDS = 64, 39, 10
"""Vectors per list that k-means is trained on, the least number of them (FAISS warns below), and k-means iterations."""
LINKS, BUILD_BREADTH = 32, 80
"""HNSW's M and efConstruction."""
FOUR_LETTERS = {"ivf": (b"IwFl",), "hnsw": (b"IHNf",)}
"""How FAISS's files of each method begin."""
GROWN = 2
"""Factor by which an index may outgrow the vectors that its lists were trained on before it is trained again."""


def count_vectors(count: int) -> str:
    return f"{count:,} vector{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class SearchSettings:
    """Says how vectors are searched."""

    method: Method
    effort: int = 0
    """IVF: number of probed lists (nprobe) for ten neighbours; HNSW: efSearch."""
    lists: int = 0
    trained: int = 0
    """Number of vectors when the lists were trained."""
    recall: float | None = None
    """Recall@10 on sampled queries; None for exact search."""

    def describe(self, count: int) -> str:
        if self.recall is None:
            return f"exact, {count_vectors(count)}"
        methods = {
            "ivf": f"IVF, {self.effort:,} of {self.lists:,} lists probed",
            "hnsw": f"HNSW, {LINKS} links per vector, efSearch {self.effort:,}",
        }
        return f"{methods[self.method]}, recall@{NEAREST} {self.recall:.3f}, {count_vectors(count)}"

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values. Their keys are part of the stored format."""
        return {
            "way": self.method, "setting": self.effort, "lists": self.lists, "trained": self.trained,
            "recall": self.recall,
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> SearchSettings:
        """Raises ValueError for settings that no search can have. With an effort of 0 a search would never end."""
        method, recall = stored["way"], stored["recall"]
        effort, lists, trained = numbers = [stored[key] for key in ("setting", "lists", "trained")]
        counts = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        tuned = method == "exact" or (counts and effort > 0 and type(recall) in (int, float))
        if method not in METHOD_CHOICES[1:] or not counts or not tuned or (method == "ivf" and not lists):
            raise ValueError(f"it is searched in no known way: {brief(stored)}")
        return cls(method, effort, lists, trained, recall)


def choose_method(count: int, choice: MethodChoice) -> Method:
    """Resolves `auto` by the number of vectors.

    >>> choose_method(1_000, "auto"), choose_method(1_000_000, "auto"), choose_method(1_000, "hnsw")
    ('exact', 'ivf', 'hnsw')
    """
    if choice == "auto":
        return "exact" if count <= EXACT_UP_TO else "ivf"
    return choice


def require_faiss() -> Any:
    """Imports FAISS. Raises ValueError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError("searching an index needs faiss: pip install 'diptych[search]'") from error
    return faiss


class Searcher:
    """Searches a set of vectors. Threads may share it."""

    def __init__(self, index: Any, settings: SearchSettings) -> None:
        self.index, self.settings = index, settings

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def width(self) -> int:
        return int(self.index.d)

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "N E"],
        choice: MethodChoice,
        queries: Float32[np.ndarray, "Q E"] | None = None,
        previous: tuple[Searcher, int] | None = None,
    ) -> Searcher:
        """Builds a searcher of vectors.

        `queries` are typical queries, on which the effort is tuned; None samples points near the vectors. `previous`
        is a searcher of the first so many of these vectors, which is extended where that is possible.
        """
        faiss, method, width = require_faiss(), choose_method(len(vectors), choice), vectors.shape[1]
        if method == "exact":
            index = faiss.IndexFlatIP(width)
            index.add(vectors)
            return cls(index, SearchSettings("exact"))
        if (
            previous
            and previous[0].settings.method == method
            and len(vectors) <= GROWN * max(previous[0].settings.trained, 1)
        ):
            index, settings = previous[0].index, previous[0].settings
            index.add(vectors[previous[1] :])
        else:
            index, settings = _ivf_index(faiss, vectors) if method == "ivf" else _hnsw_index(faiss, width)
            index.add(vectors)
        return cls(index, _tuned(index, settings, vectors, queries))

    def search(
        self, query: Float32[np.ndarray, "E"], k: int
    ) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
        """Finds the rows and cosines of the k nearest vectors, best first, or of all if there are fewer.

        The order of equal cosines is undefined. A vector whose cosine is not a number is never found.
        """
        k, factor, everything = min(k, len(self)), 1, max(len(self), self.settings.lists)
        while True:
            scores, rows = self.index.search(query[None], k, params=_parameters(self.settings, k, factor, len(self)))
            valid = rows[0] >= 0
            exhausted = self.settings.method == "exact" or factor * self.settings.effort >= everything
            if valid.all() or exhausted:
                return rows[0][valid], scores[0][valid]
            factor *= 4  # the probed lists hold fewer than k vectors

    def save(self, path: Path) -> None:
        require_faiss().write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path, settings: SearchSettings) -> Searcher:
        """Reads lists or a graph. Raises FileNotFoundError, and ValueError for a file of another kind.

        FAISS's format can name other files and hold any kind of index. Only the two kinds that `save` writes are read,
        and no table of it takes more memory than the file has bytes.
        """
        faiss = require_faiss()
        with open_regular(path) as stream:
            kind, size = stream.read(4), stream.seek(0, 2)
        if kind not in FOUR_LETTERS.get(settings.method, ()):
            raise ValueError(f"{path} holds no index of the method '{settings.method}'")
        faiss.set_deserialization_vector_byte_limit(max(size, 1 << 20))
        index = faiss.read_index(str(path))
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path} does not search by the cosine")
        return cls(index, settings)


def _ivf_index(faiss: Any, vectors: Float32[np.ndarray, "N E"]) -> tuple[Any, SearchSettings]:
    count, width = vectors.shape
    lists = max(1, min(LISTS_PER_ROOT * math.isqrt(count), count // LEAST_TRAINED_ON))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = ROUNDS
    index.train(vectors[_sample(count, TRAINED_ON * lists)])
    return index, SearchSettings("ivf", 1, lists, trained=count)


def _hnsw_index(faiss: Any, width: int) -> tuple[Any, SearchSettings]:
    index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_BREADTH
    return index, SearchSettings("hnsw", NEAREST, trained=2**62)


def _tuned(index: Any, settings: SearchSettings, vectors: Float32[np.ndarray, "N E"], queries: Any) -> SearchSettings:
    """Finds the least effort that reaches `RECALL` on sampled queries."""
    faiss, k = require_faiss(), min(NEAREST, len(vectors))
    if queries is None or len(queries) < SAMPLE // 2:
        sample = _queries_near(vectors)
    else:
        sample = np.ascontiguousarray(queries[_sample(len(queries), SAMPLE)])
    _, exact = faiss.knn(sample, np.ascontiguousarray(vectors), k, metric=faiss.METRIC_INNER_PRODUCT)
    effort, most = (1, settings.lists) if settings.method == "ivf" else (NEAREST, len(vectors))
    while True:
        trial = SearchSettings(settings.method, min(effort, most), settings.lists, settings.trained)
        _, near = index.search(sample, k, params=_parameters(trial, NEAREST, 1, len(vectors)))
        hits = sum(len({*row} & {*truth}) for row, truth in zip(near.tolist(), exact.tolist(), strict=True))
        recall = hits / exact.size
        if recall >= RECALL or effort >= most:
            return SearchSettings(settings.method, trial.effort, settings.lists, settings.trained, recall)
        effort *= 2


def _queries_near(vectors: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, "Q E"]:
    """Samples queries that lie as far from a vector as that vector lies from its nearest neighbour.

    The vectors themselves would overestimate recall: a graph leads to its own nodes better than to other points.
    """
    faiss = require_faiss()
    sample = np.ascontiguousarray(vectors[_sample(len(vectors), SAMPLE)])
    near, _ = faiss.knn(sample, np.ascontiguousarray(vectors), min(2, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    distance = np.sqrt(np.maximum(0, 2 - 2 * near[:, -1:]))  # of unit vectors, from their cosine
    noise = np.random.default_rng(0).standard_normal(sample.shape, dtype=np.float32)
    queries = sample + distance * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def _parameters(settings: SearchSettings, k: int, factor: int, count: int) -> Any:
    """FAISS's search parameters. The effort grows with k, since more neighbours may lie in more lists.

    It is at most the number of lists or vectors, because FAISS takes memory for it.
    """
    faiss, scale = require_faiss(), factor * max(1, math.ceil((k - 1) / NEAREST))
    if settings.method == "ivf":
        return faiss.SearchParametersIVF(nprobe=min(settings.effort * scale, settings.lists))
    if settings.method == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(min(settings.effort * scale, count), k))
    return None


def _sample(count: int, size: int) -> Int64[np.ndarray, "s"]:
    """Draws distinct numbers below `count` in ascending order, the same at each call."""
    if size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))
