"""What the pre-training of both systems shares: random draws, all fusions in one call, and what is measured of them.

ALBEF §3.2, VLMo §3.3. B pairs of a batch, L padded text length, K candidates, P judged pairs, R hidden words,
V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.losses.contrastive import HIDDEN, Logits, information_bound
from diptych.losses.masked_lm import hidden_words
from diptych.losses.matching import match_labels, matching_pairs
from diptych.nn.counter_rng import derived
from diptych.task import Model
from diptych.types import Term, Texts, TokenPositions

MASKED = 0
"""Sets the draws of a text with hidden words apart from those of the text itself."""


@dataclass(frozen=True)
class Draws:
    """The random part of one forward. Recorded negatives may stand in for drawn ones."""

    masked_ids: Int[Tensor, "B L"]
    labels: Int[Tensor, "B L"]
    uniform: Float[Tensor, "2 B"]
    negative_image: Int[Tensor, "B"] | None = None
    negative_text: Int[Tensor, "B"] | None = None

    def with_masked(self, texts: Texts) -> Texts:
        """The texts and, behind them, the same with words hidden."""
        keys = None if texts.rng_keys is None else torch.cat([texts.rng_keys, derived(texts.rng_keys, MASKED)])
        return Texts(torch.cat([texts.input_ids, self.masked_ids]), texts.attention_mask.repeat(2, 1), keys)

    def hidden_words(self) -> tuple[TokenPositions, Int[Tensor, "R"]]:
        """Where words are hidden, `pair` counting texts of the batch, and which."""
        return hidden_words(self.labels)


@dataclass(frozen=True)
class DrawnNegatives:
    """The wrong text of each picture and the wrong picture of each text, counted within the batch.

    Each with the probability, 0..1, with which it was drawn.
    """

    negative_text_index: Int[Tensor, "B"]
    negative_text_probability: Float[Tensor, "B"]
    negative_image_index: Int[Tensor, "B"]
    negative_image_probability: Float[Tensor, "B"]


def fuse_pairs(
    model: Model,
    texts: Any,
    images: Any,
    size: int,
    negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None,
    masked: TokenPositions | None,
) -> tuple[Float[Tensor, "P 2"] | None, Float[Tensor, "R V"] | None]:
    """One call for 4B pairs: positives, (text, hard image), (hard text, image), (masked text, image).

    The first `size` (B) texts and images are the batch's, the next B texts its masked ones.
    `negatives`: the hard image of each text and the hard text of each image; None leaves out ITM, and its 3B pairs.
    `masked`: the hidden words, `pair` counting the batch; None leaves out MLM, and its B pairs.
    """
    pairs = [] if negatives is None else [matching_pairs(*negatives)]
    judged = sum(len(text) for text, _ in pairs)
    if masked is not None:
        here = torch.arange(size, device=masked.pair.device)
        pairs.append((here + size, here))
        masked = TokenPositions(masked.pair + judged, masked.position)
    text_index, image_index = (torch.cat(indices) for indices in zip(*pairs, strict=True))
    joint = model.fuse(texts, images, text_index, image_index, masked)
    matched = model.match_logits(joint)[:judged] if judged else None
    return matched, None if joint.hidden is None else model.word_logits(joint.hidden).float()


@torch.no_grad()
def contrast_measures(
    logits: Logits, positives: Float[Tensor, "B K"], temperature: Float[Tensor, ""]
) -> dict[str, Term]:
    """Whether a contrast is healthy. The bound in nats, similarities as cosines."""
    bound = (  # ALBEF Eq. 9
        information_bound(logits.image_to_text, positives) + information_bound(logits.text_to_image, positives)
    ) / 2
    cosine = ((logits.image_to_text + logits.text_to_image) / 2 * positives).sum(1) * temperature
    return {
        "mi_bound": Term.over(bound),
        "temperature": Term.over(temperature.detach()[None]),
        "positive_similarity": Term.over(cosine),
        "other_similarity": other_similarity(logits, positives == 0, temperature),
    }


@torch.no_grad()
def other_similarity(logits: Logits, others: Bool[Tensor, "B K"], temperature: Float[Tensor, ""]) -> Term:
    """Of pairs that do not belong together, as a cosine; what is hidden does not count.

    As high as `positive_similarity`, all features are the same: a collapse.
    """
    both = (logits.image_to_text + logits.text_to_image) / 2
    shown = others & (both > HIDDEN / 2)
    return Term(both.where(shown, 0).sum() * temperature, shown.sum())


@torch.no_grad()
def repeated_pictures(repeated: Bool[Tensor, "B K"]) -> Term:
    """The share of pairs with another caption of their own picture among the candidates (`repeated`).

    Such candidates are false negatives, unless they are hidden.
    """
    return Term.over(repeated.any(1).float())


@torch.no_grad()
def negative_similarity(
    logits: Logits, negative_image: Int[Tensor, "B"], negative_text: Int[Tensor, "B"], temperature: Float[Tensor, ""]
) -> Term:
    """How hard the drawn negatives are, as a cosine (beside `positive_similarity`)."""
    here = torch.arange(len(negative_image), device=negative_image.device)
    both = logits.image_to_text[here, negative_text] + logits.text_to_image[here, negative_image]
    return Term.over(both / 2 * temperature)


@torch.no_grad()
def matching_measures(match_logits: Float[Tensor, "P 2"]) -> dict[str, Term]:
    """Whether fusion tells right pairs from wrong ones."""
    hits = match_logits.argmax(1) == match_labels(len(match_logits) // 3, match_logits.device)
    return {"itm_accuracy": Term.over(hits.float())}


@torch.no_grad()
def word_measures(loss: Term, word_logits: Float[Tensor, "R V"], labels: Int[Tensor, "R"]) -> dict[str, Term]:
    """Whether hidden words are found; `loss` is against these labels. The bound in nats."""
    uncertainty = math.log(word_logits.shape[1])
    return {
        "mi_bound_words": Term(uncertainty * loss.count - loss.sum, loss.count),  # ALBEF Eq. 10
        "mlm_accuracy": Term.over((word_logits.argmax(1) == labels).float()),
    }


@torch.no_grad()
def drawn_negatives(
    image_weights: Float[Tensor, "B K"],
    text_weights: Float[Tensor, "B K"],
    negative_image: Int[Tensor, "B"],
    negative_text: Int[Tensor, "B"],
) -> DrawnNegatives:
    """With the probabilities that the sampling weights gave to what was drawn."""
    here = torch.arange(len(negative_image), device=negative_image.device)
    images, texts = (weights / weights.sum(1, keepdim=True) for weights in (image_weights, text_weights))
    return DrawnNegatives(negative_text, texts[here, negative_text], negative_image, images[here, negative_image])
