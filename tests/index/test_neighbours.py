"""Checks that exact search equals numpy's, that IVF and HNSW reach the promised recall, and how effort grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.apps.index.neighbours import EXACT_UP_TO, Method, Searcher, SearchSettings, choose_method


def clustered(count: int, seed: int, width: int = 32, centres: int = 60) -> np.ndarray:
    centre = np.random.default_rng(0).standard_normal((centres, width), dtype=np.float32)
    rng = np.random.default_rng(seed)
    points = centre[rng.integers(centres, size=count)] + 0.7 * rng.standard_normal((count, width), dtype=np.float32)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def recall(searcher: Searcher, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    near = [set(searcher.search(query, k)[0].tolist()) for query in queries]
    return float(np.mean([len(rows & set(truth.tolist())) / k for rows, truth in zip(near, exact, strict=True)]))


def test_exact_search_is_that_of_numpy() -> None:
    vectors, queries = clustered(500, 1), clustered(20, 2)
    searcher = Searcher.build(vectors, "auto")
    assert searcher.settings.describe(500) == "exact, 500 vectors"
    for query in queries:
        rows, scores = searcher.search(query, 7)
        assert rows.tolist() == np.argsort(-(vectors @ query), kind="stable")[:7].tolist()
        assert np.allclose(scores, vectors[rows] @ query, atol=1e-6)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
@pytest.mark.parametrize("k", [10, 100])
def test_lists_and_graphs_find_what_is_promised(method: Method, k: int) -> None:
    vectors, queries = clustered(4_000, 1), clustered(50, 2)
    searcher = Searcher.build(vectors, method)
    assert recall(searcher, vectors, queries, k) >= 0.95
    assert f"{method.upper()}, " in searcher.settings.describe(4_000)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_a_saved_and_extended_searcher_finds_what_a_new_one_finds(method: Method, tmp_path: Path) -> None:
    vectors, queries = clustered(1_500, 1), clustered(40, 2)
    Searcher.build(vectors[:1_000], method).save(tmp_path / "first")
    first = Searcher.load(tmp_path / "first", Searcher.build(vectors[:1_000], method).settings)
    grown = Searcher.build(vectors, method, previous=(first, 1_000))
    assert len(grown) == 1_500
    assert grown.settings.trained == first.settings.trained
    assert recall(grown, vectors, queries, 10) >= 0.95


def test_k_neighbours_are_found_even_if_the_probed_lists_hold_fewer() -> None:
    vectors = clustered(400, 1)
    for method in ("ivf", "hnsw"):
        rows, _ = Searcher.build(vectors, method).search(vectors[0], 400)
        assert sorted(rows.tolist()) == list(range(400)), method


def test_every_method_works_with_few_vectors() -> None:
    vectors = clustered(3, 1)
    for method in ("exact", "ivf", "hnsw"):
        assert Searcher.build(vectors, method).search(vectors[1], 5)[0][0] == 1


def test_auto_chooses_the_method_by_the_number_of_vectors() -> None:
    assert [choose_method(count, "auto") for count in (1, EXACT_UP_TO, EXACT_UP_TO + 1)] == ["exact", "exact", "ivf"]
    assert choose_method(10**9, "exact") == "exact"


@pytest.mark.parametrize("method", ["exact", "ivf", "hnsw"])
def test_a_vector_that_is_not_finite_is_not_found_and_the_search_ends(method: Method) -> None:
    vectors = clustered(500, 1)
    searcher = Searcher.build(vectors, method)
    broken = Searcher.build(np.concatenate([vectors[:499], np.full((1, 32), np.nan, np.float32)]), "exact")
    rows, _ = Searcher(broken.index, SearchSettings("exact")).search(vectors[0], 500)
    assert sorted(rows.tolist()) == list(range(499))
    rows, _ = searcher.search(np.full(32, np.nan, np.float32), 5)
    assert len(rows) <= 5


@pytest.mark.parametrize(
    "change",
    [
        {"way": "ivf", "setting": 0}, {"way": "hnsw", "setting": -1}, {"way": "hnsw", "setting": 1e308},
        {"way": "ivf", "setting": 2**70}, {"way": "ivf", "setting": True}, {"way": "auto"}, {"way": ["exact"]},
        {"way": "ivf", "lists": 0}, {"way": "hnsw", "recall": "1"}, {"lists": None},
    ],
)  # fmt: skip
def test_settings_that_no_search_can_have_are_refused(change: dict[str, object]) -> None:
    stored = SearchSettings("ivf", 3, 10, 390, 0.99).to_json()
    assert SearchSettings.from_json(stored) == SearchSettings("ivf", 3, 10, 390, 0.99)
    with pytest.raises(ValueError, match="searched in no known way"):
        SearchSettings.from_json(stored | change)


def test_an_effort_beyond_the_number_of_vectors_takes_no_more_memory_or_time() -> None:
    vectors = clustered(300, 1)
    graph = Searcher.build(vectors, "hnsw").index
    rows, _ = Searcher(graph, SearchSettings("hnsw", 2**62, 0, 300, 1.0)).search(vectors[0], 3)
    assert rows[0] == 0
