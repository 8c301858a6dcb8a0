"""Measures retrieval, with intervals: contrastive search (VLMo §3.5), then optional re-ranking by fusion (ALBEF §5).

I images, T texts, E embedding width, Q queries (I or T), K candidates of a query, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.metrics.accuracy import Estimate
from diptych.metrics.intervals import bootstrap_means, interval
from diptych.metrics.recall import LEVELS, chance_recall, recall, retrieval_metrics, retrieval_ranks
from diptych.schema import EvaluationConfig
from diptych.search.contract import PairModel, State, evaluating
from diptych.search.index import CosineIndex, Neighbours
from diptych.search.rerank import Reranked, rerank, sum_temperature
from diptych.types import Texts, to_device

DIRECTIONS = ("image_to_text", "text_to_image")
OnProgress = Callable[[str, int, int | None], None]
"""A function that is called with a stage's name, the items done and, if known, their number."""


@dataclass(frozen=True)
class Retrieved:
    """The results of the queries of one direction."""

    contrastive_ranks: Int[Tensor, "Q"]
    """The rank of the best right answer by similarity alone, from 0."""
    ranks: Int[Tensor, "Q"]
    """The rank after re-ranking. A query without a right answer among its candidates keeps its contrastive rank;
    without re-ranking all do."""
    reranked: Reranked
    recall: dict[int, Estimate]
    contrastive_recall: dict[int, Estimate]
    chance: dict[int, float]
    """The recall in percent of a random order."""


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval among `images` pictures and `texts` texts. Recalls are in percent; higher is better."""

    images: int
    texts: int
    image_to_text: Retrieved
    text_to_image: Retrieved
    rerank_gain: Estimate | None
    """Re-ranked minus contrastive recall@1, the mean of both directions, in points, with its paired interval; None
    without re-ranking."""

    def to_json(self) -> dict[str, Any]:
        """Flattens the names. `image_to_text.recall@10` and the like are the values after the last stage."""
        entries: dict[str, Any] = {"unit": "percent", "images": self.images, "texts": self.texts}
        for direction in DIRECTIONS:
            retrieved: Retrieved = getattr(self, direction)
            if retrieved.reranked.match is not None:
                entries[f"{direction}.candidates"] = retrieved.reranked.match.shape[1]
            for prefix, scores in (("", retrieved.recall), ("contrastive.", retrieved.contrastive_recall)):
                for k, score in scores.items():
                    entries[f"{prefix}{direction}.recall@{k}"] = score.value
                    entries[f"{prefix}{direction}.recall@{k}.interval"] = list(score.interval)
            entries |= {f"chance.{direction}.recall@{k}": value for k, value in retrieved.chance.items()}
            entries[f"{direction}.median_rank"] = 1 + int(retrieved.ranks.median())
        if (gain := self.rerank_gain) is not None:
            entries |= {"rerank_gain.recall@1": gain.value, "rerank_gain.interval": list(gain.interval)}
        return {name: _rounded(value) for name, value in entries.items()}


def _rounded(value: Any) -> Any:
    """Drops the last digits of binary fractions: 1.1 and not 1.0999999999999999."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def evaluate_retrieval(
    model: PairModel,
    pixels: Iterable[Float[Tensor, "_ 3 H W"]],
    texts: Texts,
    image_of_text: Int[Tensor, "T"],
    config: EvaluationConfig,
    device: torch.device | str = "cpu",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> RetrievalResult:
    """Searches all texts by each picture and all pictures by each text, in two stages or, with `config.rerank` 0, by
    similarity alone.

    `pixels` yields the I pictures in batches and can be iterated twice (a list or a loader, no generator): encoded
    pictures are kept between the stages only if all fit into `config.keep_bytes`. Text t belongs to picture
    image_of_text[t]. Two stages need memory for the encoded texts, for that many bytes, for one batch of pictures and
    for the pairs of one call; a single stage needs it for the vectors and a batch.

    Raises ValueError for a picture without a text, and for embeddings that are not finite.
    """
    twice = config.rerank > 0
    if twice and iter(pixels) is pixels:
        raise ValueError("pictures are needed twice: give a list of batches or a loader, not a generator")
    with evaluating(model):
        text_vectors, text_states = encode_texts(model, texts, config.batch_size, device, twice, on_progress)
        keep = config.keep_bytes if twice else 0
        image_vectors, image_states = encode_images(model, pixels, device, keep, on_progress)
        owner = _owners(image_of_text, len(image_vectors), len(text_vectors))
        to_text, to_image = CosineIndex(text_vectors), CosineIndex(image_vectors)
        ranks = _contrastive_ranks(to_text, to_image, owner)
        candidates = config.rerank or max(LEVELS)
        near = to_text.search(image_vectors, candidates), to_image.search(text_vectors, candidates)
        if not twice:
            return _result(ranks, [_unscored(neighbours) for neighbours in near], owner, config.bootstrap, seed)
        scored = rerank(
            model,
            text_states,
            texts.attention_mask.sum(dim=1).cpu(),
            _counted(image_states or _states(model, pixels, device), len(image_vectors), on_progress),
            *near,
            config.tokens_per_call,
            device,
            sum_temperature(model, config),
        )
    return _result(ranks, scored, owner, config.bootstrap, seed)


