"""An index of pictures and texts by a model's vectors, with re-ranking by its fusion encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diptych.index.items import Kind
from diptych.index.results import Found
from diptych.predict import Picture, Predictor


def open_index(place: str | Path, predictor: Predictor) -> Index:
    """The index at a place: a folder, or a server's address.

    Raises ValueError where there is none, where its building is not finished, for a damaged one, and for one that
    another model made.
    """
    raise NotImplementedError


class Index:
    """Pictures and texts that can be searched by words or by a picture. Threads may share it."""

    def __len__(self) -> int:
        """Pictures and texts."""
        raise NotImplementedError

    @property
    def counts(self) -> Mapping[Kind, int]:
        raise NotImplementedError

    @property
    def how(self) -> str:
        """How it is searched, as in "exact, 1,000 vectors"."""
        raise NotImplementedError

    def search(self, query: str | Picture, k: int = 10, of: Kind = "picture", rerank: bool = False) -> Found:
        """The k pictures, or texts, that fit a text or a picture best.

        A `str` is a text; a picture's file is given as a `Path`. Similarity decides; with `rerank` the most similar
        ones (`evaluation.rerank` of the recipe, at least k) are then ordered by the probability of a match, of a text
        with pictures or of a picture with texts.

        Raises ValueError for k below 1, for a text without words, for re-ranking like with like, for a kind that the
        index does not hold, and, when re-ranking, for a picture that is no longer there.
        """
        raise NotImplementedError
