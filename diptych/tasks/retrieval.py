"""Fine-tuning for image-text retrieval (ALBEF §5): ITC and ITM, in which every caption of a picture is right.

As in pre-training but for the identities of pictures: equal ones are positives of each other, in batch and queue, and
never negatives. The weakly supervised grounding of §6.4 trains the same way.

B pairs, K contrastive candidates (batch, then queue), P fused pairs, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.losses.contrastive import Similarities, distilled_contrastive_loss, similarity
from diptych.losses.distillation import alpha_at
from diptych.losses.matching import draw_negatives, match_labels, matching_loss, matching_pairs, negative_weights
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.queue import FeatureQueue
from diptych.nn.taught import DistilledTask
from diptych.schema import RetrievalConfig, SpecialIds
from diptych.seeds import seed_of
from diptych.task import Model
from diptych.types import Batch, Losses, Progress, Term


@dataclass(frozen=True)
class Contrast(Similarities):
    """All that the contrast of one batch with batch and queue gives."""

    same: Bool[Tensor, "B K"]
    """Candidates of the same picture: the pair's own other half, and other captions."""
    keys: tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]
    """The teacher's image and text features of this batch, for the queue."""

    @property
    def positives(self) -> Float[Tensor, "B K"]:
        """All that is right in equal shares, which sum to 1."""
        return self.same / self.same.sum(1, keepdim=True)


@dataclass(frozen=True)
class Forward:
    """What one pass made, for the losses and for whoever wants to look inside."""

    contrast: Contrast
    negative_image: Int[Tensor, "B"]
    negative_text: Int[Tensor, "B"]
    match_logits: Float[Tensor, "P 2"]


class Retrieval(DistilledTask):
    """ITC + ITM with identities, learnt from labels and a momentum teacher."""

    model: Model
    teacher: Model
    config: RetrievalConfig

    def __init__(self, model: Model, config: RetrievalConfig, special: SpecialIds | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        # Its fusion layers are not asked here, but published checkpoints carry them.
        self.teacher = momentum_copy(model, without=model.unused("embed_image", "embed_text"))
        self.queue = FeatureQueue(config.queue_size, model.embed_dim)
        model.freeze(model.unused(*self.trained(config)))
        self.train()

    @classmethod
    def trained(cls, config: RetrievalConfig) -> tuple[str, ...]:
        return "embed_image", "embed_text", "temperature", "match_logits"

    def before_step(self) -> None:
        """The temperature is not clamped, unlike in pre-training."""
        move_towards(self.teacher, self.model, self.config.momentum)

    def after_step(self, carries: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        for carry in carries:
            self.queue.push(*carry)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        return self.losses(self.run(batch, self.draw(batch, progress)), batch, alpha)

    def draw(self, batch: Batch, progress: Progress) -> Float[Tensor, "2 B"]:
        """One uniform number for each negative image, then for each negative text: a function of (seed, step)."""
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "retrieval", progress.step, progress.micro))
        return torch.rand(2, len(batch), generator=generator).to(batch.pixels.device)

    def run(
        self,
        batch: Batch,
        uniform: Float[Tensor, "2 B"],
        negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None = None,
    ) -> Forward:
        """Every pass of a step: each image and each text once, then all fusions in one call.

        Recorded `negatives` (images, texts) stand in for drawn ones.

        Raises ValueError where all pairs are of one picture, so that ITM has no negative.
        """
        images, texts = self.model.image_state(batch.pixels), self.model.text_state(batch.texts)
        contrast = self._contrast(images, texts, batch)
        if negatives is None:
            for_texts, for_images = self.negative_weights(contrast)
            negatives = draw_negatives(for_texts, uniform[0]), draw_negatives(for_images, uniform[1])
        joint = self.model.fuse(texts, images, *matching_pairs(*negatives))
        return Forward(contrast, *negatives, self.model.match_logits(joint))

    def _contrast(self, images: object, texts: object, batch: Batch) -> Contrast:
        """Similarities of the batch's images and texts with the teacher's features of batch and queue (§3.2)."""
        temperature, ids = self.model.temperature(), batch.image_ids
        image, text = self.model.embed_image(images)["main"], self.model.embed_text(texts)["main"]
        with torch.no_grad():
            image_key = self.teacher.embed_image(self.teacher.image_state(batch.pixels))["main"]
            text_key = self.teacher.embed_text(self.teacher.text_state(batch.texts))["main"]
            image_keys, text_keys, key_ids = self.queue.behind(image_key, text_key, ids)
            teacher_i2t = similarity(image_key, text_keys, temperature)
            teacher_t2i = similarity(text_key, image_keys, temperature)
        i2t, t2i = similarity(image, text_keys, temperature), similarity(text, image_keys, temperature)
        same = ids[:, None] == key_ids[None]
        return Contrast(i2t, t2i, teacher_i2t, teacher_t2i, same, (image_key, text_key))

    @torch.no_grad()
    def negative_weights(self, contrast: Contrast) -> tuple[Float[Tensor, "B B"], Float[Tensor, "B B"]]:
        """Sampling weights of images for each text, and of texts for each image, within the batch (§3.2)."""
        size, mask = len(contrast.same), self.config.negatives_mask
        same = contrast.same[:, :size]
        return (
            negative_weights(contrast.text_to_image[:, :size], same, mask),
            negative_weights(contrast.image_to_text[:, :size], same, mask),
        )

    def losses(self, made: Forward, batch: Batch, alpha: float) -> Losses:
        """The terms of one pass; `alpha` is the teacher's share."""
        contrast = made.contrast
        labels = match_labels(len(batch), made.match_logits.device)
        itc = distilled_contrastive_loss(contrast, contrast.positives, alpha)
        itm = matching_loss(made.match_logits, labels)
        carry = (*contrast.keys, batch.image_ids)
        measures = self._measures(made, labels, alpha)
        return Losses.weighted(measures=measures, carry=carry, itc=(1.0, itc), itm=(1.0, itm))

    @torch.no_grad()
    def _measures(self, made: Forward, labels: Int[Tensor, "P"], alpha: float) -> dict[str, Term]:
        """Whether contrast and fusion are healthy. Similarities are cosines."""
        i2t, t2i, temperature = made.contrast.image_to_text, made.contrast.text_to_image, self.model.temperature()
        here = torch.arange(len(i2t), device=i2t.device)
        negative = (i2t[here, made.negative_text] + t2i[here, made.negative_image]) / 2
        return {
            "temperature": Term.over(temperature[None]),
            "alpha": Term.over(i2t.new_full((1,), alpha)),
            "positive_similarity": Term.over((i2t.diagonal() + t2i.diagonal()) / 2 * temperature),
            "negative_similarity": Term.over(negative * temperature),
            "itm_accuracy": Term.over((made.match_logits.argmax(1) == labels).float()),
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B"]:
        """Probability that each text describes its picture, by the fusion encoder."""
        images, texts = self.model.image_state(batch.pixels), self.model.text_state(batch.texts)
        here = torch.arange(len(batch), device=batch.pixels.device)
        return self.model.match_logits(self.model.fuse(texts, images, here, here)).softmax(1)[:, 1]
