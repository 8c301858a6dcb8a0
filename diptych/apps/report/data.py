"""What a report shows, apart from how. Pictures are Pillow images; probabilities and shares lie in 0..1; recalls are
in percent, as in eval.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from diptych.metrics.accuracy import Estimate

RIGHT = 0.5
"""Score from which on a record counts as judged rightly: half a box's overlap, two people of ten."""


@dataclass(frozen=True)
class Series:
    """One curve: a value a step, steps ascending."""

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
    """What to look for."""
    references: tuple[tuple[str, float], ...] = ()
    """Named values to compare with, drawn as horizontal lines."""


@dataclass(frozen=True)
class Shown:
    """A picture that a query found."""

    picture: Image
    right: bool
    similarity: float
    match: float | None
    """Logit of a match; None where the fusion encoder was not asked."""


@dataclass(frozen=True)
class QueryExample:
    """A caption and the pictures found for it, best first."""

    text: str
    found: tuple[Shown, ...]
    rank: int
    """Of the right picture, from 0."""
    contrastive_rank: int
    right_picture: Image
    candidates: int
    """Pictures among which the right one was to be found."""


@dataclass(frozen=True)
class NegativeExample:
    """A training pair and the negatives that were drawn for it."""

    picture: Image
    caption: str
    negative_caption: str
    caption_probability: float
    """With which this caption was drawn for the picture."""
    negative_picture: Image
    picture_probability: float
    """With which this picture was drawn for the caption."""
    batch: int
    """Pairs in the batch that they were drawn from."""


@dataclass(frozen=True)
class WordGuess:
    """A hidden word, and what the teacher expects in its place."""

    before: str
    label: str
    after: str
    guesses: tuple[tuple[str, float], ...]
    """Words with their probability, the likeliest first."""


@dataclass(frozen=True)
class TextGuess:
    """A caption that the teacher finds fitting for a picture."""

    text: str
    probability: float
    label: bool
    """Whether it is the picture's own."""


@dataclass(frozen=True)
class TeacherExample:
    """What the momentum teacher would teach about one training pair."""

    picture: Image
    caption: str
    clean: str | None
    """The caption without the noise put into it, where that is known and differs."""
    words: tuple[WordGuess, ...]
    texts: tuple[TextGuess, ...]


@dataclass(frozen=True)
class Examples:
    """Single cases to look at. Empty parts are left out of the page."""

    queries: tuple[QueryExample, ...] = ()
    negatives: tuple[NegativeExample, ...] = ()
    teacher: tuple[TeacherExample, ...] = ()


@dataclass(frozen=True)
class JudgedExample:
    """A record of an evaluation split, what the model said of it and what is right, all in words."""

    pictures: tuple[tuple[str, Image], ...]
    """Each under its name, as in `left`."""
    text: str
    said: str
    probability: float | None
    right: str
    """Empty where nobody tells."""
    score: float | None
    """How right it was, in 0..1; None where nobody tells."""


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one kind, as `wrong`, evenly spaced among all of that kind."""

    title: str
    examples: tuple[JudgedExample, ...]
    total: int


@dataclass(frozen=True)
class Confusion:
    """How often which class was said of which."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row for each right class, a column for each that was said."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer in words, and how it fared."""

    text: str
    times: int
    score: float | None
    """Its mean score in 0..1; None where nobody tells."""


@dataclass(frozen=True)
class Judgement:
    """How a model did on records that are judged one by one. Estimates are in percent, under names for people."""

    title: str
    """Of the task."""
    how: str
    """What was asked and counted, in a sentence."""
    split: str
    records: int
    scores: Mapping[str, Estimate]
    """The task's official measure first; empty for a split without labels."""
    references: Mapping[str, Estimate]
    """The official measure of whoever does not look."""
    confusion: Confusion | None = None
    answers: tuple[GivenAnswer, ...] = ()
    """Those given most often, of answers in words."""
    examples: tuple[ExampleGroup, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    """What is no percentage, under names for people."""


@dataclass(frozen=True)
class Trained:
    """One of the runs that made a model, one after the other."""

    recipe: str
    folder: str
    steps: int
    records: int
    """Pairs, pictures, or texts that it saw, each as often as it saw it."""
    seconds: float
    measures: tuple[tuple[str, str], ...]
    """Its own, at its end: name and value."""
    flops: float | None = None
    """Floating-point operations of its steps, where they were counted."""


@dataclass(frozen=True)
class ReportData:
    """All that the page says."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """Name and value of what sums the run up."""
    charts: tuple[Chart, ...]
    evaluation: Mapping[str, Any] | None = None
    """What retrieval's eval.json holds; None before the evaluation, and for other tasks."""
    ceiling: Mapping[str, float] = field(default_factory=dict)
    """Recall in percent, by `DIRECTION.recall@K`, of a matcher that knows only the set of nouns on each side."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe as plain JSON."""
    examples: Examples = field(default_factory=Examples)
    judgement: Judgement | None = None
    """For tasks that are judged record by record."""
    stages: tuple[Trained, ...] = ()
    """The runs that this one started from, in their order."""
