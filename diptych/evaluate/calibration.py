"""Fits and measures how likely a hit of a search for pictures is right, by searches whose right answers are known.

**Queries.** All captions of a split, each of which is right for its own picture only. A caption says much more than
what people type, so where the data know what else a picture shows (generated scenes), single names are queries too,
each right for every picture with such a thing. Both kinds weigh the same in the fit.

**Base rate.** Each query is asked twice: of all pictures, and of those without its right ones, because nobody says that
what one looks for is there. So half of the searches have no right answer.

**Hits.** Of each search the `SHOWN` best hits count, those that it would show. All candidates would be hundreds of
plainly wrong ones for a right one, and any map of small probabilities would look calibrated on them; the best hit alone
would say nothing of those below it.

**Minimum match.** The default of `min_match` is where the right hits that would be lost and the searches without a
right answer that would return something are equally few (the equal error rate), each kind of queries counted alike.

Q queries, I pictures, K candidates of a query, N hits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.evaluate.retrieval import encode_images, encode_texts
from diptych.metrics.calibration import ReliabilityBin, expected_calibration_error, fit_logistic, reliability
from diptych.schema import EvaluationConfig
from diptych.search.calibration import MatchCalibration
from diptych.search.contract import PairModel, State, evaluating
from diptych.search.index import CosineIndex, Neighbours
from diptych.search.rerank import Reranked, rerank, sum_temperature
from diptych.types import Texts

SHOWN = 10
"""Hits of a search that count, as many as it shows by default."""
PICTURES = 1_000
"""The most pictures of a split that are searched, which bounds the time."""


@dataclass(frozen=True)
class Queries:
    """Texts of one kind, with the pictures that are right for each."""

    kind: str
    texts: Texts
    right: Bool[Tensor, "Q I"]


@dataclass(frozen=True)
class Hits:
    """The hits of queries of one kind, each query asked with and without its right pictures."""

    kind: str
    queries: int
    pictures: int
    log_odds: Float[Tensor, "N"]
    tokens: Int[Tensor, "N"]
    """Number of tokens of the query."""
    right: Bool[Tensor, "N"]
    best_wrong: Int[Tensor, "S"]
    """The places of the best hits of the searches without a right answer."""


@dataclass(frozen=True)
class CalibrationResult:
    """How well the probabilities of hits fit, for queries of one kind."""

    kind: str
    bins: tuple[ReliabilityBin, ...]
    error: float
    """The expected calibration error in percent; lower is better."""
    kept: float
    """The share of right hits that the minimum match keeps, in percent."""
    nothing: float
    """The share of searches without a right answer that it returns nothing for, in percent."""


def search_hits(
    model: PairModel,
    pixels: Iterable[Float[Tensor, "_ 3 H W"]],
    queries: Sequence[Queries],
    config: EvaluationConfig,
    device: torch.device | str = "cpu",
) -> list[Hits]:
    """Searches all pictures by each query and re-ranks `config.rerank` candidates, as searches do."""
    with evaluating(model):
        vectors, states = encode_images(model, pixels, device, config.keep_bytes, None)
        return [
            _hits_of(model, vectors, states or _encoded(model, pixels, device), kind, config, device)
            for kind in queries
        ]


def _encoded(model: PairModel, pixels: Iterable[Tensor], device: torch.device | str) -> Iterable[State]:
    return (model.image_state(batch.to(device)) for batch in pixels)


def _hits_of(
    model: PairModel,
    vectors: Float[Tensor, "I E"],
    images: Iterable[State],
    queries: Queries,
    config: EvaluationConfig,
    device: torch.device | str,
) -> Hits:
    text_vectors, text_states = encode_texts(model, queries.texts, config.batch_size, device, True, None)
    near = CosineIndex(vectors).search(text_vectors, config.rerank)
    none = Neighbours(torch.empty(len(vectors), 0, dtype=torch.long), torch.empty(len(vectors), 0))
    tokens = queries.texts.attention_mask.sum(dim=1).cpu()
    temperature = sum_temperature(model, config)
    _, scored = rerank(model, text_states, tokens, images, none, near, config.tokens_per_call, device, temperature)
    return best_hits(queries.kind, scored, queries.right.gather(1, scored.candidates), tokens, len(vectors))


def best_hits(kind: str, scored: Reranked, right: Bool[Tensor, "Q K"], tokens: Int[Tensor, "Q"], pictures: int) -> Hits:
    """Takes the best hits of each query, and once more those that it has without its right pictures.

    Candidates are not filled up from beyond K where right ones are left out.
    """
    assert scored.log_odds is not None, "there was no second stage"
    odds, order = scored.log_odds.sort(dim=1, descending=True, stable=True)
    right = right.gather(1, order)
    wrong_place = (~right).cumsum(dim=1)  # 1 for the best wrong hit of a query, and so on
    first = torch.arange(odds.shape[1]) < SHOWN
    asked = torch.ones_like(right) & first, ~right & (wrong_place <= SHOWN)
    before = int(asked[0].sum())
    best = wrong_place[asked[1]] == 1
    return Hits(
        kind,
        len(odds),
        pictures,
        torch.cat([odds[shown] for shown in asked]),
        torch.cat([tokens[:, None].expand_as(odds)[shown] for shown in asked]),
        torch.cat([right[shown] for shown in asked]),
        before + best.nonzero()[:, 0],
    )


def fit_calibration(hits: Sequence[Hits]) -> MatchCalibration:
    """Fits the map to hits of all kinds, and settles the minimum match.

    Raises ValueError if the match logits do not tell right hits from wrong ones, as those of an untrained model.
    """
    most = max(kind.queries for kind in hits)
    odds, tokens, right = (
        torch.cat([getattr(kind, name) for kind in hits]) for name in ("log_odds", "tokens", "right")
    )
    weights = torch.cat([torch.full((len(kind.right),), most / kind.queries) for kind in hits])
    slope, length, bias = fit_logistic(torch.stack([odds, tokens.log()], dim=1), right, weights)
    if slope <= 0:
        raise ValueError("its match logits do not tell right hits from wrong ones")
    queries, pictures = sum(kind.queries for kind in hits), max(kind.pictures for kind in hits)
    fitted = MatchCalibration(slope, length, bias, 0.0, queries, pictures)
    least = _least_match([fitted.probability(kind.log_odds, kind.tokens) for kind in hits], hits)
    return MatchCalibration(slope, length, bias, least, queries, pictures)


def _least_match(probabilities: Sequence[Tensor], hits: Sequence[Hits]) -> float:
    """Finds the probability at which the smaller of two shares is largest: of right hits that are kept, and of searches
    without a right answer that return nothing. If several do equally well, it takes the middle of them."""
    levels = torch.linspace(0, 1, 1001)
    kept, nothing = torch.zeros(2, len(levels), dtype=torch.double)
    for values, kind in zip(probabilities, hits, strict=True):
        kept += (values[kind.right][:, None] >= levels).double().mean(dim=0) / len(hits)
        nothing += (values[kind.best_wrong][:, None] < levels).double().mean(dim=0) / len(hits)
    smaller = torch.minimum(kept, nothing)
    best = levels[smaller >= smaller.max() - 1e-9]
    return round(float(best[0] + best[-1]) / 2, 3)


def measure_calibration(calibration: MatchCalibration, hits: Hits) -> CalibrationResult:
    """Measures a calibration on hits that it was not fitted on."""
    values = calibration.probability(hits.log_odds, hits.tokens)
    bins = reliability(values, hits.right)
    kept, nothing = values[hits.right] >= calibration.min_match, values[hits.best_wrong] < calibration.min_match
    shares = [round(100 * float(share.double().mean()), 6) for share in (kept, nothing)]
    return CalibrationResult(hits.kind, bins, expected_calibration_error(bins), *shares)
