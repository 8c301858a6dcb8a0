"""Holds what the pre-training of ALBEF and that of VLMo share: random draws, hard negatives, fusion, measures.

B pairs of this process, F of them that are fused, G pairs of all processes, K candidates of a contrast, L padded text
length, R masked tokens of the fused pairs, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.losses.contrastive import (
    IGNORED_LOGIT,
    Logits,
    information_bound,
    known_true,
)
from diptych.losses.masked_lm import masked_tokens
from diptych.losses.matching import both_negative_weights, draw_negatives, match_labels, matching_pairs
from diptych.nn.counter_rng import derived
from diptych.nn.gather import Processes
from diptych.schema import PretrainConfig, Released
from diptych.task import Model
from diptych.types import Batch, Claims, Term, Texts, TokenPositions

MASKED = 0
"""The number that sets the dropout draws of a masked text apart from those of the text itself."""

Negatives = tuple[Int[Tensor, "_"], Int[Tensor, "F"]]
"""Index of a hard image for each fused text (then for each fused phrase), and of a hard text for each fused image."""
NegativeWeights = tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]]
"""Sampling weights of the images for each text, and of the texts for each image."""


@dataclass(frozen=True)
class Draws:
    """Holds the random part of one step. Recorded negatives may replace drawn ones."""

    masked_ids: Int[Tensor, "B L"]
    """Token ids of the captions with some words masked."""
    labels: Int[Tensor, "B L"]
    """The original id at masked places, `IGNORED` elsewhere."""
    uniform: Float[Tensor, "2 B"]
    """Numbers in 0..1 that draw the negatives: images for texts, then texts for images."""
    negative_image: Int[Tensor, "B"] | None = None
    negative_text: Int[Tensor, "B"] | None = None
    some: Int[Tensor, "F"] | None = None
    """Rows of the batch that are fused (`task.fused_share`), or None for all of them."""

    @property
    def fused(self) -> Int[Tensor, "F"]:
        """Rows of the batch that are fused, in order."""
        return torch.arange(len(self.labels), device=self.labels.device) if self.some is None else self.some

    def with_masked(self, texts: Texts) -> Texts:
        """Returns the B texts and, behind them, the F fused ones with words masked."""
        rows, keys = self.fused, texts.rng_keys
        masked_keys = None if keys is None else derived(keys[rows], MASKED)
        return Texts.cat([texts, Texts(self.masked_ids[rows], texts.attention_mask[rows], masked_keys)])

    def masked_tokens(self) -> tuple[TokenPositions, Int[Tensor, "R"]]:
        """Returns where tokens are masked (`pair` counts the fused pairs) and which tokens they were."""
        return masked_tokens(self.labels[self.fused])


@dataclass(frozen=True)
class DrawnNegatives:
    """Shows the wrong text of each picture and the wrong picture of each text, with the probability of drawing it."""

    negative_text_index: Int[Tensor, "B"]
    negative_text_probability: Float[Tensor, "B"]
    negative_image_index: Int[Tensor, "B"]
    negative_image_probability: Float[Tensor, "B"]

    @classmethod
    @torch.no_grad()
    def of(cls, weights: NegativeWeights, negatives: Negatives) -> DrawnNegatives:
        """Reads the probabilities of drawn negatives from the sampling weights."""
        here = torch.arange(len(negatives[0]), device=negatives[0].device)
        images, texts = (weight / weight.sum(1, keepdim=True) for weight in weights)
        image, text = negatives
        return cls(text, texts[here, text], image, images[here, image])


def check_losses(config: PretrainConfig) -> None:
    """Raises ValueError for losses that need ITC where it is left out, and where no pair would be fused."""
    if config.phrases and not config.itc:
        raise ValueError(f"task.phrases={config.phrases} extends ITC to phrases, but task.itc is 0: set task.phrases=0")
    if not 0 < config.fused_share <= 1:
        raise ValueError(f"task.fused_share={config.fused_share}: choose a share above 0 and at most 1")
    if config.fuse_start > 0 and not config.itc:
        raise ValueError(
            f"task.fuse_start={config.fuse_start} trains ITC alone first, but task.itc is 0: set task.fuse_start=0, or "
            "task.itc above 0"
        )


@dataclass(frozen=True)
class TrueTexts:
    """Marks which texts are known to be true of which images, beside their own (`task.ignore_true_texts`)."""

    texts: Bool[Tensor, "Q K"]
    """For each image, the texts that are true of it."""
    images: Bool[Tensor, "Q K"]
    """For each text, the images that it is true of."""

    @classmethod
    def of(cls, claims: Claims, candidates: Claims, positives: Bool[Tensor, "Q K"]) -> TrueTexts:
        """Compares what is claimed of Q pairs with what is claimed of K candidates."""
        texts = known_true(candidates.said, claims.known).T
        return cls(texts & ~positives, known_true(claims.said, candidates.known) & ~positives)


def ignored_both_ways(
    ignored: Bool[Tensor, "Q K"], true: TrueTexts | None
) -> tuple[Bool[Tensor, "Q K"], Bool[Tensor, "Q K"]]:
    """Returns the texts to ignore for each image, and the images to ignore for each text."""
    return (ignored, ignored) if true is None else (ignored | true.texts, ignored | true.images)


def compared_claims(batch: Batch, processes: Processes) -> tuple[Claims, Claims]:
    """Returns the claims of the pairs that this process compares, and those of the pairs of all processes.

    Raises ValueError for a batch without claims.
    """
    if batch.claims is None:
        raise ValueError("task.ignore_true_texts=true needs a batch with claims: load it with PairLoader(claims=True)")
    said, known = processes.compared(batch.claims.said), processes.compared(batch.claims.known)
    return Claims(said[0], known[0]), Claims(said[1], known[1])


def hard_negative_weights(
    similarities: Logits, positives: Bool[Tensor, "Q K"], ignored: Bool[Tensor, "Q K"], processes: Processes,
    config: PretrainConfig, released: Released, true: TrueTexts | None = None,
) -> NegativeWeights:  # fmt: skip
    """Computes the sampling weights of ITM's negatives: ITC's softmax over the batch, without what is no negative.

    Candidates are the pairs of all processes, or with `negatives="own"` those of this process; a queue's are not. Where
    every candidate of a pair is a true text, it is drawn from these, with equal chances. Raises ValueError where a pair
    has no negative.
    """
    batch = slice(processes.rows), slice(processes.total)
    images = texts = excluded = no_negatives(positives, ignored, processes, config)
    if true is not None:
        images, texts = (unless_all(excluded, each[batch]) for each in (true.images, true.texts))
    after_softmax = released.negatives_mask_after_softmax
    return both_negative_weights(similarities, images, texts, after_softmax, config.hard_negatives)


def no_negatives(
    positives: Bool[Tensor, "Q K"], ignored: Bool[Tensor, "Q K"], processes: Processes, config: PretrainConfig
) -> Bool[Tensor, "B G"]:
    """Marks which pairs of all processes are no negatives: positives, ignored ones, and others with negatives="own"."""
    batch = slice(processes.rows), slice(processes.total)
    own = positives[batch]
    excluded = own | ignored[batch]
    return excluded | ~own.any(dim=0) if config.negatives == "own" else excluded


def unless_all(excluded: Bool[Tensor, "B G"], true: Bool[Tensor, "B G"]) -> Bool[Tensor, "B G"]:
    """Excludes true texts too, but not in rows of which nothing would be left."""
    both = excluded | true
    return both & ~both.all(1, keepdim=True) | excluded


def draw_fused(
    config: PretrainConfig, processes: Processes, generator: torch.Generator, device: torch.device
) -> Int[Tensor, "F"] | None:
    """Draws which pairs of this process a step fuses: a share of the global batch, evenly spaced, from a random one on.

    None stands for all of them. A process of which no pair is drawn fuses its first one, so that all have gradients.
    """
    if config.fused_share == 1:
        return None
    offset = int(torch.randint(processes.total, (1,), generator=generator))
    places = torch.arange(processes.total + 1) + offset
    steps = (places * config.fused_share).floor()
    rows = (steps.diff()[processes.own] > 0).nonzero().squeeze(1)
    return (rows if len(rows) else torch.zeros(1, dtype=torch.long)).to(device)


def draw_hard_negatives(weights: NegativeWeights, draws: Draws) -> Negatives:
    """Draws an image for each fused text and a text for each fused image; recorded negatives go before drawn ones."""
    rows = draws.fused
    if draws.negative_image is not None and draws.negative_text is not None:
        return draws.negative_image[rows], draws.negative_text[rows]
    image, text = (draw_negatives(each[rows], draws.uniform[i, rows]) for i, each in enumerate(weights))
    return image, text


@overload
def fuse_pairs(
    model: Model, texts: Any, images: Any, size: int, rows: Int[Tensor, "F"], negatives: Negatives,
    masked: TokenPositions,
) -> tuple[Float[Tensor, "P 2"], Float[Tensor, "R V"]]: ...  # fmt: skip
@overload
def fuse_pairs(
    model: Model, texts: Any, images: Any, size: int, rows: Int[Tensor, "F"], negatives: Negatives | None,
    masked: TokenPositions | None,
) -> tuple[Float[Tensor, "P 2"] | None, Float[Tensor, "R V"] | None]: ...  # fmt: skip
def fuse_pairs(
    model: Model, texts: Any, images: Any, size: int, rows: Int[Tensor, "F"], negatives: Negatives | None,
    masked: TokenPositions | None,
) -> tuple[Float[Tensor, "P 2"] | None, Float[Tensor, "R V"] | None]:  # fmt: skip
    """Fuses 4F pairs in one call: positives, (text, hard image), (hard text, image), (masked text, image).

    If `negatives` hold an image for each phrase, too, (phrase, image) and (phrase, hard image) stand before the last.
    Returns the match logits of the first 3F pairs, or 5F, and the word logits at the masked tokens of the last F.
    `rows` are the fused pairs of the batch. The first `size` (B) texts and images are the batch's, the next F texts the
    masked ones, the next B the phrases. `negatives` of None leave out ITM with all its pairs, `masked` of None leaves
    out MLM with its F texts and pairs.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    if negatives is not None:
        hard_image, phrase_image = negatives[0].split([len(rows), len(negatives[0]) - len(rows)])
        pairs.append(matching_pairs(rows, hard_image, negatives[1]))
        if len(phrase_image):
            phrases = rows + size + (0 if masked is None else len(rows))
            pairs += [(phrases, rows), (phrases, phrase_image)]
    judged = sum(len(text) for text, _ in pairs)
    if masked is not None:
        pairs.append((torch.arange(len(rows), device=rows.device) + size, rows))
        masked = TokenPositions(masked.pair + judged, masked.position)
    text_index, image_index = (torch.cat(indices) for indices in zip(*pairs, strict=True))
    joint = model.fuse(texts, images, text_index, image_index, masked)
    match_logits = model.match_logits(joint)[:judged] if judged else None
    return match_logits, None if joint.hidden is None else model.word_logits(joint.hidden).float()


