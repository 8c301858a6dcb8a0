"""Trains single phrases beside whole captions (`task.phrases`, `task.match_phrases`), which neither paper does
(docs/decisions.md 139, 141).

B pairs of this process, F of them that are fused, G pairs of all processes, Q pairs that a contrast is computed for,
E width of the shared embedding space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.losses.contrastive import Logits, contrastive_loss, in_batch_contrast, others_of_same_image, own_pairs
from diptych.losses.matching import draw_negatives, matching_loss, negative_weights
from diptych.nn.counter_rng import derived
from diptych.nn.gather import Processes
from diptych.schema import PretrainConfig
from diptych.seeds import seed_of
from diptych.tasks.pretraining import (
    Negatives,
    TrueTexts,
    ignored_both_ways,
    no_negatives,
    unless_all,
)
from diptych.types import Batch, Claims, Progress, Term, Texts

PHRASE = 2
"""The number that sets the dropout draws of a phrase apart from those of its text."""
TEMPERATURE = 0.07
"""A phrase is true of many images, for which the learnt temperature of whole captions is too low."""


def add_phrases(texts: Texts, batch: Batch) -> Texts:
    """Returns texts and, behind them, one phrase of each of the batch's B captions (`task.phrases`).

    Raises ValueError for a batch without phrases.
    """
    if batch.phrases is None or batch.claims is None:
        raise ValueError("task.phrases needs a batch with phrases: load it with PairLoader(claims=True, phrases=True)")
    keys = batch.texts.rng_keys
    phrases = replace(batch.phrases.texts, rng_keys=None if keys is None else derived(keys, PHRASE))
    return Texts.cat([texts, phrases])


@dataclass(frozen=True)
class PhraseContrast:
    """Contrasts images with one phrase of each caption, in both directions as ITC (`task.phrases`).

    A phrase is true of many images: those of which it is known to be true are neither positive nor negative.
    """

    logits: Logits
    """s / τ [Q, G]."""
    positives: Bool[Tensor, "Q G"]
    same_image: Bool[Tensor, "Q G"]
    true_images: Bool[Tensor, "Q G"]
    """For each phrase, the other images that it is known to be true of."""

    @classmethod
    def of(
        cls, image: Float[Tensor, "B E"], phrase: Float[Tensor, "B E"], batch: Batch, processes: Processes
    ) -> PhraseContrast:
        """Compares the features of images and of phrases."""
        assert batch.phrases is not None
        assert batch.claims is not None
        said, known = processes.compared(batch.phrases.said), processes.compared(batch.claims.known)
        positives = own_pairs(processes, image.device)  # [Q, G]
        same_image = others_of_same_image(*processes.compared(batch.image_ids), positives)
        true = TrueTexts.of(Claims(said[0], known[0]), Claims(said[1], known[1]), positives)
        temperature = image.new_tensor(TEMPERATURE)
        logits = in_batch_contrast(image, phrase, temperature, processes, ignored_both_ways(same_image, true))
        return cls(logits, positives, same_image, true.images)

    @property
    def loss(self) -> Term:
        """The contrastive loss, both ways."""
        targets = self.positives.float()
        return contrastive_loss(self.logits.image_to_text, self.logits.text_to_image, targets, targets)

    def extended(
        self, negatives: Negatives, rows: Int[Tensor, "F"], config: PretrainConfig, progress: Progress,
        processes: Processes,
    ) -> Negatives:  # fmt: skip
        """Returns the negatives with a hard image for each fused phrase behind those of the texts, 2F in all."""
        return torch.cat([negatives[0], self.draw_images(rows, config, progress, processes)]), negatives[1]

    @torch.no_grad()
    def draw_images(
        self, rows: Int[Tensor, "F"], config: PretrainConfig, progress: Progress, processes: Processes
    ) -> Int[Tensor, "F"]:
        """Draws a hard image for the phrase of each fused pair, as those of captions, as a function of (seed, step)."""
        batch = slice(processes.rows), slice(processes.total)
        excluded = no_negatives(self.positives, self.same_image, processes, config)
        excluded = unless_all(excluded, self.true_images[batch])
        scale = 1.0 if config.hard_negatives else 0.0
        weights = negative_weights(self.logits.text_to_image[batch] * scale, excluded)  # [B, G]
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "phrases", progress.step))
        uniform = torch.rand(processes.total, generator=generator)[processes.own].to(rows.device)
        return draw_negatives(weights[rows], uniform[rows])


def phrase_matching_loss(logits: Float[Tensor, "P 2"]) -> Term:
    """Computes ITM of phrases with their own images, then of the same phrases with hard ones."""
    labels = torch.arange(len(logits), device=logits.device) < len(logits) // 2
    return matching_loss(logits, labels.long())
