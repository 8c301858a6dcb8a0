"""Which model made an index: vectors of two models cannot be compared, and nothing in their numbers would show it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diptych.predict import Predictor

SHORT = 12
"""Digits of a digest that messages show."""


@dataclass(frozen=True)
class Maker:
    """A model, by its name and by all that decides its vectors and matches."""

    name: str
    """Its checkpoint, as an absolute path; it may have gone elsewhere since."""
    digest: str

    def __str__(self) -> str:
        return f"{self.name} (weights {self.digest[:SHORT]})"

    @classmethod
    def of(cls, predictor: Predictor) -> Maker:
        """Read from the weights in memory: a checkpoint that is moved, or stored anew, stays the same model."""
        recipe = predictor.recipe
        # `keep_padding` was a field of the model when the first indexes were written.
        model = asdict(recipe.model) | {"keep_padding": recipe.released.keep_padding}
        settings: list[Any] = [model, predictor.transform.normalise, recipe.data.max_words]
        settings += [recipe.data.max_tokens_evaluation, list(predictor.tokenizer.vocabulary)]
        settings += [predictor.tokenizer.separator, predictor.tokenizer.lowercase]
        digest = hashlib.blake2b(json.dumps(settings, default=str, sort_keys=True).encode(), digest_size=32)
        for name, value in sorted(predictor.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return cls(str(predictor.origin.absolute()), digest.hexdigest())

    def check(self, predictor: Predictor, place: str) -> None:
        """Raises ValueError where `predictor` is another model."""
        given = Maker.of(predictor)
        if given.digest != self.digest:
            raise ValueError(
                f"{place} was made by {self}, not by {given}: vectors of two models cannot be compared. "
                "Name the model that made it, or build another index with this one"
            )
