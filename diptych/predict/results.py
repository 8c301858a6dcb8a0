"""The results of a `Predictor` that need its pictures: small frozen values that print as a person would read them.

`Choice` and `Answer`, which tasks give, stand in diptych/facts.py. h × w patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from diptych.data.heatmap import DRAWN, heat_picture, scaled_box
from diptych.data.record import Box
from diptych.predict.inputs import Picture, open_to_draw


@dataclass(frozen=True)
class MinMatch:
    """The least probability of a match with which a search shows a hit."""

    least: float
    """In 0..1; 0 leaves nothing out."""
    calibrated: bool
    """Whether the probabilities say how likely a hit is right. Otherwise they are ITM's own, which do not."""

    def nothing(self, kind: str, best: float | None) -> str:
        """Says that no hit reaches it, and how far the best one came.

        >>> MinMatch(0.5, calibrated=True).nothing("picture", 0.12)
        'no picture matches with at least 50 %; the best has 12 % (a minimum match of 0 shows it)'
        """
        reached = "" if best is None else f"; the best has {_percent(best)} (a minimum match of 0 shows it)"
        return f"no {kind} matches with at least {_percent(self.least)}{reached}"

    @property
    def note(self) -> str | None:
        """Warns of probabilities that are not calibrated, where they leave something out."""
        if self.calibrated or not self.least:
            return None
        return (
            "these match probabilities are not calibrated, so they say little of how likely a hit is right "
            "(diptych evaluate RUN calibrates searches for pictures by words)"
        )


EVERYTHING = MinMatch(0.0, calibrated=False)
"""Leaves nothing out."""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


@dataclass(frozen=True)
class Hit:
    """A picture that a search found."""

    index: int
    """Its place among the searched pictures."""
    name: str
    similarity: float
    """Cosine of picture and text, in -1..1."""
    match: float | None
    """Probability that the hit is right, by the fusion encoder, if the model is calibrated; otherwise ITM's softmax.
    None without re-ranking."""
    copies: tuple[str, ...] = ()
    """Names of further pictures that nearly equal it, if near-duplicates are folded."""

    def __str__(self) -> str:
        return self.name if self.match is None else f"{self.name} {self.match:.1%}"


@dataclass(frozen=True)
class Ranking:
    """The best pictures of a search, the best first."""

    hits: tuple[Hit, ...]
    searched: int
    """Number of pictures that could be read."""
    min_match: MinMatch
    best_match: float | None
    """The highest probability of a match, whether that hit is shown or not; None without re-ranking."""


@dataclass(frozen=True, eq=False)
class Located:
    """The place in a picture of the thing that a phrase names."""

    phrase: str
    box: Box
    """x, y, width, height in pixels of the given picture; those of a file, in its upright orientation."""
    score: float
    """How well phrase and picture fit: the probability of a match or, by a recipe with mode itc, the cosine similarity.
    There is a box for every phrase, whether the picture shows the thing or not: the score says whether to believe
    it."""
    heat: Float[np.ndarray, "h w"]
    """The evidence of each patch for the phrase: 0 or more, comparable between phrases of one model."""
    picture: Picture = field(repr=False)
    """The picture as it was given."""

    def draw(self, side: int | None = DRAWN) -> Image.Image:
        """Draws heat map and box over the picture in grey, above a bar of the colours. Opens the picture again.

        A larger picture is scaled down to `side` pixels before it is drawn on. None draws at full size, which takes
        seconds and a gigabyte for the pictures of a good phone.
        """
        image, size = open_to_draw(self.picture, side)
        return heat_picture(image, torch.from_numpy(self.heat), scaled_box(self.box, size, image.size))

    def __str__(self) -> str:
        x, y, width, height = self.box
        return f"{self.phrase}: {width:.0f} × {height:.0f} pixels at {x:.0f}, {y:.0f} (score {self.score:.2f})"
