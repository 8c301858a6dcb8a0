"""The content of a report as data classes, which the templates lay out.

Pictures are Pillow images, probabilities and shares lie in 0..1, recalls are in percent, as in eval.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from diptych.metrics.accuracy import Estimate

RIGHT = 0.5
"""Score from which on a prediction counts as right: a box that overlaps by half, an answer of two people in ten."""


@dataclass(frozen=True)
class Series:
    """One curve: a value at each step, steps ascending."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """Curves that share an axis."""

    title: str
    unit: str
    series: tuple[Series, ...]
    note: str = ""
    """What to look for in the curves."""
    references: tuple[tuple[str, float], ...] = ()
    """Named values to compare with, drawn as horizontal lines."""


@dataclass(frozen=True)
class QueryResult:
    """A picture in the ranking of a query."""

    picture: Image
    right: bool
    similarity: float
    match: float | None
    """Logit of image-text matching; None where nothing was re-ranked."""


@dataclass(frozen=True)
class QueryExample:
    """A caption and the best pictures of its ranking, in order."""

    text: str
    results: tuple[QueryResult, ...]
    rank: int
    """Rank of the right picture, from 0."""
    contrastive_rank: int
    right_picture: Image
    candidates: int
    """Number of pictures that were ranked."""


@dataclass(frozen=True)
class NegativeExample:
    """A training pair and the hard negatives that were drawn for it."""

    picture: Image
    caption: str
    negative_caption: str
    caption_probability: float
    """Probability with which this caption was drawn for the picture."""
    negative_picture: Image
    picture_probability: float
    """Probability with which this picture was drawn for the caption."""
    batch: int
    """Pairs in the batch that both were drawn from."""


@dataclass(frozen=True)
class WordGuess:
    """A masked word, and the pseudo-target of the momentum encoder in its place."""

    before: str
    label: str
    after: str
    guesses: tuple[tuple[str, float], ...]
    """Words with their probability, the likeliest first."""


@dataclass(frozen=True)
class TextGuess:
    """A caption and the probability that the momentum encoder gives it for a picture."""

    text: str
    probability: float
    label: bool
    """Whether it is the picture's own caption."""


@dataclass(frozen=True)
class PseudoTargetExample:
    """The pseudo-targets of the momentum encoder for one training pair."""

    picture: Image
    caption: str
    clean: str | None
    """The caption without the noise put into it, where that is known and differs."""
    words: tuple[WordGuess, ...]
    texts: tuple[TextGuess, ...]


@dataclass(frozen=True)
class Examples:
    """Single cases to look at. The page leaves empty parts out."""

    queries: tuple[QueryExample, ...] = ()
    negatives: tuple[NegativeExample, ...] = ()
    pseudo_targets: tuple[PseudoTargetExample, ...] = ()


@dataclass(frozen=True)
class EvaluatedExample:
    """A record of an evaluation split with the model's prediction and the label, all in words."""

    pictures: tuple[tuple[str, Image], ...]
    """Each picture under its name, such as `left`."""
    text: str
    said: str
    """The prediction; empty where it is drawn on a picture."""
    probability: float | None
    right: str
    """The label; empty where there is none."""
    score: float | None
    """Score of the prediction in 0..1; None without a label."""

    @property
    def kind(self) -> str | None:
        """Names the style of a right or a wrong prediction; None without a label."""
        if self.score is None:
            return None
        return "is-label" if self.score >= RIGHT else "is-wrong"

    @property
    def verdict(self) -> str:
        """Says in a word whether the prediction is right, so that no colour is needed, with a score between 0 and 1."""
        if self.score is None:
            return "no label"
        word = "✓ right" if self.score >= RIGHT else "✗ wrong"
        return word if self.score in (0.0, 1.0) else f"{word}, score {self.score:.2f}"


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one kind, such as the wrong ones, evenly spaced among all of that kind."""

    title: str
    examples: tuple[EvaluatedExample, ...]
    total: int


@dataclass(frozen=True)
class Confusion:
    """How often each class was predicted for records of each class."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row for each right class, a column for each predicted one."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer in words, with the number of questions that got it."""

    text: str
    times: int
    score: float | None
    """Mean score of these questions in 0..1; None without labels."""


@dataclass(frozen=True)
class TaskEvaluation:
    """An evaluation record by record, as the report shows it. Estimates are in percent, under readable names."""

    title: str
    """Name of the task."""
    how: str
    """What was asked and how it was scored, in a sentence."""
    split: str
    records: int
    scores: Mapping[str, Estimate]
    """Measures, the official one first; empty for a split without labels."""
    references: Mapping[str, Estimate]
    """The official measure of predictions that ignore the pictures, such as always the commonest answer."""
    confusion: Confusion | None = None
    answers: tuple[GivenAnswer, ...] = ()
    """The answers given most often, where answers are words."""
    examples: tuple[ExampleGroup, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    """Numbers that are no percentages, under readable names."""

    @property
    def maps(self) -> bool:
        """Whether an example shows a heat map."""
        names = (name for group in self.examples for example in group.examples for name, _ in example.pictures)
        return any("map" in name for name in names)


@dataclass(frozen=True)
class Stage:
    """One of the runs that made a model, one after the other."""

    recipe: str
    folder: str
    steps: int
    records: int
    """Pairs, pictures or texts that it was trained on, each counted as often as it was seen."""
    seconds: float
    measures: tuple[tuple[str, str], ...]
    """Name and value of its measures at its end."""
    flops: float | None = None
    """Floating-point operations of its steps, where they were counted."""


@dataclass(frozen=True)
class ReportData:
    """The content of a run's report. The page leaves empty parts out."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """Name and value of the facts that sum the run up."""
    charts: tuple[Chart, ...]
    evaluation: Mapping[str, Any] | None = None
    """Content of a retrieval's eval.json; None before the evaluation, and for other tasks."""
    ceiling: Mapping[str, float] = field(default_factory=dict)
    """Recall in percent, by `DIRECTION.recall@K`, of a matcher that knows only the set of nouns on each side."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe as plain JSON."""
    examples: Examples = field(default_factory=Examples)
    task_evaluation: TaskEvaluation | None = None
    """For tasks that are evaluated record by record."""
    stages: tuple[Stage, ...] = ()
    """The runs that this one started from, in their order."""
