"""Reasoning over two pictures (NLVR2), and text assignment, the pre-training before it (ALBEF §5).

B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.data.loader import EvaluationBatch
from diptych.data.record import PairStatement, Record
from diptych.data.submissions import write_nlvr2
from diptych.data.tokenizer import Tokenizer
from diptych.facts import Ability, Argument, Choice, Submission, TaskReport
from diptych.losses.contrastive import similarity
from diptych.losses.distillation import alpha_at, class_loss
from diptych.losses.matching import draw_negatives, negative_weights
from diptych.metrics.nlvr2 import nlvr2_accuracy
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, class_decisions, class_evaluation
from diptych.nn.gather import Processes
from diptych.nn.heads import classifier
from diptych.schema import Nlvr2Config, Released, SpecialIds, TextAssignmentConfig
from diptych.seeds import seed_of
from diptych.task import Model, Task
from diptych.tasks.distilled import DistilledHeadTask
from diptych.types import Batch, LabelledPicturePairs, Losses, PicturePairs, Progress, Term, Texts, expect

# --------------------------------------------------------------------------- NLVR2: is a statement true of two images?

CLASSES = ("false", "true")
"""The classes in the order of labels and logits, as published."""


class Nlvr2(DistilledHeadTask):
    """A classifier of two classes on a statement fused with two images, learnt from labels and, unless `alpha` is 0,
    distilled."""

    record = PairStatement
    purpose = "statements about two pictures (NLVR2)"
    abilities = (
        Ability(
            "compare",
            about="statements about two pictures",
            example='model.compare("a.jpg", "b.jpg", "both show a dog")    # true, false',
            description="Says whether statements about a left and a right picture are true.",
            pictures=(Argument("image_a", "left"), Argument("image_b", "right")),
            text=Argument("statement", "statements", "Statements about the two pictures."),
            record=lambda text: PairStatement(repr(text), (None, None), text, False, ("", ""), text),
        ),
    )
    submission = Submission("NLVR2", write_nlvr2, str.capitalize)
    report = TaskReport(
        title="Visual reasoning (NLVR2)",
        measure="Accuracy",
        how="Is the statement true of the two pictures? Consistency is the share of statements that are predicted "
        "rightly for all their pairs of pictures.",
        judged="statements about two pictures",
        measures={"consistency": "Consistency"},
    )

    head: nn.Sequential
    momentum_head: nn.Sequential | None
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
        # Cross-entropy with the labels and, with weight alpha, with the momentum copy's distribution.
        loss = class_loss(logits, pairs.labels, self.momentum_logits(pairs) if alpha else None, alpha)  # ALBEF §5
        measures = {"accuracy": _accuracy(logits, pairs.labels), "alpha": Term.over(logits.new_full((1,), alpha))}
        return Losses.weighted(measures=measures, nlvr2=(1.0, loss))

    def logits(self, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
        """Computes a score for each of the `CLASSES`."""
        return _logits(self.model, self.head, pairs)

    @torch.no_grad()
    def momentum_logits(self, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
        """Computes the momentum copy's scores."""
        assert self.momentum_encoder is not None
        assert self.momentum_head is not None
        return _logits(self.momentum_encoder, self.momentum_head, pairs)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B 2"]:
        """Computes the probabilities of the `CLASSES`. Raises ValueError for a batch without second pictures."""
        return self.logits(expect(batch, PicturePairs, "two pictures for each statement")).softmax(1)

    @classmethod
    def classes(cls, config: Nlvr2Config) -> tuple[tuple[str, ...], str]:
        return CLASSES, "softmax"

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures accuracy and consistency. The pairs of pictures of one statement are resampled together."""
        decisions: list[Decision] = []
        statements: list[str] = []
        for chunk in batches:
            labels = [CLASSES[int(record.label)] for record in chunk.records]
            decisions += class_decisions(chunk.records, self.predict(chunk.batch), CLASSES, labels)
            statements += [record.group for record in chunk.records]
        evaluation = class_evaluation(decisions, CLASSES, statements, resamples)
        hits = torch.tensor([bool(decision.score) for decision in decisions])
        both = nlvr2_accuracy(hits, statements, resamples)
        return replace(evaluation, scores={MAIN: both.accuracy, "consistency": both.consistency})

    def responder(self, tokenizer: Tokenizer, **options: Any) -> Callable[[Batch], list[Choice]]:
        return lambda batch: [Choice.of(CLASSES, probabilities) for probabilities in self.predict(batch).tolist()]


def _logits(model: Model, head: nn.Module, pairs: PicturePairs) -> Float[Tensor, "B 2"]:
    # The left images, then the right ones; index[b] are the places of both images of statement b.
    images, index = model.distinct_images(torch.cat([pairs.pixels, pairs.second_pixels]))
    return _score(model, head, images, pairs.texts, index.view(2, len(pairs)).T)


def _score(
    model: Model, head: nn.Module, images: Any, texts: Texts, image_index: Int[Tensor, "B 2"]
) -> Float[Tensor, "B C"]:
    """Computes the head's logits of each text with its two images."""
    here = torch.arange(len(texts), device=image_index.device)
    # One vector for each text with both its images [B, joint_width(2)].
    joint = model.fuse(model.text_state(texts), images, here, image_index)
    logits: Tensor = head(joint.pooled)
    return logits.float()


def _accuracy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Term:
    return Term.over((logits.argmax(1) == labels).float())


# ------------------------------------------------------------------ text assignment: to which of two images?

