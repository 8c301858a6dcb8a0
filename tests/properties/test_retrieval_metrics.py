"""Ranks, recalls and intervals against brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.metrics.intervals import bootstrap_means, interval, mean_interval
from diptych.metrics.recall import chance_recall, recall, retrieval_ranks


@st.composite
def judged_queries(draw):
    """Scores with many ties, and at least one relevant candidate a query."""
    queries, candidates = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    size = st.lists(st.integers(0, 2), min_size=queries * candidates, max_size=queries * candidates)
    scores = torch.tensor(draw(size), dtype=torch.float32).view(queries, candidates)
    relevant = torch.tensor(draw(size)).view(queries, candidates) == 2
    for row in range(queries):
        relevant[row, draw(st.integers(0, candidates - 1))] = True
    return scores, relevant


def first_hit(order: tuple[int, ...], relevant: torch.Tensor) -> int:
    return next(place for place, candidate in enumerate(order) if relevant[candidate])


def sorted_orders(scores: torch.Tensor) -> list[tuple[int, ...]]:
    """Every order of the candidates that a sort by descending score may give."""
    values = scores.tolist()
    orders = itertools.permutations(range(len(values)))
    return [o for o in orders if all(values[a] >= values[b] for a, b in itertools.pairwise(o))]


@given(judged_queries())
@settings(max_examples=60, deadline=None)
def test_the_rank_is_the_worst_over_all_sorts_that_ties_allow(case) -> None:
    scores, relevant = case
    for row, rank in enumerate(retrieval_ranks(scores, relevant).tolist()):
        # Relevant candidates tied with each other do not push each other back: the query is served by any of them.
        assert rank == max(first_hit(order, relevant[row]) for order in sorted_orders(scores[row]))


@given(judged_queries(), st.permutations(range(6)))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_candidates_never_changes_a_rank(case, order: list[int]) -> None:
    scores, relevant = case
    order = [i for i in order if i < scores.shape[1]]
    assert retrieval_ranks(scores[:, order], relevant[:, order]).equal(retrieval_ranks(scores, relevant))


def test_a_model_that_scores_everything_alike_is_ranked_last() -> None:
    assert recall(retrieval_ranks(torch.zeros(9, 9), torch.eye(9, dtype=torch.bool)), k=8) == 0.0


def test_a_score_that_is_not_a_number_never_helps() -> None:
    scores = torch.tensor([[torch.nan, 1.0, 0.0], [1.0, torch.nan, 0.0]])
    relevant = torch.tensor([[True, False, False], [True, False, False]])
    assert retrieval_ranks(scores, relevant).tolist() == [2, 1]


def test_a_query_without_a_right_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant candidate"):
        retrieval_ranks(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))


@pytest.mark.parametrize(("relevant", "candidates", "k"), [(1, 1000, 10), (5, 25, 10), (3, 4, 2), (2, 5000, 1)])
def test_chance_recall_is_what_random_scores_reach(relevant: int, candidates: int, k: int) -> None:
    misses = np.prod([(candidates - relevant - i) / (candidates - i) for i in range(k)])
    expected = 100 * (1 - misses)
    assert chance_recall(torch.tensor([relevant]), candidates, k) == pytest.approx(expected, rel=1e-6)


def test_95_percent_intervals_hold_the_true_mean_in_about_95_percent_of_repeats() -> None:
    random = np.random.default_rng(0)
    held = []
    for seed in range(300):
        low, high = mean_interval((random.random(120) < 0.35).astype(float), resamples=300, seed=seed)
        held.append(low <= 0.35 <= high)
    assert 0.90 <= np.mean(held) <= 0.985  # 300 repeats: standard error 1.3 points


def test_captions_of_one_picture_widen_the_interval_as_their_dependence_demands() -> None:
    # Five captions that always succeed together carry the information of one.
    hits = (np.random.default_rng(1).random(200) < 0.5).astype(float)
    together = interval(bootstrap_means(5 * hits[:, None], np.full((200, 1), 5.0))[:, 0])
    alone = mean_interval(hits)
    assert together == pytest.approx(alone)
    independent = mean_interval(np.repeat(hits, 5))
    assert together.high - together.low == pytest.approx(5**0.5 * (independent.high - independent.low), rel=0.15)


def test_paired_resampling_is_narrower_than_the_difference_of_two_unpaired_ones() -> None:
    random = np.random.default_rng(2)
    first = (random.random(500) < 0.5).astype(float)
    second = np.where(random.random(500) < 0.04, 1 - first, first)
    both = np.stack([first, second], axis=1)
    means = bootstrap_means(both, np.ones_like(both))
    paired = interval(means[:, 0] - means[:, 1])
    unpaired = interval(means[:, 0] - bootstrap_means(both, np.ones_like(both), seed=1)[:, 1])
    assert paired == pytest.approx(mean_interval(first - second), abs=1e-9)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_resampling_in_blocks_gives_every_resample_once(monkeypatch) -> None:
    monkeypatch.setattr("diptych.metrics.intervals.BLOCK", 50)
    values = np.random.default_rng(3).random((20, 2))
    means = bootstrap_means(values, np.ones_like(values), resamples=7)
    assert means.shape == (7, 2)
    assert len(np.unique(means[:, 0])) == 7


def test_no_query_is_an_error_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="holds no query"):
        mean_interval(np.array([]))
