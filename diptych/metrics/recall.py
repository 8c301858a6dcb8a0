"""Measures recall at k: ranks first, then the share of ranks below k. Higher recall and lower ranks are better.

Q queries, N candidates, I images, T texts. Ranks count from 0. Recalls are in percent, as in the papers' tables.

Ties count against the model: an irrelevant candidate with the same score as the best relevant one stands before it, and
so does one whose score is not a number. So a model that gives every candidate the same score is ranked last, in
whatever order the candidates are, and no sort is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEVELS = (1, 5, 10)
"""The k of the published tables."""


def retrieval_ranks(scores: Float[Tensor, "Q N"], relevant: Bool[Tensor, "Q N"]) -> Int[Tensor, "Q"]:
    """Ranks each query's best relevant candidate: counts the irrelevant ones that do not score below it.

    An image with several captions thus gets the best rank of its captions. Lower is better. Raises ValueError for a
    query without a relevant candidate.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1]])
    >>> relevant = torch.tensor([[False, True, True], [True, False, False]])
    >>> retrieval_ranks(scores, relevant).tolist()  # 0.9 stands before 0.5; the tie of 0.2 counts against the query
    [1, 1]
    """
    if not relevant.any(dim=1).all():
        row = int((~relevant.any(dim=1)).nonzero()[0])
        raise ValueError(f"query {row} has no relevant candidate, so it has no rank: leave such queries out")
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return (~(scores < best) & ~relevant).sum(dim=1)


def recall(ranks: Int[Tensor, "Q"], k: int) -> float:
    """Computes the percentage of the queries whose best relevant candidate is among the first k. Higher is better.

    >>> recall(torch.tensor([0, 4, 1, 7]), k=2)
    50.0
    """
    return 100.0 * (ranks < k).double().mean().item()


def chance_recall(relevant: Int[Tensor, "Q"], candidates: int, k: int) -> float:
    """Computes recall at k in percent of a random order, for queries with `relevant[q]` right ones of `candidates`.

    >>> round(chance_recall(torch.tensor([1, 1]), candidates=1000, k=10), 9)
    1.0
    """
    return 100.0 * _hit_probability(torch.full_like(relevant, k), relevant, candidates - relevant).mean().item()


def chance_mean_recall(image_of_text: Int[Tensor, "T"], images: int, levels: Sequence[int] = LEVELS) -> float:
    """Computes the `mean_recall` in percent of a random order of both images and texts.

    >>> round(chance_mean_recall(torch.tensor([0, 1, 2, 3]), images=4, levels=(1,)), 9)
    25.0
    """
    texts_of = torch.bincount(image_of_text, minlength=images)
    one_image = torch.ones_like(image_of_text)
    by_image = [chance_recall(texts_of, len(image_of_text), k) for k in levels]
    by_text = [chance_recall(one_image, images, k) for k in levels]
    return sum(by_image + by_text) / (2 * len(levels))


def _hit_probability(
    slots: Int[Tensor, "Q"], relevant: Int[Tensor, "Q"], irrelevant: Int[Tensor, "Q"]
) -> Float[Tensor, "Q"]:
    """Computes the probability that `slots` draws without replacement hold a relevant item (hypergeometric)."""
    drawn = torch.minimum(slots.clamp(min=0), irrelevant).double()
    right, wrong = relevant.double(), irrelevant.double()
    # log C(wrong, drawn) - log C(right + wrong, drawn); the factorial of `drawn` cancels.
    log_miss = _log_falling(wrong, drawn) - _log_falling(right + wrong, drawn)
    return torch.where(slots > irrelevant, 1.0, -torch.expm1(log_miss))


def _log_falling(items: Float[Tensor, "Q"], drawn: Float[Tensor, "Q"]) -> Float[Tensor, "Q"]:
    """Computes the log of items · (items - 1) · … with `drawn` factors."""
    return torch.lgamma(items + 1) - torch.lgamma(items - drawn + 1)


def retrieval_metrics(ranks: Mapping[str, Int[Tensor, "Q"]], levels: Sequence[int] = LEVELS) -> dict[str, float]:
    """Computes the recalls in percent of each direction, their mean over the levels, and the mean of the means.

    >>> ranks = {"image_to_text": torch.tensor([0, 3]), "text_to_image": torch.tensor([0, 0, 12, 7])}
    >>> retrieval_metrics(ranks, levels=(1, 10))  # doctest: +NORMALIZE_WHITESPACE
    {'image_to_text.recall@1': 50.0, 'image_to_text.recall@10': 100.0, 'image_to_text.mean_recall': 75.0,
     'text_to_image.recall@1': 50.0, 'text_to_image.recall@10': 75.0, 'text_to_image.mean_recall': 62.5,
     'mean_recall': 68.75}
    """
    metrics: dict[str, float] = {}
    means: list[float] = []
    for direction, ranked in ranks.items():
        values = {f"{direction}.recall@{k}": recall(ranked, k) for k in levels}
        means.append(sum(values.values()) / len(values))
        metrics |= values | {f"{direction}.mean_recall": means[-1]}
    return metrics | {"mean_recall": sum(means) / len(means)}
