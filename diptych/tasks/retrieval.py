"""Fine-tuning for image-text retrieval: ITC and ITM, in which every caption of a picture is a positive (ALBEF §5).

Training differs from pre-training in that pictures have identities: pairs of one picture are positives of each other,
in the batch and in the queue, and never negatives. ITC compares with features of a momentum encoder, or with the
model's own features of the batch of all processes. ITM may be left out, and all fusion with it (VLMo §3.5). The weakly
supervised grounding of ALBEF §6.4 trains in the same way (tasks/grounding.py).

B pairs, K contrastive candidates (batch, then queue; or the pairs of all processes), P fused pairs, E embedding width,
G pairs of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.record import AnyRecord, Record
from diptych.facts import Ability
from diptych.losses.contrastive import (
    Logits,
    Similarities,
    contrastive_loss,
    distilled_contrastive_loss,
    in_batch_contrast,
    same_picture,
    similarity,
)
from diptych.losses.distillation import alpha_at
from diptych.losses.matching import both_negative_weights, draw_negatives, match_labels, matching_loss, matching_pairs
from diptych.nn.gather import Processes
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.queue import FeatureQueue
from diptych.schema import Released, RetrievalConfig, SpecialIds
from diptych.seeds import seed_of
from diptych.task import Model
from diptych.tasks.distilled import DistilledTask
from diptych.tasks.pretraining import matching_measures, negative_similarity, other_similarity
from diptych.types import Batch, Losses, Progress, Term

EMBED = Ability(
    "embed",
    about="vectors",
    example='model.embed_images("a.jpg") @ model.embed_texts(["a dog", "a boat"]).T   # similarities',
    calls=lambda recipe, model: ("embed_image", "embed_text"),
)
MATCH = Ability(
    "match",
    about="matching",
    example='model.match("a.jpg", ["a dog", "a boat"])             # probabilities',
    calls=lambda recipe, model: ("match_logits", "fuse", "pooled"),
)
Keys = tuple[Float[Tensor, "G E"], Float[Tensor, "G E"], Int[Tensor, "G"]]
"""The momentum encoder's image and text features of the pairs of all processes, and the identities of the pictures."""


@dataclass(frozen=True)
class Contrast:
    """The similarities of one batch with its contrastive candidates."""

    logits: Logits
    """Similarities divided by the temperature; `Similarities` hold those of the momentum encoder too."""
    same: Bool[Tensor, "B K"]
    """Marks the candidates of the same picture: the pair's own other half, and other captions."""
    own: slice
    """The columns of the batch's own pairs."""
    keys: Keys | None
    """The features that enter the queue after the step."""

    @property
    def positives(self) -> Float[Tensor, "B K"]:
        """The labels of ITC: equal shares, which sum to 1, of all candidates of the same picture."""
        return self.same / self.same.sum(1, keepdim=True)

    @property
    def within_batch(self) -> Logits:
        """The square part [B, B] of the logits, in which pair b's own other half stands at place b."""
        return Logits(self.logits.image_to_text[:, self.own], self.logits.text_to_image[:, self.own])


@dataclass(frozen=True)
class Forward:
    """The outputs of one forward pass, from which the losses follow. Without ITM there is only the contrast."""

    contrast: Contrast
    negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None = None
    """The hard negative image of each text, and the hard negative text of each image, as places in the batch."""
    match_logits: Float[Tensor, "P 2"] | None = None


