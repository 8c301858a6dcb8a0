"""What came of records that are judged one by one: said of each, and measured of all. Higher is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.metrics.accuracy import ClassCounts, Estimate

MAIN = "accuracy"
"""The measure that decides which checkpoint is best."""


@dataclass(frozen=True)
class Decision:
    """What a model said of one record."""

    record: str
    said: Any
    """A class, an answer, a box: as a submission file or a person would have it."""
    probability: float | None
    """As the model gave it to what it said; a box has none."""
    right: Any
    """What should have been said: a class, people's answers, a box; None where nobody tells."""
    score: float | None
    """How right it was, in 0..1: 0 or 1, an answer's VQA accuracy, a box's overlap (IoU)."""
    pictures: tuple[str, ...] = ()
    """The records whose pictures were shown, where they are not the record's own."""
    shown: str = ""
    """What of the text was shown, where it was not all."""


@dataclass(frozen=True)
class TaskResult:
    """A split, judged. `scores["accuracy"]` is the task's official measure; without labels there are none."""

    scores: Mapping[str, Estimate]
    references: Mapping[str, Estimate] = field(default_factory=dict)
    """The same measure for whoever does not look: always the commonest answer, the largest box."""
    classes: Mapping[str, ClassCounts] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else was measured and is no percentage: a perplexity, an error."""

    def to_json(self) -> dict[str, Any]:
        """Flat names, as for retrieval: `accuracy`, `accuracy.interval`, `references.commonest` …"""
        labelled = sum(one.score is not None for one in self.decisions)
        found: dict[str, Any] = {"unit": "percent", "examples": len(self.decisions), "labelled": labelled}
        for prefix, scores in (("", self.scores), ("references.", self.references)):
            for name, score in scores.items():
                found[f"{prefix}{name}"] = round(score.value, 6)
                found[f"{prefix}{name}.interval"] = [round(end, 6) for end in score.interval]
        found |= {name: round(value, 6) for name, value in self.figures.items()}
        for name, counts in self.classes.items():
            found[f"classes.{name}"] = vars(counts)
        return found
