"""Visual entailment (ALBEF §5; SNLI-VE): does a picture contradict a hypothesis, leave it open, or entail it?

B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.data.loader import EvaluationBatch
from diptych.data.record import Entailment as Hypothesis
from diptych.data.submissions import write_snli_ve
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, Argument, Choice, Submission, TaskReport
from diptych.losses.distillation import alpha_at, class_loss
from diptych.metrics.task_evaluation import Decision, TaskEvaluation, class_decisions, class_evaluation
from diptych.nn.heads import classifier
from diptych.schema import EntailmentConfig, Released, SpecialIds
from diptych.task import Model
from diptych.tasks.distilled import DistilledHeadTask
from diptych.types import Batch, LabelledBatch, Losses, Progress, Term, expect

CLASSES = ("contradiction", "neutral", "entailment")
"""The classes in the order of labels and logits, as published."""


class Entailment(DistilledHeadTask):
    """A classifier of three classes on the fused vector, learnt from labels and, unless `alpha` is 0, distilled."""

    record = Hypothesis
    purpose = "visual entailment"
    abilities = (
        Ability(
            "entail",
            about="hypotheses",
            example='model.entail("a.jpg", "somebody is outdoors")         # contradiction, neutral, entailment',
            description="Says whether a picture makes statements true (entailment), false (contradiction) or neither "
            "(neutral).",
            text=Argument("hypothesis", "hypotheses", "Statements about the picture."),
            record=lambda text: Hypothesis(repr(text), None, text, "", ""),
        ),
    )
    submission = Submission("SNLI-VE", write_snli_ve, server=False)
    report = TaskReport(
        title="Visual entailment",
        measure="Accuracy",
        how="Does the picture entail the sentence, contradict it, or leave it open?",
        judged="entailment",
    )

    head: nn.Sequential
    momentum_head: nn.Sequential | None
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
        # Cross-entropy with the labels and, with weight alpha, with the momentum copy's distribution.
        loss = class_loss(logits, labels, self.momentum_logits(batch) if alpha else None, alpha)  # ALBEF §5
        measures = {
            "accuracy": Term.over((logits.argmax(1) == labels).float()),
            "alpha": Term.over(logits.new_full((1,), alpha)),
        }
        return Losses.weighted(measures=measures, entailment=(1.0, loss))

    def logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Computes a score for each of the `CLASSES`."""
        return _logits(self.model, self.head, batch)

    @torch.no_grad()
    def momentum_logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Computes the momentum copy's scores."""
        assert self.momentum_encoder is not None
        assert self.momentum_head is not None
        return _logits(self.momentum_encoder, self.momentum_head, batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Computes the probabilities of the `CLASSES` for each pair."""
        return self.logits(batch).softmax(1)

    @classmethod
    def classes(cls, config: EntailmentConfig) -> tuple[tuple[str, ...], str]:
        return CLASSES, "softmax"

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures accuracy. The hypotheses about one picture are resampled together."""
        decisions: list[Decision] = []
        pictures: list[str] = []
        for chunk in batches:
            labels = [record.label for record in chunk.records]
            decisions += class_decisions(chunk.records, self.predict(chunk.batch), CLASSES, labels)
            pictures += [record.image_id for record in chunk.records]
        return class_evaluation(decisions, CLASSES, pictures, resamples)

    def responder(self, tokenizer: Tokenizer, **options: Any) -> Callable[[Batch], list[Choice]]:
        return lambda batch: [Choice.of(CLASSES, probabilities) for probabilities in self.predict(batch).tolist()]


def _logits(model: Model, head: nn.Sequential, batch: Batch) -> Float[Tensor, "B 3"]:
    # Each image is encoded once, also where several hypotheses are about it.
    images, image_index = model.distinct_images(batch.pixels, batch.repeats)
    text_index = torch.arange(len(batch), device=batch.pixels.device)
    # The head reads the fused vector [B, D]: the [CLS] token of each pair.
    logits: Tensor = head(model.fuse(model.text_state(batch.texts), images, text_index, image_index).pooled)
    return logits.float()
