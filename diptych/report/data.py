"""What a report shows, apart from how. Pictures are Pillow images; probabilities and shares lie in 0..1; recalls are
in percent, as in eval.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image


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
class ReportData:
    """All that the page says."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """Name and value of what sums the run up."""
    charts: tuple[Chart, ...]
    evaluation: Mapping[str, Any] | None = None
    """The content of eval.json; None before the evaluation."""
    ceiling: Mapping[str, float] = field(default_factory=dict)
    """Recall in percent, by `DIRECTION.recall@K`, of a matcher that knows only the set of nouns on each side."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe as plain JSON."""
    examples: Examples = field(default_factory=Examples)
