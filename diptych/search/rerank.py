"""Re-ranks retrieval: similarity picks each query's candidates, the fusion encoder orders them.

I images, T texts, Q queries, N candidates in all, K candidates of a query, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.schema import EvaluationConfig
from diptych.search.contract import PairModel, State
from diptych.search.index import Neighbours

UNSELECTED = -100.0
"""The score that the released evaluation gives to candidates which the first stage did not pick."""


@dataclass(frozen=True)
class Reranked:
    """The candidates of each query in the order of the first stage, with the scores of both stages."""

    candidates: Int[Tensor, "Q K"]
    similarity: Float[Tensor, "Q K"]
    """Cosine similarity, descending."""
    match: Float[Tensor, "Q K"] | None
    """What alone decides the final order: the logit of a match, or `log_odds` if similarity counts too
    (`evaluation.score`). None without a second stage."""
    log_odds: Float[Tensor, "Q K"] | None = None
    """The logit of a match less that of no match, plus similarity / temperature if similarity counts too. Calibration
    computes a probability from it. None without a second stage."""

    def ordered(self) -> Reranked:
        """Sorts by `match`, the best first; equal ones stay in the order of the first stage."""
        if self.match is None:
            return self
        match, order = self.match.sort(dim=1, descending=True, stable=True)
        odds = None if self.log_odds is None else self.log_odds.gather(1, order)
        return Reranked(self.candidates.gather(1, order), self.similarity.gather(1, order), match, odds)

    def dense(self, candidates: int) -> Float[Tensor, "Q N"]:
        """Spreads the match logits over a table of all candidates, with `UNSELECTED` for the others."""
        assert self.match is not None, "there was no second stage"
        table = self.match.new_full((len(self.match), candidates), UNSELECTED)
        return table.scatter(1, self.candidates, self.match)


@torch.no_grad()
def rerank(
    model: PairModel,
    texts: State,
    text_lengths: Int[Tensor, "T"],
    images: Iterable[State],
    to_text: Neighbours,
    to_image: Neighbours,
    tokens_per_call: int = 4_096,
    device: torch.device | str = "cpu",
    temperature: float | None = None,
) -> tuple[Reranked, Reranked]:
    """Computes the match logits of the candidates of both directions: (image → text, text → image).

    With a `temperature`, similarity / temperature is added to the log odds of a match, and the sum decides the order.

    A pair that occurs in both directions is fused once. The pairs of an image go into as few calls as memory allows, so
    that they share what the model computes for an image (ALBEF: the keys and values of cross-attention).

    `texts` holds all T texts, `text_lengths` their numbers of tokens. `images` yields the I images in order and in
    portions, of which one is alive at a time. `to_text` [I, K] are the texts picked for each image, `to_image` [T, K]
    the images picked for each text. `tokens_per_call` bounds a `fuse` call: the pairs' text tokens (padding between
    images included) and `model.fused_image_tokens` a pair.
    """
    count = len(text_lengths)
    keys, places = _union(to_text, to_image, count)
    image, text = keys // count, keys % count
    logits = torch.empty(2, len(keys))  # of a match, and less those of no match
    start = 0
    for state in images:
        bounds = torch.tensor([start * count, (start + len(state)) * count])
        first, last = torch.searchsorted(keys, bounds).tolist()
        rows = text_lengths[text[first:last]] + model.fused_image_tokens
        for call in plan_calls(image[first:last], rows, tokens_per_call):
            pairs = call + first
            both = match_logits(model, texts, state, text[pairs], image[pairs] - start, device)  # ALBEF §5
            logits[0, pairs] = both[:, 1]  # as released: the raw logit of class 1, whatever class 0 has
            logits[1, pairs] = both[:, 1] - both[:, 0]
        start += len(state)
    assert start == len(to_text.indices), f"{len(to_text.indices)} images have candidates, {start} came"
    scores = logits[:, places].split([to_text.indices.numel(), to_image.indices.numel()], dim=1)
    return _with_match(to_text, scores[0], temperature), _with_match(to_image, scores[1], temperature)


def evidence(
    log_odds: Float[Tensor, "..."], similarity: Float[Tensor, "..."], temperature: float | None
) -> Float[Tensor, "..."]:
    """Adds similarity / temperature to the log odds of a match, unless the temperature is None."""
    return log_odds if temperature is None else log_odds + similarity / temperature


def sum_temperature(model: PairModel, config: EvaluationConfig) -> float | None:
    """Returns the temperature by which similarities are divided in `evaluation.score=sum`, else None."""
    return model.temperature().item() if config.score == "sum" else None


def match_logits(
    model: PairModel,
    texts: Any,
    images: Any,
    text_index: Int[Tensor, "P"],
    image_index: Int[Tensor, "P"],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "P 2"]:
    """Computes ITM's logits (no match, match) of pairs, on the CPU. Only the texts and images in use are passed on."""
    text_used, text_local = text_index.to(device).unique(return_inverse=True)
    image_used, image_local = image_index.to(device).unique(return_inverse=True)
    joint = model.fuse(texts[text_used], images[image_used], text_index=text_local, image_index=image_local)
    return model.match_logits(joint).float().cpu()


def plan_calls(image: Int[Tensor, "P"], tokens: Int[Tensor, "P"], budget: int) -> list[Int[Tensor, "p"]]:
    """Cuts pairs that are sorted by `image` into calls of about `budget` tokens. Each pair is in one call.

    An image's pairs stay together if they fit. Images with similar numbers of pairs share a call, because attention
    pads each image's tokens to the longest: images × the largest image's tokens stay within the budget.

    >>> image, tokens = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 4, 4, 4, 4])
    >>> [call.tolist() for call in plan_calls(image, tokens, budget=16)]
    [[2, 0, 1], [3, 4]]
    """
    before = tokens.cumsum(0) - tokens
    _, image_place, image_pairs = image.unique_consecutive(return_inverse=True, return_counts=True)
    first_pair = image_pairs.cumsum(0) - image_pairs
    piece = (before - before[first_pair][image_place]) // budget  # the part of an image too large for one call
    items = torch.stack([image_place, piece], dim=1)
    _, item, sizes = items.unique_consecutive(dim=0, return_inverse=True, return_counts=True)
    weight = torch.zeros(len(sizes), dtype=tokens.dtype).index_add(0, item, tokens)
    parts = torch.arange(len(image)).split(sizes.tolist())
    calls: list[list[Tensor]] = []
    for place in weight.argsort(stable=True).tolist():
        # Ascending weights: the newest item is the largest of its call.
        if not calls or (len(calls[-1]) + 1) * int(weight[place]) > budget:
            calls.append([])
        calls[-1].append(parts[place])
    return [torch.cat(call) for call in calls]


def _union(to_text: Neighbours, to_image: Neighbours, texts: int) -> tuple[Int[Tensor, "P"], Int[Tensor, "p"]]:
    """Numbers the pairs of both directions as image · texts + text, ascending and each once, with each one's place."""
    images = torch.arange(len(to_text.indices))[:, None] * texts
    from_image = images + to_text.indices.cpu()
    from_text = to_image.indices.cpu() * texts + torch.arange(len(to_image.indices))[:, None]
    return torch.cat([from_image.flatten(), from_text.flatten()]).unique(return_inverse=True)


def _with_match(neighbours: Neighbours, logits: Float[Tensor, "2 p"], temperature: float | None) -> Reranked:
    indices, similarity = neighbours.indices.cpu(), neighbours.scores.cpu()
    match, odds = logits.reshape(2, *indices.shape)
    if temperature is not None:
        match = odds = evidence(odds, similarity, temperature)
    return Reranked(indices, similarity, match, odds)
