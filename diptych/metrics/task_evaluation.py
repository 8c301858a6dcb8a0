"""The result of an evaluation record by record, and the computations that several tasks share. Higher is better.

B records of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.data.record import AnyRecord, Question, Referring
from diptych.metrics.accuracy import ClassCounts, Estimate, accuracy, estimate

MAIN = "accuracy"
"""The measure that decides which checkpoint is best."""


@dataclass(frozen=True)
class Decision:
    """A model's prediction for one record."""

    record: str
    said: Any
    """The predicted class, answer or box, spelled for people and for submission files."""
    probability: float | None
    """The probability that the model gave to its prediction; a box has none."""
    right: Any
    """The true class, people's answers or the true box; None for a record without a label."""
    score: float | None
    """How right the prediction is, in 0..1: 0 or 1, an answer's VQA accuracy, a box's overlap (IoU)."""
    pictures: tuple[str, ...] = ()
    """The records whose pictures the model saw, if they are not the record's own."""
    shown: str = ""
    """The part of the text that the model saw, if it was not all of it."""


@dataclass(frozen=True)
class TaskEvaluation:
    """The evaluation of a split. `scores["accuracy"]` is the task's official measure; without labels there is none."""

    scores: Mapping[str, Estimate]
    references: Mapping[str, Estimate] = field(default_factory=dict)
    """The official measure of guessers that never look: always the commonest answer, the largest box."""
    classes: Mapping[str, ClassCounts] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    """Measures that are no percentages: a perplexity, an error."""

    def to_json(self) -> dict[str, Any]:
        """Flattens the names as retrieval does: `accuracy`, `accuracy.interval`, `references.commonest` …"""
        labelled = sum(decision.score is not None for decision in self.decisions)
        entries: dict[str, Any] = {"unit": "percent", "examples": len(self.decisions), "labelled": labelled}
        for prefix, scores in (("", self.scores), ("references.", self.references)):
            for name, score in scores.items():
                entries[f"{prefix}{name}"] = round(score.value, 6)
                entries[f"{prefix}{name}.interval"] = [round(end, 6) for end in score.interval]
        entries |= {name: round(value, 6) for name, value in self.figures.items()}
        for name, counts in self.classes.items():
            entries[f"classes.{name}"] = vars(counts)
        return entries


# --------------------------------------------------------------------------- what several tasks compute


def has_label(record: AnyRecord) -> bool:
    """Tells whether the record holds the right answer."""
    if isinstance(record, Question):
        return bool(record.targets)
    return not isinstance(record, Referring) or record.box is not None


def check_finite(values: Float[Tensor, "B *_"], records: Sequence[AnyRecord]) -> Float[Tensor, "B *_"]:
    """Returns the model's values for each record. Raises ValueError if one is not finite: NaN has no largest value."""
    broken = (~values.isfinite()).flatten(1).any(1).nonzero()
    if len(broken):
        raise ValueError(
            f"{records[int(broken[0])].id}: what the model says of it is not finite: its weights are broken"
        )
    return values


def class_decisions(
    records: Sequence[AnyRecord], probability: Float[Tensor, "B C"], names: Sequence[str], labels: Sequence[str]
) -> list[Decision]:
    """Takes the likeliest class of each record. `names` are those of the classes, `labels` the right ones."""
    best = check_finite(probability, records).max(dim=1)
    predictions = zip(records, best.indices.tolist(), best.values.tolist(), labels, strict=True)
    return [
        Decision(record.id, names[place], share, label, float(names[place] == label))
        for record, place, share, label in predictions
    ]


def class_evaluation(
    decisions: Sequence[Decision], names: Sequence[str], groups: Sequence[str] | None, resamples: int
) -> TaskEvaluation:
    """Measures the accuracy of class decisions. Intervals resample `groups`, which are right or wrong together."""
    predicted, right = (
        torch.tensor([names.index(name) for name in classes], dtype=torch.long)
        for classes in ([decision.said for decision in decisions], [decision.right for decision in decisions])
    )
    measured = accuracy(predicted, right, names, groups, resamples)
    commonest = right.bincount().argmax()
    always = estimate((right == commonest).double().numpy(), groups, resamples)
    return TaskEvaluation({MAIN: measured.overall}, {"commonest": always}, measured.classes, tuple(decisions))
