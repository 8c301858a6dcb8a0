"""Scores how well captions fit their images.

A pair is scored by a trained model, which may have been trained on these pairs: it learns what most of them have in
common before it learns the exceptions by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.predict.inputs import Picture
from diptych.predict.predictor import Predictor

ScoreName = Literal["contrast", "match", "both"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
"""All are in nats, and 0 is a pair that fits no better than chance."""
POOL = 1000
"""The most captions that an image is compared with, and images that a caption is compared with."""
CHUNK = 4096
"""Pairs whose similarities with the pool are held in memory at once."""


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs of an image and a caption. A higher score is a better fit."""

    similarity: Float[Tensor, "P"]
    """The cosine of the two vectors."""
    contrast: Float[Tensor, "P"]
    """By how many nats the pair is likelier than the same image with other captions and the same caption with other
    images: similarity / τ minus the mean of the logarithms of both means of exp(similarity / τ) over other pairs. Its
    expectation is InfoNCE's bound on the mutual information of images and texts (ALBEF §4)."""
    match: Float[Tensor, "P"] | None
    """ITM's log odds. None where they were not asked for."""

    def by(self, name: ScoreName) -> Float[Tensor, "P"]:
        """Returns a score by its name; `both` is the sum of `contrast` and `match`."""
        if name == "contrast":
            return self.contrast
        assert self.match is not None
        return self.match if name == "match" else self.contrast + self.match


def score_pairs(
    predictor: Predictor,
    images: Sequence[Picture],
    vectors: Float[Tensor, "I E"],
    captions: Sequence[str],
    image_of: Sequence[int],
    name: ScoreName = "contrast",
    seed: int = 0,
) -> PairScores:
    """Scores every caption with its image, `images[image_of[p]]`, whose vectors are known.

    `seed` draws the pool of other images and captions. A pair with the same image or an equal caption is left out of
    the pairs that it is compared with. Raises BadRecord for an image that cannot be read, and ValueError for a score
    that the model cannot give.
    """
    owner = torch.as_tensor(image_of, dtype=torch.long)
    texts = _embed(predictor, captions)
    similarity = (vectors[owner] * texts).sum(dim=1)
    contrast = _contrast(vectors, texts, owner, _numbered(captions), predictor.model.temperature().item(), seed)
    return PairScores(
        similarity, contrast, None if name == "contrast" else _match(predictor, images, captions, image_of)
    )


def _match(
    predictor: Predictor, images: Sequence[Picture], captions: Sequence[str], image_of: Sequence[int]
) -> Float[Tensor, "P"]:
    pairs = sorted((image, text) for text, image in enumerate(image_of))
    probability = predictor.match_pairs(images, captions, pairs).double().clamp(1e-9, 1 - 1e-9)
    match = torch.empty(len(captions))
    match[torch.tensor([text for _, text in pairs])] = torch.logit(probability).float()
    return match


def _embed(predictor: Predictor, captions: Sequence[str]) -> Float[Tensor, "P E"]:
    """Embeds captions in batches of the recipe's evaluation."""
    size = predictor.recipe.evaluation.batch_size
    return torch.cat([predictor.embed_texts(captions[start : start + size]) for start in range(0, len(captions), size)])


def _numbered(captions: Sequence[str]) -> Int[Tensor, "P"]:
    """Gives equal captions the same number."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])


def _contrast(
    pictures: Float[Tensor, "I E"],
    texts: Float[Tensor, "P E"],
    owner: Int[Tensor, "P"],
    wording: Int[Tensor, "P"],
    temperature: float,
    seed: int,
) -> Float[Tensor, "P"]:
    pool = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:POOL]
    scores = []
    for chunk in torch.arange(len(texts)).split(CHUNK):
        images, words = pictures[owner[chunk]], texts[chunk]
        # A pair of the pool is another one if its image and its wording both differ from those of the scored pair.
        other = (owner[chunk, None] != owner[pool]) & (wording[chunk, None] != wording[pool])  # [chunk, pool]
        own = (images * words).sum(dim=1) / temperature
        with_texts = _log_mean(images @ texts[pool].T / temperature, other)
        with_images = _log_mean(words @ pictures[owner[pool]].T / temperature, other)
        scores.append(own - (with_texts + with_images) / 2)
    return torch.cat(scores)


def _log_mean(logits: Float[Tensor, "P N"], counted: Bool[Tensor, "P N"]) -> Float[Tensor, "P"]:
    """Computes the logarithm of the mean of exp(logits) over what is counted; 0 where nothing is."""
    total = logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1)
    count = counted.sum(dim=1)
    return torch.where(count > 0, total - count.clamp_min(1).log(), 0.0)
