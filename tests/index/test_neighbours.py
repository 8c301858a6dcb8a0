"""Nearest vectors: exact ones are numpy's, others find what is promised, and effort grows with what is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.apps.index.neighbours import EXACT_UP_TO, Method, Searcher, choose_method


def clustered(count: int, seed: int, width: int = 32, centres: int = 60) -> np.ndarray:
    middle = np.random.default_rng(0).standard_normal((centres, width), dtype=np.float32)
    rng = np.random.default_rng(seed)
    found = middle[rng.integers(centres, size=count)] + 0.7 * rng.standard_normal((count, width), dtype=np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def recall(searcher: Searcher, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    found = [set(searcher.search(query, k)[0].tolist()) for query in queries]
    return float(np.mean([len(one & set(row.tolist())) / k for one, row in zip(found, exact, strict=True)]))


def test_exact_search_is_that_of_numpy() -> None:
    vectors, queries = clustered(500, 1), clustered(20, 2)
    searcher = Searcher.build(vectors, "auto")
    assert searcher.settings.describe(500) == "exact, 500 vectors"
    for query in queries:
        places, scores = searcher.search(query, 7)
        assert places.tolist() == np.argsort(-(vectors @ query), kind="stable")[:7].tolist()
        assert np.allclose(scores, vectors[places] @ query, atol=1e-6)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
@pytest.mark.parametrize("k", [10, 100])
def test_lists_and_graphs_find_what_is_promised(method: Method, k: int) -> None:
    vectors, queries = clustered(4_000, 1), clustered(50, 2)
    searcher = Searcher.build(vectors, method)
    assert recall(searcher, vectors, queries, k) >= 0.95
    assert f"{method.upper()}, " in searcher.settings.describe(4_000)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_what_is_saved_and_added_to_is_what_is_built_at_once(method: Method, tmp_path: Path) -> None:
    vectors, queries = clustered(1_500, 1), clustered(40, 2)
    Searcher.build(vectors[:1_000], method).save(tmp_path / "first")
    first = Searcher.load(tmp_path / "first", Searcher.build(vectors[:1_000], method).settings)
    grown = Searcher.build(vectors, method, previous=(first, 1_000))
    assert len(grown) == 1_500
    assert grown.settings.trained == first.settings.trained
    assert recall(grown, vectors, queries, 10) >= 0.95


def test_as_many_are_found_as_are_asked_even_where_few_lists_hold_fewer() -> None:
    vectors = clustered(400, 1)
    for method in ("ivf", "hnsw"):
        places, _ = Searcher.build(vectors, method).search(vectors[0], 400)
        assert sorted(places.tolist()) == list(range(400)), method


def test_a_few_vectors_do_for_every_way() -> None:
    vectors = clustered(3, 1)
    for method in ("exact", "ivf", "hnsw"):
        assert Searcher.build(vectors, method).search(vectors[1], 5)[0][0] == 1


def test_the_way_follows_from_the_number_of_vectors_unless_it_is_named() -> None:
    assert [choose_method(count, "auto") for count in (1, EXACT_UP_TO, EXACT_UP_TO + 1)] == ["exact", "exact", "ivf"]
    assert choose_method(10**9, "exact") == "exact"
