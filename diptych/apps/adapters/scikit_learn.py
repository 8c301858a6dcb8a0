"""A scikit-learn transformer: pictures or texts in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from diptych.apps.adapters.common import AnyModel, opened, tool
from diptych.predict import Predictor

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:  # which `vectorizer` says

    class BaseEstimator: ...  # type: ignore[no-redef]

    class TransformerMixin: ...  # type: ignore[no-redef]


PACKAGE = "diptych[scikit-learn]"


def vectorizer(model: AnyModel, of: Literal["picture", "text"] = "picture", device: str = "auto") -> Vectorizer:
    """Makes a transformer for `sklearn.pipeline`: a column of pictures, or of texts, becomes vectors [N, E].

    `make_pipeline(vectorizer("runs/demo"), LogisticRegression())` learns classes from pictures. Nothing of the model is
    trained. A model given by its path is opened when it is first needed, so that the pipeline can be cloned, pickled
    and sent to other processes. Raises ValueError without scikit-learn.
    """
    tool("sklearn", PACKAGE)
    return Vectorizer(model, of, device)


class Vectorizer(TransformerMixin, BaseEstimator):
    """Embeds pictures or texts with a trained model."""

    def __init__(self, model: AnyModel, of: str = "picture", device: str = "auto") -> None:
        self.model, self.of, self.device = model, of, device

    def fit(self, X: Any, y: Any = None) -> Vectorizer:
        """Learns nothing, and checks that the model can be opened."""
        self._opened()
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "N E"]:
        """Computes normalised vectors in fp32. Raises ValueError for an unreadable picture, naming it."""
        items, predictor = _column(X), self._opened()
        embed = predictor.embed_images if self.of == "picture" else predictor.embed_texts
        return embed(items).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names the columns, as `set_output(transform="pandas")` needs them."""
        return np.array([f"vector{number}" for number in range(self._opened().model.embed_dim)], dtype=object)

    def _opened(self) -> Predictor:
        if self.of not in ("picture", "text"):
            raise ValueError(f"of is picture or text, not {self.of!r}")
        if isinstance(self.model, str | Path):
            return _kept(str(self.model), self.device)
        return opened(self.model, self.device, "embed")

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.input_tags.two_d_array, tags.input_tags.string = False, self.of == "text"
        return tags


@lru_cache(maxsize=4)
def _kept(path: str, device: str) -> Predictor:
    """Opens a model once for all steps that name it."""
    return opened(path, device, "embed")


def _column(X: Any) -> list[Any]:
    """Takes the pictures or texts out of a list, an array of objects, a series or a frame of one column."""
    values: Iterable[Any] = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
        if values.ndim == 2 and values.shape[1] != 1:
            raise ValueError(f"{values.shape[1]} columns are given: choose the one that holds the pictures or texts")
        return values.reshape(-1).tolist()
    return [item[0] if isinstance(item, list | tuple) and len(item) == 1 else item for item in values]
