"""Identifies the model that made vectors, because those of two models cannot be compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diptych.checkpoints.renames import former_name
from diptych.predict.loading import load
from diptych.predict.predictor import Predictor

SHORT = 12
"""Number of hexadecimal digits of a digest that messages show."""
ADDED = {"activation": "gelu", "layer_scale": False, "input_norm": False, "patch_bias": True, "pooling": "class"}
"""Fields of the image encoder that came after the first indexes, with the values of all models before."""


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies a model by its name and by a digest of everything that determines its vectors and matches."""

    name: str
    """Absolute path of its checkpoint, which may have been moved since."""
    digest: str

    def __str__(self) -> str:
        return f"{self.name} (weights {self.digest[:SHORT]})"

    @classmethod
    def of(cls, predictor: Predictor) -> ModelIdentity:
        """Hashes the weights in memory, so that a moved or re-saved checkpoint keeps its identity.

        A model in lower precision has no weights of its own any more: those of its checkpoint are read again.
        """
        recipe = predictor.recipe
        # `keep_padding` was a field of the model when the first indexes were written.
        model = asdict(recipe.model) | {"keep_padding": recipe.released.keep_padding}
        if "vision" in model:
            model["vision"] = {key: value for key, value in model["vision"].items() if ADDED.get(key, ...) != value}
        settings: list[Any] = [model, predictor.transform.normalise, recipe.data.max_words]
        settings += [recipe.data.max_tokens_evaluation, list(predictor.tokenizer.vocabulary)]
        settings += [predictor.tokenizer.separator, predictor.tokenizer.lowercase]
        digest = hashlib.blake2b(json.dumps(settings, default=str, sort_keys=True).encode(), digest_size=32)
        # Indexes outlive a renaming of parameters: their names are those of the version that made the first indexes.
        exact = predictor if predictor.precision == "fp32" else load(predictor.origin, "cpu")
        weights = {former_name(name): value for name, value in exact.model.state_dict().items()}
        for name, value in sorted(weights.items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return cls(str(predictor.origin.absolute()), digest.hexdigest())

    def check(self, predictor: Predictor, place: str) -> None:
        """Raises ValueError if `predictor` is another model than the one that made the index at `place`."""
        other = ModelIdentity.of(predictor)
        if other.digest != self.digest:
            raise ValueError(
                f"{place} was made by {self}, not by {other}: vectors of two models cannot be compared. "
                "Name the model that made it, or build another index with this one"
            )
