"""Reasoning over two pictures (NLVR2), and text assignment, the pre-training before it (ALBEF §5).

B samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.losses.contrastive import similarity
from diptych.losses.distillation import alpha_at, class_loss
from diptych.losses.matching import draw_negatives, negative_weights
from diptych.nn.gather import Processes
from diptych.nn.heads import classifier
from diptych.schema import Nlvr2Config, Released, SpecialIds, TextAssignmentConfig
from diptych.seeds import seed_of
from diptych.task import Model, Task
from diptych.tasks.distilled import TaughtTask
from diptych.types import Batch, LabelledPicturePairs, Losses, PicturePairs, Progress, Term, Texts, expect

# --------------------------------------------------------------------------- is the statement true of both?

CLASSES = ("false", "true")
"""In the order of labels and logits, as published."""


class Nlvr2(TaughtTask):
    """Two classes from a statement fused with two pictures, learnt from labels and, unless `alpha` is 0, a teacher."""

    head: nn.Sequential
    teacher_head: nn.Sequential | None
    config: Nlvr2Config

    def __init__(
        self, model: Model, config: Nlvr2Config, special: SpecialIds | None = None, released: Released = Released()
    ) -> None:
        """Raises ValueError for a model that cannot fuse a text with two images."""
        width = model.joint_width(2)
        super().__init__(model, classifier(width, len(CLASSES), config.head, mlp_width=width), config, released)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without second pictures or labels."""
        pairs = expect(batch, LabelledPicturePairs, "two pictures and a label (false or true) for each statement")
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        logits = self.logits(pairs)
        loss = class_loss(logits, pairs.labels, self.teacher_logits(pairs) if alpha else None, alpha)
        measures = {"accuracy": _accuracy(logits, pairs.labels), "alpha": Term.over(logits.new_full((1,), alpha))}
        return Losses.weighted(measures=measures, nlvr2=(1.0, loss))

    def logits(self, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
        """Scores of the `CLASSES`."""
        return _logits(self.model, self.head, pairs)

    @torch.no_grad()
    def teacher_logits(self, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
        """The momentum copy's scores."""
        assert self.teacher is not None
        assert self.teacher_head is not None
        return _logits(self.teacher, self.teacher_head, pairs)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B 2"]:
        """Probabilities of the `CLASSES` for each statement. Raises ValueError for a batch without second pictures."""
        return self.logits(expect(batch, PicturePairs, "two pictures for each statement")).softmax(1)


def _logits(model: Model, head: nn.Module, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
    images, index = model.distinct_images(torch.cat([pairs.pixels, pairs.second_pixels]))
    return _score(model, head, images, pairs.texts, index.view(2, len(pairs)).T)


def _score(
    model: Model, head: nn.Module, images: Any, texts: Texts, image_index: Int[Tensor, "B 2"]
) -> Float[Tensor, "B C"]:
    """The head's logits of each text with its two images."""
    here = torch.arange(len(texts), device=image_index.device)
    joint = model.fuse(model.text_state(texts), images, here, image_index)
    logits: Tensor = head(joint.pooled)
    return logits.float()


def _accuracy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Term:
    return Term.over((logits.argmax(1) == labels).float())


# --------------------------------------------------------------------------- which of two pictures?

FIRST, SECOND, NEITHER = range(3)
"""Classes of text assignment: the picture that a text belongs to."""
PLACES = ("first", "second", "neither")
"""Their names."""


@dataclass(frozen=True)
class AssignmentDraws:
    """The random part of one forward, uniform in 0..1."""

    present: Float[Tensor, "B"]
    """Above 1/3: the text's own picture is one of the two, so that the classes are drawn equally often."""
    first: Float[Tensor, "B"]
    """Above 1/2: it comes first. Of no matter where it is not present."""
    others: Float[Tensor, "2 B"]
    """Which pictures stand beside it, or for it."""

    @classmethod
    def make(cls, size: int, generator: torch.Generator) -> AssignmentDraws:
        present, first, *others = torch.rand(4, size, generator=generator)
        return cls(present, first, torch.stack(others))

    @property
    def labels(self) -> Int[Tensor, "B"]:
        return torch.where(self.present > 1 / 3, torch.where(self.first > 0.5, FIRST, SECOND), NEITHER)


@dataclass(frozen=True)
class Assignment:
    """Two images for each text, counted within the batch, and which of them it belongs to."""

    images: Int[Tensor, "B 2"]
    labels: Int[Tensor, "B"]

    @classmethod
    def of(cls, labels: Int[Tensor, "B"], others: Int[Tensor, "2 B"]) -> Assignment:
        """Text b's own image b where the label says, `others` in the places left."""
        own = torch.arange(len(labels), device=labels.device)
        first = torch.where(labels == FIRST, own, others[0])
        second = torch.where(labels == SECOND, own, torch.where(labels == FIRST, others[0], others[1]))
        return cls(torch.stack([first, second], dim=1), labels)


class TextAssignment(Task):
    """Does a text belong to the first of two pictures, the second, or neither? Learnt from image-text pairs alone.

    The other pictures come from the batch, alike ones more often.
    """

    model: Model
    config: TextAssignmentConfig

    def __init__(
        self,
        model: Model,
        config: TextAssignmentConfig,
        special: SpecialIds | None = None,
        released: Released = Released(),
    ) -> None:
        """Raises ValueError for a model that cannot fuse a text with two images."""
        super().__init__()
        self.model, self.config, self.released = model, config, released
        self.head = nn.Linear(model.joint_width(2), 3)
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.train()

    @classmethod
    def trained(cls, config: TextAssignmentConfig) -> tuple[str, ...]:
        return "fuse", "pooled"

    def forward(self, batch: Batch, progress: Progress, assignment: Assignment | None = None) -> Losses:
        """A recorded `assignment` may stand in for the one to draw."""
        images = self.model.image_state(batch.pixels)
        made = assignment or self.draw(images, batch, progress)
        logits = _score(self.model, self.head, images, batch.texts, made.images)
        loss = class_loss(logits, made.labels)
        return Losses.weighted(measures={"accuracy": _accuracy(logits, made.labels)}, text_assignment=(1.0, loss))

    @torch.no_grad()
    def predict(self, batch: Batch, progress: Progress) -> tuple[Float[Tensor, "B 3"], Assignment]:
        """Probabilities of the `PLACES` of each text, and the pictures that it was asked of, drawn as in `forward`."""
        images = self.model.image_state(batch.pixels)
        made = self.draw(images, batch, progress)
        return _score(self.model, self.head, images, batch.texts, made.images).softmax(1), made

    def draw(self, images: Any, batch: Batch, progress: Progress) -> Assignment:
        """Pictures and classes as a pure function of (seed, step) and the model.

        Raises ValueError for a batch of fewer than three different pictures.
        """
        seed = seed_of(progress.seed, "text assignment", progress.step)
        processes = Processes.meet(len(batch))
        everyone = AssignmentDraws.make(processes.total, torch.Generator().manual_seed(seed))
        draws = AssignmentDraws(*(getattr(everyone, item.name)[..., processes.own] for item in fields(everyone)))
        device = batch.pixels.device
        return Assignment.of(draws.labels.to(device), self.others(images, batch.image_ids, draws.others.to(device)))

    @torch.no_grad()
    def others(self, images: Any, ids: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"]) -> Int[Tensor, "2 B"]:
        """Two different images for each text, neither its own, drawn by likeness to its own."""
        own = self.own(ids)
        if int((~own).sum(1).min()) < 2:
            raise ValueError(
                "a text lacks two other pictures: text assignment needs batches of at least three different pictures, "
                "so choose a larger run.batch_size, or data in which fewer captions belong to one picture"
            )
        likeness = self.likeness(images)
        one = draw_negatives(negative_weights(likeness, own), uniform[0])
        taken = own.scatter(1, one[:, None], True)
        return torch.stack([one, draw_negatives(negative_weights(likeness, taken), uniform[1])])

    def own(self, ids: Int[Tensor, "B"]) -> Bool[Tensor, "B B"]:
        """Which images are no others to a text: its own, and those of the same identity unless kept as released."""
        if self.released.keep_false_negatives:
            return torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        return ids[:, None] == ids[None]

    def likeness(self, images: Any) -> Float[Tensor, "B B"]:
        """Similarity of images with each other, divided by the temperature."""
        features = self.model.embed_image(images)["main"]
        return similarity(features, features, features.new_tensor(self.config.temperature))