# --------------------------------------------------------------------------- measures, logged beside the losses


@torch.no_grad()
def true_texts_measure(true: TrueTexts | None) -> dict[str, Term]:
    """Measures the share of pairs among whose candidates a text or an image is ignored as true, if any are."""
    return {} if true is None else {"true_texts": Term.over((true.texts | true.images).any(1).float())}


@torch.no_grad()
def contrast_measures(
    logits: Logits, positives: Float[Tensor, "B K"], temperature: Float[Tensor, ""]
) -> dict[str, Term]:
    """Measures whether a contrast is healthy: the bound on mutual information in nats, similarities as cosines."""
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
    """Measures the mean cosine of pairs that do not belong together, without ignored candidates.

    Where it is as high as `positive_similarity`, all features are the same: the contrast has collapsed.
    """
    both = (logits.image_to_text + logits.text_to_image) / 2
    counted = others & (both > IGNORED_LOGIT / 2)
    return Term(both.where(counted, 0).sum() * temperature, counted.sum())


@torch.no_grad()
def repeated_pictures(repeated: Bool[Tensor, "B K"]) -> Term:
    """Measures the share of pairs that meet another caption of their own picture among the candidates.

    Such candidates would be false negatives if they were not ignored.
    """
    return Term.over(repeated.any(1).float())