class Retrieval(DistilledTask):
    """ITC + ITM with identities, learnt from labels and, if `config.keys` says so, from a momentum encoder."""

    record: ClassVar[type[AnyRecord]] = Record
    purpose = "image-text retrieval"
    hub_tag: ClassVar[str | None] = "zero-shot-image-classification"
    abilities: ClassVar[tuple[Ability, ...]] = (EMBED, MATCH)
    headed = False
    measured_as_retrieval = True

    model: Model
    momentum_encoder: Model | None
    config: RetrievalConfig

    def __init__(
        self, model: Model, config: RetrievalConfig, special: SpecialIds | None = None, released: Released = Released()
    ) -> None:
        """Raises ValueError for settings that contradict each other."""
        super().__init__()
        self.check(config)
        self.model, self.config, self.released = model, config, released
        self.momentum_encoder, self.queue = None, FeatureQueue(config.queue_size, model.embed_dim)
        if config.keys == "momentum":
            # Its fusion layers are not used here, but published checkpoints carry them.
            unused = model.parts_unused_by("embed_image", "embed_text", "fuse", "pooled")
            self.momentum_encoder = momentum_copy(model, without=unused)
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.train()

    @classmethod
    def trained(cls, config: RetrievalConfig) -> tuple[str, ...]:
        """Names the model's calls that the terms train; a term of weight 0 trains none."""
        contrasted = ("embed_image", "embed_text", "temperature") if config.itc else ()
        return contrasted + (("fuse", "pooled", "match_logits") if config.itm else ())

    @classmethod
    def check(cls, config: RetrievalConfig) -> None:
        """Raises ValueError for settings that contradict each other."""
        if not config.itc and not config.itm:
            raise ValueError("task.itc and task.itm are both 0: nothing is left to train")
        if config.keys == "batch" and (config.alpha or config.queue_size):
            raise ValueError(
                "task.keys=batch has neither momentum encoder nor queue: set task.alpha=0 and task.queue_size=0, "
                "or task.keys=momentum"
            )

    def before_step(self) -> None:
        """Updates the momentum encoder. The temperature is not clamped, unlike in pre-training."""
        if self.momentum_encoder is not None:
            move_towards(self.momentum_encoder, self.model, self.config.momentum)

    def after_step(self, carry: tuple[Tensor, Tensor, Tensor] | None) -> None:
        if carry is not None:
            self.queue.push(*carry)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        return self.losses(self.run(batch, self.draw(batch, progress)), batch, alpha)

    def draw(self, batch: Batch, progress: Progress) -> Float[Tensor, "2 B"]:
        """Draws a uniform number for each negative image and each negative text, as a function of (seed, step)."""
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "retrieval", progress.step))
        processes = Processes.meet(len(batch))
        return torch.rand(2, processes.total, generator=generator)[:, processes.own].to(batch.pixels.device)

    def run(
        self,
        batch: Batch,
        uniform: Float[Tensor, "2 B"],
        negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None = None,
    ) -> Forward:
        """Encodes each image and each text once, contrasts them, then fuses all pairs of ITM in one call.

        Recorded `negatives` (images, texts) replace the drawn ones, which come from this process's batch.

        Raises ValueError where all pairs are of one picture, so that ITM has no negative.
        """
        # Encode image and text.
        images = self.model.image_state(batch.pixels, rng_keys=batch.rng_keys)
        texts = self.model.text_state(batch.texts)
        # ITC. With weight 0 the similarities only choose the hard negatives and need no gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.itc > 0):
            contrast = self._contrast(images, texts, batch)
        if not self.config.itm:
            return Forward(contrast)
        # Hard negatives: the more similar a wrong image or text, the likelier it is drawn (ALBEF §3.2).
        if negatives is None:
            for_texts, for_images = self.negative_weights(contrast)
            negatives = draw_negatives(for_texts, uniform[0]), draw_negatives(for_images, uniform[1])
        # ITM: B positives, then B texts with a negative image, then B images with a negative text.
        everyone = torch.arange(len(batch), device=negatives[0].device)
        joint = self.model.fuse(texts, images, *matching_pairs(everyone, *negatives))
        return Forward(contrast, negatives, self.model.match_logits(joint))

    def _contrast(self, images: object, texts: object, batch: Batch) -> Contrast:
        """Compares the batch's images and texts with the candidates."""
        image, text = self.model.embed_image(images)["main"], self.model.embed_text(texts)["main"]
        processes = Processes.meet(len(batch))
        if self.momentum_encoder is not None:
            return self._taught_contrast(image, text, batch, self.momentum_encoder, processes)
        logits = in_batch_contrast(image, text, self.model.temperature(), processes)  # VLMo §3.5
        return Contrast(logits, same_picture(batch.image_ids, processes), processes.own, None)

    def _taught_contrast(
        self, image: Float[Tensor, "B E"], text: Float[Tensor, "B E"], batch: Batch, momentum_encoder: Model,
        processes: Processes,
    ) -> Contrast:  # fmt: skip
        """Compares with the momentum encoder's features of the batch of all processes and of the queue (ALBEF §3.2)."""
        temperature, ids = self.model.temperature(), batch.image_ids
        with torch.no_grad():
            image_key = momentum_encoder.embed_image(momentum_encoder.image_state(batch.pixels))["main"]
            text_key = momentum_encoder.embed_text(momentum_encoder.text_state(batch.texts))["main"]
            keys = processes.gather(image_key), processes.gather(text_key), processes.gather(ids)
            image_keys, text_keys, key_ids = self.queue.candidates(*keys)
            momentum_i2t = similarity(image_key, text_keys, temperature)
            momentum_t2i = similarity(text_key, image_keys, temperature)
        i2t, t2i = similarity(image, text_keys, temperature), similarity(text, image_keys, temperature)
        logits = Similarities(i2t, t2i, momentum_i2t, momentum_t2i)
        return Contrast(logits, ids[:, None] == key_ids[None], processes.own, keys)

    @torch.no_grad()
    def negative_weights(self, contrast: Contrast) -> tuple[Float[Tensor, "B B"], Float[Tensor, "B B"]]:
        """Computes the weights by which negative images and negative texts are drawn within the batch (ALBEF §3.2)."""
        same, after_softmax = contrast.same[:, contrast.own], self.released.negatives_mask_after_softmax
        return both_negative_weights(contrast.within_batch, same, same, after_softmax)

    def losses(self, outputs: Forward, batch: Batch, alpha: float) -> Losses:
        """Sums the terms of one forward pass; `alpha` is the weight of the pseudo-targets."""
        terms = {}
        if self.config.itc:
            terms["itc"] = (self.config.itc, _itc(outputs.contrast, alpha))
        if outputs.match_logits is not None:
            labels = match_labels(len(batch), outputs.match_logits.device)
            terms["itm"] = (self.config.itm, matching_loss(outputs.match_logits, labels))
        return Losses.weighted(measures=self._measures(outputs, alpha), carry=outputs.contrast.keys, **terms)

    @torch.no_grad()
    def _measures(self, outputs: Forward, alpha: float) -> dict[str, Term]:
        """Measures whether contrast and fusion are healthy. Similarities are cosines."""
        logits, temperature = outputs.contrast.within_batch, self.model.temperature()
        right = (logits.image_to_text.diagonal() + logits.text_to_image.diagonal()) / 2
        others = ~outputs.contrast.same[:, outputs.contrast.own]
        measures = {
            "temperature": Term.over(temperature[None]),
            "positive_similarity": Term.over(right * temperature),
            "other_similarity": other_similarity(logits, others, temperature),
        }
        if self.momentum_encoder is not None:
            measures["alpha"] = Term.over(right.new_full((1,), alpha))
        if outputs.negatives is not None and outputs.match_logits is not None:
            rows = torch.arange(len(outputs.negatives[0]), device=temperature.device)
            measures["negative_similarity"] = negative_similarity(logits, rows, *outputs.negatives, temperature)
            measures |= matching_measures(outputs.match_logits)
        return measures

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B"]:
        """Computes the probability that each text describes its picture, by the fusion encoder."""
        images, image_index = self.model.distinct_images(batch.pixels)
        text_index = torch.arange(len(batch), device=batch.pixels.device)
        joint = self.model.fuse(self.model.text_state(batch.texts), images, text_index, image_index)
        return self.model.match_logits(joint).softmax(1)[:, 1]


def _itc(contrast: Contrast, alpha: float) -> Term:
    if isinstance(contrast.logits, Similarities):
        return distilled_contrastive_loss(contrast.logits, contrast.positives, alpha)
    targets = contrast.positives
    return contrastive_loss(contrast.logits.image_to_text, contrast.logits.text_to_image, targets, targets)
