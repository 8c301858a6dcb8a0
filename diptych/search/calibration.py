"""Turns the match logits of a search's hits into the probability that a hit is right.

ITM is trained on one positive for two hard negatives of its batch, so its softmax says nothing of how likely a hit of a
search is right: that depends on the collection, in which most pictures are wrong. Calibration fits a map from the log
odds to that probability, on searches whose right answers are known (`diptych.evaluate.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MatchCalibration:
    """Maps the log odds of a match to a probability: sigmoid(slope · log odds + bias). The order of hits stays.

    >>> MatchCalibration(slope=2.0, bias=-4.0, min_match=0.5, queries=10, pictures=10).probability(torch.tensor([2.0]))
    tensor([0.5000])
    """

    slope: float
    """Above 0."""
    bias: float
    min_match: float
    """The least probability with which a search shows a hit, unless it is told another, in 0..1."""
    queries: int
    """Number of queries that it was fitted on."""
    pictures: int
    """Number of pictures that they searched."""

    def probability(self, log_odds: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        """Computes the probability of log odds, that is of the logit of a match less that of no match."""
        return torch.sigmoid(self.slope * log_odds + self.bias)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> MatchCalibration:
        """Reads what `to_json` gave. Raises ValueError for missing or unknown entries, or such as are no number."""
        names = {field.name for field in fields(cls)}
        if stored.keys() != names or not all(isinstance(value, int | float) for value in stored.values()):
            raise ValueError(f"a calibration has the numbers {', '.join(sorted(names))}, not {dict(stored)}")
        return cls(**stored)
