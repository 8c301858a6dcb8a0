"""What a model says of pictures: small frozen values that print as a person would read them.

h × w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from diptych.data.heatmap import heat_picture
from diptych.data.record import Box
from diptych.predict.inputs import Picture, open_any
from diptych.tasks.vqa import Answer

__all__ = ["Answer", "Choice", "Hit", "Located"]


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    index: int
    """Its place among the pictures that were searched."""
    name: str
    similarity: float
    """Cosine of picture and text, in -1..1."""
    match: float | None
    """Probability that they belong together, by the fusion encoder; None where it was not asked."""

    def __str__(self) -> str:
        return self.name if self.match is None else f"{self.name} {self.match:.1%}"


@dataclass(frozen=True)
class Choice:
    """One of several classes.

    >>> found = Choice.of(["false", "true"], [0.25, 0.75])
    >>> found.label, found.probability, found.probabilities["false"]
    ('true', 0.75, 0.25)
    >>> print(found)
    true 75.0%, false 25.0%
    """

    probabilities: Mapping[str, float]
    """Of each class, the likeliest first; they sum to 1."""

    @classmethod
    def of(cls, names: Sequence[str], probabilities: Sequence[float]) -> Choice:
        """Equally likely ones keep their order."""
        pairs = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
        return cls(dict(pairs))

    @property
    def label(self) -> str:
        """The likeliest class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.probabilities[self.label]

    def __str__(self) -> str:
        return ", ".join(f"{name} {probability:.1%}" for name, probability in self.probabilities.items())


@dataclass(frozen=True, eq=False)
class Located:
    """Where in a picture is what a phrase names."""

    phrase: str
    box: Box
    """x, y, width, height in pixels of the picture that was given; a file's as it stands upright."""
    score: float
    """How well phrase and picture fit: the probability of a match or, by a recipe with mode itc, the cosine similarity.
    There is a box for whatever was asked, in the picture or not: this says whether to believe it."""
    heat: Float[np.ndarray, "h w"]
    """How much each patch speaks for the phrase: 0 and more, comparable between phrases asked of one model."""
    picture: Picture = field(repr=False)
    """As it was given."""

    def draw(self) -> Image.Image:
        """The heat map over the picture in grey with the box, above a bar of its colours. Opens the picture again."""
        return heat_picture(open_any(self.picture), torch.from_numpy(self.heat), self.box)

    def __str__(self) -> str:
        x, y, width, height = self.box
        return f"{self.phrase}: {width:.0f} × {height:.0f} pixels at {x:.0f}, {y:.0f} (score {self.score:.2f})"
