"""Turns the match logits of a search's hits into the probability that a hit is right.

ITM is trained on one positive for two hard negatives of its batch, so its softmax says nothing of how likely a hit of a
search is right. Calibration fits a map from logits to that probability, on searches whose right answers are known
(diptych/evaluate/calibration.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MatchCalibration:
    """Maps the log odds of a match to the probability that the hit of a search for pictures by a text is right.

    The map is sigmoid(slope · log odds + length · log(tokens) + bias). ITM gives the same log odds to a single noun and
    its picture as to a long caption and a picture that it half fits, so the number of the text's tokens matters. As all
    hits of a search have the same text and `slope` is above 0, their order stays.

    >>> calibration = MatchCalibration(2.0, 0.0, -4.0, min_match=0.5, queries=10, pictures=10)
    >>> calibration.probability(torch.tensor([2.0]), torch.tensor(6))
    tensor([0.5000])
    """

    slope: float
    length: float
    bias: float
    min_match: float
    """The least probability with which a search shows a hit, unless it is told another, in 0..1."""
    queries: int
    """Number of queries that it was fitted on."""
    pictures: int
    """Number of pictures that they searched."""

    def probability(self, log_odds: Float[Tensor, "..."], tokens: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Computes the probability from the log odds and from the number of tokens of the text. Both are broadcast.

        The log odds are the logit of a match minus that of no match, plus similarity / temperature where the recipe has
        `evaluation.score=sum`.
        """
        return torch.sigmoid(self.slope * log_odds + self.length * tokens.log() + self.bias)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Any) -> MatchCalibration:
        """Reads what `to_json` gave. Raises ValueError for missing or unknown entries and for values that are not
        numbers."""
        names = [field.name for field in fields(cls)]
        values = stored.values() if isinstance(stored, Mapping) and stored.keys() == {*names} else [None]
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"it does not hold the numbers {', '.join(names)} and nothing else")
        return cls(**stored)
