"""Visual entailment (ALBEF §5; SNLI-VE): does a picture contradict a hypothesis, leave it open, or entail it?

B pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.losses.distillation import alpha_at, class_loss
from diptych.nn.heads import classifier
from diptych.schema import EntailmentConfig, Released, SpecialIds
from diptych.task import Model
from diptych.tasks.distilled import TaughtTask
from diptych.types import Batch, LabelledBatch, Losses, Progress, Term, expect

CLASSES = ("contradiction", "neutral", "entailment")
"""In the order of labels and logits, as published."""


class Entailment(TaughtTask):
    """Three classes from the fused vector, learnt from labels and, unless `alpha` is 0, from a momentum teacher."""

    head: nn.Sequential
    teacher_head: nn.Sequential | None
    config: EntailmentConfig

    def __init__(
        self, model: Model, config: EntailmentConfig, special: SpecialIds | None = None, released: Released = Released()
    ) -> None:
        super().__init__(model, classifier(model.joint_width(), len(CLASSES), config.head), config, released)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Raises ValueError for a batch without labels."""
        labels = expect(batch, LabelledBatch, "a label (contradiction, neutral or entailment) for each pair").labels
        alpha = alpha_at(progress.epoch, self.config.alpha, self.config.alpha_ramp)
        logits = self.logits(batch)
        loss = class_loss(logits, labels, self.teacher_logits(batch) if alpha else None, alpha)
        measures = {
            "accuracy": Term.over((logits.argmax(1) == labels).float()),
            "alpha": Term.over(logits.new_full((1,), alpha)),
        }
        return Losses.weighted(measures=measures, entailment=(1.0, loss))

    def logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Scores of the `CLASSES`."""
        return _logits(self.model, self.head, batch)

    @torch.no_grad()
    def teacher_logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """The momentum copy's scores."""
        assert self.teacher is not None
        assert self.teacher_head is not None
        return _logits(self.teacher, self.teacher_head, batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Probabilities of the `CLASSES` for each pair."""
        return self.logits(batch).softmax(1)


def _logits(model: Model, head: nn.Sequential, batch: Batch) -> Float[Tensor, "B 3"]:
    images, image_index = model.distinct_images(batch.pixels)
    text_index = torch.arange(len(batch), device=batch.pixels.device)
    logits: Tensor = head(model.fuse(model.text_state(batch.texts), images, text_index, image_index).pooled)
    return logits.float()