FIRST, SECOND, NEITHER = range(3)
"""The classes of text assignment: the image to which a text belongs."""
PLACES = ("first", "second", "neither")
"""The names of these classes."""


@dataclass(frozen=True)
class AssignmentDraws:
    """The random numbers of one forward pass, uniform in 0..1."""

    present: Float[Tensor, "B"]
    """Above 1/3, the text's own image is one of the two, so that the three classes are drawn equally often."""
    first: Float[Tensor, "B"]
    """Above 1/2, it comes first. Ignored where it is not present."""
    others: Float[Tensor, "2 B"]
    """Decide which images of the batch stand beside it, or in its place."""

    @classmethod
    def make(cls, size: int, generator: torch.Generator) -> AssignmentDraws:
        present, first, *others = torch.rand(4, size, generator=generator)
        return cls(present, first, torch.stack(others))

    @property
    def labels(self) -> Int[Tensor, "B"]:
        return torch.where(self.present > 1 / 3, torch.where(self.first > 0.5, FIRST, SECOND), NEITHER)


@dataclass(frozen=True)
class Assignment:
    """Two images for each text, as places in the batch, and the class: to which of them it belongs."""

    images: Int[Tensor, "B 2"]
    labels: Int[Tensor, "B"]

    @classmethod
    def of(cls, labels: Int[Tensor, "B"], others: Int[Tensor, "2 B"]) -> Assignment:
        """Puts text b's own image b where the label says, and `others` into the remaining places."""
        own = torch.arange(len(labels), device=labels.device)
        first = torch.where(labels == FIRST, own, others[0])
        second = torch.where(labels == SECOND, own, torch.where(labels == FIRST, others[0], others[1]))
        return cls(torch.stack([first, second], dim=1), labels)


class TextAssignment(Task):
    """Does a text belong to the first of two images, to the second, or to neither? Learnt from image-text pairs alone.

    The other images come from the batch; similar ones are drawn more often.
    """

    record = Record
    headed = False  # only NLVR2 is used, and its head has other classes
    report = TaskReport(
        title="Text assignment",
        measure="Accuracy",
        how="Does the text belong to the first picture, the second, or neither? The other pictures are drawn from its "
        "batch, alike ones more often.",
        judged="captions assigned to two pictures",
    )

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
        """Computes the loss. A recorded `assignment` replaces the drawn one."""
        images = self.model.image_state(batch.pixels)
        assignment = assignment or self.draw(images, batch, progress)
        logits = _score(self.model, self.head, images, batch.texts, assignment.images)
        loss, accuracy = class_loss(logits, assignment.labels), _accuracy(logits, assignment.labels)  # ALBEF §5
        return Losses.weighted(measures={"accuracy": accuracy}, text_assignment=(1.0, loss))

    @torch.no_grad()
    def predict(self, batch: Batch, progress: Progress) -> tuple[Float[Tensor, "B 3"], Assignment]:
        """Computes the probabilities of the `PLACES` for each text, with two images drawn as in `forward`."""
        images = self.model.image_state(batch.pixels)
        assignment = self.draw(images, batch, progress)
        return _score(self.model, self.head, images, batch.texts, assignment.images).softmax(1), assignment

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures accuracy. The other images are drawn from each batch, as in training.

        So the measure depends on the size of the batches, and a batch of fewer than three images (the last one, say)
        is left out. Raises ValueError if all are.
        """
        decisions: list[Decision] = []
        for number, chunk in enumerate(batches):
            if len(set(chunk.batch.image_ids.tolist())) < 3:
                continue
            probability, assignment = self.predict(chunk.batch, Progress(number, 0.0))
            labels = [PLACES[label] for label in assignment.labels.tolist()]
            decisions += [
                replace(decision, pictures=tuple(chunk.records[place].id for place in places))
                for decision, places in zip(
                    class_decisions(chunk.records, probability, PLACES, labels), assignment.images.tolist(), strict=True
                )
            ]
        if not decisions:
            raise ValueError(
                "text assignment draws a text's other pictures from its batch, and no batch had three:"
                " raise evaluation.batch_size, or give more records"
            )
        return class_evaluation(decisions, PLACES, None, resamples)

    def draw(self, images: Any, batch: Batch, progress: Progress) -> Assignment:
        """Draws images and classes as a pure function of (seed, step) and the model.

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
        """Draws two different images for each text, neither its own, by their similarity to its own."""
        own = self.own(ids)
        if int((~own).sum(1).min()) < 2:
            raise ValueError(
                "a text lacks two other pictures: text assignment needs batches of at least three different pictures, "
                "so choose a larger run.batch_size, or data in which fewer captions belong to one picture"
            )
        likeness = self.likeness(images)
        first = draw_negatives(negative_weights(likeness, own), uniform[0])
        taken = own.scatter(1, first[:, None], True)
        return torch.stack([first, draw_negatives(negative_weights(likeness, taken), uniform[1])])

    def own(self, ids: Int[Tensor, "B"]) -> Bool[Tensor, "B B"]:
        """Marks each text's own image and, unless they are kept as released, all images of the same identity."""
        if self.released.keep_false_negatives:
            return torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        return ids[:, None] == ids[None]

    def likeness(self, images: Any) -> Float[Tensor, "B B"]:
        """Computes the similarities of the images with each other, divided by the temperature."""
        features = self.model.embed_image(images)["main"]
        return similarity(features, features, features.new_tensor(self.config.temperature))