@torch.no_grad()
def negative_similarity(
    logits: Logits, rows: Int[Tensor, "F"], negative_image: Int[Tensor, "F"], negative_text: Int[Tensor, "F"],
    temperature: Float[Tensor, ""],
) -> Term:  # fmt: skip
    """Measures how hard the negatives of some rows are, as a cosine to compare with `positive_similarity`."""
    both = logits.image_to_text[rows, negative_text] + logits.text_to_image[rows, negative_image]
    return Term.over(both / 2 * temperature)


@torch.no_grad()
def matching_measures(match_logits: Float[Tensor, "P 2"]) -> dict[str, Term]:
    """Measures how many pairs ITM classifies correctly."""
    correct = match_logits.argmax(1) == match_labels(len(match_logits) // 3, match_logits.device)
    return {"itm_accuracy": Term.over(correct.float())}


@torch.no_grad()
def word_measures(loss: Term, word_logits: Float[Tensor, "R V"], labels: Int[Tensor, "R"]) -> dict[str, Term]:
    """Measures MLM's accuracy, and its bound on mutual information in nats; `loss` is the one against the labels."""
    uncertainty = math.log(word_logits.shape[1])
    return {
        "mi_bound_words": Term(uncertainty * loss.count - loss.sum, loss.count),  # ALBEF Eq. 10
        "mlm_accuracy": Term.over((word_logits.argmax(1) == labels).float()),
    }