def _unscored(neighbours: Neighbours) -> Reranked:
    """Wraps the nearest candidates of a search without a second stage."""
    return Reranked(neighbours.indices.cpu(), neighbours.scores.cpu(), None)


def contrastive_recall(
    model: PairModel,
    pixels: Iterable[Float[Tensor, "_ 3 H W"]],
    texts: Texts,
    image_of_text: Int[Tensor, "T"],
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measures the recalls in percent of the first stage alone, for validation; named as in `retrieval_metrics`."""
    with evaluating(model):
        text_vectors, _ = encode_texts(model, texts, batch_size, device, False, None)
        image_vectors, _ = encode_images(model, pixels, device, 0, None)
    owner = _owners(image_of_text, len(image_vectors), len(text_vectors))
    ranks = _contrastive_ranks(CosineIndex(text_vectors), CosineIndex(image_vectors), owner)
    return retrieval_metrics(dict(zip(DIRECTIONS, ranks, strict=True)))


# --------------------------------------------------------------------------- encoding


def encode_texts(
    model: PairModel,
    texts: Texts,
    batch_size: int,
    device: torch.device | str,
    keep: bool,
    on_progress: OnProgress | None,
) -> tuple[Float[Tensor, "T E"], Any]:
    """Embeds all texts, and returns their states too if they are to be kept."""
    vectors: list[Tensor] = []
    states: list[State] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        state = model.text_state(to_device(batch, device))
        vectors.append(model.embed_text(state)["main"])
        if keep:
            states.append(state)
        if on_progress:
            on_progress("texts", min(start + batch_size, len(texts)), len(texts))
    if not vectors:
        raise ValueError("nothing to evaluate: there is no text")
    return torch.cat(vectors), type(states[0]).cat(states) if keep else None


def encode_images(
    model: PairModel,
    pixels: Iterable[Tensor],
    device: torch.device | str,
    keep_bytes: int,
    on_progress: OnProgress | None,
) -> tuple[Float[Tensor, "I E"], list[State] | None]:
    """Embeds all pictures, and returns their states too if all of them fit into `keep_bytes`."""
    vectors: list[Tensor] = []
    kept: list[State] | None = []
    room, done = keep_bytes, 0
    for state in _states(model, pixels, device):
        vectors.append(model.embed_image(state)["main"])
        room -= state.nbytes
        if room < 0:
            kept = None
        if kept is not None:
            kept.append(state)
        done += len(state)
        if on_progress:
            on_progress("pictures", done, None)
    if not vectors:
        raise ValueError("nothing to evaluate: there is no picture")
    return torch.cat(vectors), kept


def _states(model: PairModel, pixels: Iterable[Tensor], device: torch.device | str) -> Iterator[State]:
    for batch in pixels:
        yield model.image_state(batch.to(device, non_blocking=True))


def _counted(states: Iterable[State], total: int, on_progress: OnProgress | None) -> Iterator[State]:
    """Yields the states and reports each when the work on it is done."""
    done = 0
    for state in states:
        yield state
        done += len(state)
        if on_progress:
            on_progress("re-ranking", done, total)


# --------------------------------------------------------------------------- ranks and recalls


def _owners(image_of_text: Int[Tensor, "T"], images: int, texts: int) -> Int[Tensor, "T"]:
    """Checks that `image_of_text` fits and leaves no picture out, and moves it to the CPU."""
    owner = image_of_text.cpu().long()
    if len(owner) != texts or int(owner.min()) < 0 or int(owner.max()) >= images:
        raise ValueError(f"image_of_text must name one of the {images} pictures for each of the {texts} texts")
    without = (torch.bincount(owner, minlength=images) == 0).nonzero()
    if len(without):
        raise ValueError(f"{len(without)} of {images} pictures have no text (picture {int(without[0])}, for one)")
    return owner


def _contrastive_ranks(to_text: CosineIndex, to_image: CosineIndex, owner: Int[Tensor, "T"]) -> list[Tensor]:
    """Computes the ranks by similarity, image → text and text → image, without a table of all similarities."""
    images = torch.arange(len(to_image))
    ways = ((to_text, to_image.vectors, images, owner), (to_image, to_text.vectors, owner, images))
    return [
        torch.cat(
            [
                retrieval_ranks(similarity.cpu(), of_query[rows, None] == of_candidate)
                for rows, similarity in index.blocks(queries)
            ]
        )
        for index, queries, of_query, of_candidate in ways
    ]


def _final_ranks(scored: Reranked, relevant: Tensor, contrastive: Int[Tensor, "Q"]) -> Int[Tensor, "Q"]:
    """Computes the ranks after re-ranking: by the second stage among the candidates or, without a right answer among
    them, the rank of the first stage, which is then at least K."""
    if scored.match is None:
        return contrastive
    reached = relevant.any(dim=1)
    ranks = contrastive.clone()
    ranks[reached] = retrieval_ranks(scored.match[reached], relevant[reached])
    return ranks


def _result(
    contrastive: Sequence[Tensor], scored: Sequence[Reranked], owner: Int[Tensor, "T"], resamples: int, seed: int
) -> RetrievalResult:
    images = torch.arange(len(contrastive[0]))
    of_query = (images, owner)  # the picture of each query, by direction
    relevant = (owner[scored[0].candidates] == images[:, None], scored[1].candidates == owner[:, None])
    ranks = {("contrastive", way): contrastive[way] for way in (0, 1)}
    ranks |= {("final", way): _final_ranks(scored[way], relevant[way], contrastive[way]) for way in (0, 1)}
    resampled = {
        (stage, way, k): column
        for (stage, way), ranked in ranks.items()
        for k, column in zip(LEVELS, _resampled(ranked, of_query[way], resamples, seed), strict=True)
    }
    scores = {
        (stage, way, k): Estimate(recall(ranks[stage, way], k), interval(column), len(of_query[way]))
        for (stage, way, k), column in resampled.items()
    }
    right = (torch.bincount(owner), torch.ones_like(owner))
    retrieved = [
        Retrieved(
            contrastive_ranks=ranks["contrastive", way],
            ranks=ranks["final", way],
            reranked=scored[way],
            recall={k: scores["final", way, k] for k in LEVELS},
            contrastive_recall={k: scores["contrastive", way, k] for k in LEVELS},
            chance={k: chance_recall(right[way], len(of_query[1 - way]), k) for k in LEVELS},
        )
        for way in (0, 1)
    ]
    gain = None
    if all(direction.match is not None for direction in scored):
        gain = Estimate(
            sum(scores["final", way, 1].value - scores["contrastive", way, 1].value for way in (0, 1)) / 2,
            interval(sum(resampled["final", way, 1] - resampled["contrastive", way, 1] for way in (0, 1)) / 2),
            len(images) + len(owner),
        )
    return RetrievalResult(len(images), len(owner), retrieved[0], retrieved[1], gain)


def _resampled(
    ranks: Int[Tensor, "Q"], picture: Int[Tensor, "Q"], resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "S"]]:
    """Resamples the pictures and yields the recalls in percent at each level. One seed gives equal draws to all."""
    hits = [torch.bincount(picture, weights=(ranks < k).double()) for k in LEVELS]
    queries = torch.bincount(picture).double()[:, None].expand(-1, len(LEVELS))
    yield from 100 * bootstrap_means(torch.stack(hits, dim=1).numpy(), queries.numpy(), resamples, seed).T
