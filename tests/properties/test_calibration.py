"""The probability of a hit: its fit, its measure, and the hits that it is fitted on."""

from __future__ import annotations

import pytest
import torch

from diptych.evaluate.calibration import Hits, best_hits, fit_calibration, measure_calibration
from diptych.metrics.calibration import expected_calibration_error, fit_logistic, reliability
from diptych.search.calibration import MatchCalibration
from diptych.search.rerank import Reranked


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_fit_recovers_the_parameters_that_labels_were_drawn_by() -> None:
    features = torch.stack([6 * drawn(50_000) - 3, 2 * drawn(50_000, seed=1)], dim=1)
    probabilities = torch.sigmoid(1.5 * features[:, 0] - 0.8 * features[:, 1] - 1.0)
    slope, length, bias = fit_logistic(features, drawn(50_000, seed=2) < probabilities)
    assert slope == pytest.approx(1.5, abs=0.05)
    assert length == pytest.approx(-0.8, abs=0.08)
    assert bias == pytest.approx(-1.0, abs=0.08)


def test_a_weight_of_three_counts_like_three_answers() -> None:
    scores, labels = 4 * drawn(200, 1) - 2, drawn(200, seed=1) < 0.4
    twice = torch.arange(200) % 2 == 0
    weights = torch.where(twice, 3.0, 1.0)
    repeated = torch.arange(200).repeat_interleave(weights.long())
    assert fit_logistic(scores, labels, weights) == pytest.approx(fit_logistic(scores[repeated], labels[repeated]))


def test_scores_that_separate_give_no_certainty() -> None:
    scores = torch.tensor([[-5.0], [-4.0], [4.0], [5.0]])
    slope, bias = fit_logistic(scores, scores[:, 0] > 0)
    assert 0 < slope < 1
    assert float(torch.sigmoid(torch.tensor(slope * 5 + bias))) == pytest.approx(0.75, abs=0.03), "(R + 1) / (R + 2)"


@pytest.mark.parametrize("labels", [[], [True, True], [False]])
def test_answers_that_are_all_alike_cannot_be_fitted(labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs right and wrong answers"):
        fit_logistic(torch.zeros(len(labels), 1), torch.tensor(labels, dtype=torch.bool))


def test_calibrated_answers_have_no_error_and_others_a_known_one() -> None:
    probabilities = torch.tensor([0.2] * 1000 + [0.8] * 1000)
    right = torch.arange(1000) < 200, torch.arange(1000) < 800
    assert expected_calibration_error(reliability(probabilities, torch.cat(right), bins=2)) == pytest.approx(
        0, abs=1e-4
    )
    swapped = torch.cat(right[::-1])
    assert expected_calibration_error(reliability(probabilities, swapped, bins=2)) == pytest.approx(60, abs=1e-4)
    drawn_labels = drawn(60_000) < drawn(60_000, seed=1)
    assert expected_calibration_error(reliability(drawn(60_000, seed=1), drawn_labels)) < 1
    with pytest.raises(ValueError, match="nothing to measure"):
        expected_calibration_error(())


def test_each_query_is_asked_with_and_without_its_right_pictures() -> None:
    odds = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
    scored = Reranked(torch.tensor([[7, 8, 9], [1, 2, 3]]), torch.zeros(2, 3), odds, odds)
    right = torch.tensor([[False, True, False], [False, False, False]])
    hits = best_hits("captions", scored, right, torch.tensor([4, 9]), pictures=20)
    assert hits.log_odds.tolist() == [3, 2, 1, 6, 5, 4, 2, 1, 6, 5, 4]
    assert hits.right.tolist() == [True] + 10 * [False]
    assert hits.tokens.tolist() == [4, 4, 4, 9, 9, 9, 4, 4, 9, 9, 9]
    assert hits.log_odds[hits.best_wrong].tolist() == [2, 6]


def test_only_the_ten_best_hits_count() -> None:
    odds = torch.arange(15.0).expand(1, -1)
    right = torch.zeros(1, 15, dtype=torch.bool)
    right[0, 14] = True
    hits = best_hits("captions", Reranked(right.long(), odds, odds, odds), right, torch.tensor([5]), pictures=15)
    assert hits.log_odds.tolist() == [*range(14, 4, -1), *range(13, 3, -1)]


def searches(kind: str, queries: int, tokens: int, shift: float, seed: int) -> Hits:
    """Makes hits whose log odds tell right from wrong by 8, less `shift`."""
    right = torch.arange(4 * queries) < queries
    odds = 8.0 * right - 4.0 - shift + 2 * (drawn(len(right), seed=seed) - 0.5)
    best = torch.arange(queries, 2 * queries)
    return Hits(kind, queries, 50, odds, torch.full((len(right),), tokens), right, best)


def test_the_least_match_keeps_right_hits_and_leaves_wrong_searches_empty() -> None:
    """Short queries have lower log odds here, which the length makes up for."""
    kinds = [searches("captions", 40, 16, 0.0, seed=0), searches("names", 10, 4, 3.0, seed=1)]
    calibration = fit_calibration(kinds)
    assert calibration.slope > 0
    assert calibration.length < 0
    assert (calibration.queries, calibration.pictures) == (50, 50)
    assert 0.3 < calibration.min_match < 0.7, "the middle of all that do it"
    for kind in kinds:
        measured = measure_calibration(calibration, kind)
        assert (measured.kept, measured.nothing) == (100, 100)
        assert measured.error < 5


def test_logits_that_prefer_wrong_hits_are_not_calibrated() -> None:
    hits = searches("captions", 40, 16, 0.0, seed=0)
    turned = Hits(hits.kind, 40, 50, -hits.log_odds, hits.tokens, hits.right, hits.best_wrong)
    with pytest.raises(ValueError, match="do not tell right hits from wrong ones"):
        fit_calibration([turned])


def test_a_calibration_is_read_back_and_nothing_else_is() -> None:
    calibration = MatchCalibration(1.5, -2.0, 0.25, 0.125, 100, 50)
    assert MatchCalibration.from_json(calibration.to_json()) == calibration
    for wrong in ([], {}, calibration.to_json() | {"slope": "1"}, calibration.to_json() | {"more": 1}):
        with pytest.raises(ValueError, match="slope, length, bias"):
            MatchCalibration.from_json(wrong)
