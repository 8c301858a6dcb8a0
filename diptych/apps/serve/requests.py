"""Defines the calls that requests make to models. Equal calls (same model, ability and options) may share a batch.

A call takes the `Inputs` of several requests and returns one result for each. Pictures arrive resized to the model's
input, so that a waiting request holds little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from PIL import Image

from diptych.apps.index import IndexQuery
from diptych.data.transforms import resize
from diptych.predict import Located, PooledModel, Predictor

Result = TypeVar("Result")
RERANKED_ROWS = 8
"""Rows of a batch that a re-ranked search takes. It matches tens of pairs, and a batch that a model has begun is not
stopped, so only a few are together."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The pictures and texts of one request."""

    pictures: tuple[Image.Image, ...] = ()
    texts: tuple[str, ...] = ()
    unknown_words: tuple[str, ...] = ()
    """Words of the texts that the model's vocabulary lacks."""


@runtime_checkable
class ModelCall(Protocol):
    """A call to a model, which is hashable and runs on the models' thread only."""

    @property
    def ability(self) -> str: ...

    def rows(self, inputs: Inputs, /) -> int:
        """Returns how many rows of a batch a request takes."""
        ...

    def __call__(self, inputs: Sequence[Inputs], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class _PredictorCall:
    pooled: PooledModel

    @property
    def predictor(self) -> Predictor:
        return self.pooled.predictor


@dataclass(frozen=True)
class Embed(_PredictorCall):
    """Returns the vectors of the pictures and of the texts."""

    ability: ClassVar[str] = "embed"

    def rows(self, inputs: Inputs) -> int:
        return len(inputs.pictures) + len(inputs.texts)

    def __call__(self, inputs: Sequence[Inputs]) -> list[tuple[list[list[float]], list[list[float]]]]:
        pictures, texts = _all_pictures(inputs), _all_texts(inputs)
        picture_vectors = iter(self.predictor.embed_images(pictures).tolist() if pictures else ())
        text_vectors = iter(self.predictor.embed_texts(texts).tolist() if texts else ())
        return [
            ([next(picture_vectors) for _ in request.pictures], [next(text_vectors) for _ in request.texts])
            for request in inputs
        ]


@dataclass(frozen=True)
class Match(_PredictorCall):
    """Returns the match probability of every picture with every text of the same request."""

    ability: ClassVar[str] = "match"

    def rows(self, inputs: Inputs) -> int:
        return len(inputs.pictures) * len(inputs.texts)

    def __call__(self, inputs: Sequence[Inputs]) -> list[list[list[float]]]:
        pairs: list[tuple[int, int]] = []
        picture, text = 0, 0
        for request in inputs:
            pictures, texts = len(request.pictures), len(request.texts)
            pairs += [(picture + n, text + m) for n in range(pictures) for m in range(texts)]
            picture, text = picture + pictures, text + texts
        matches = iter(self.predictor.match_pairs(_all_pictures(inputs), _all_texts(inputs), pairs).tolist())
        return [[[next(matches) for _ in request.texts] for _ in request.pictures] for request in inputs]


@dataclass(frozen=True)
class _TextCall(_PredictorCall):
    """Calls the model for each text of a request with the request's picture, or with both of its pictures.

    A request without texts is one call.
    """

    def rows(self, inputs: Inputs) -> int:
        return max(1, len(inputs.texts))

    def _per_text(self, inputs: Sequence[Inputs], method: Callable[..., Sequence[Result]]) -> list[list[Result]]:
        per_row = [request.pictures for request in inputs for _ in range(self.rows(request))]
        pictures, texts = map(list, zip(*per_row, strict=True)), _all_texts(inputs)
        results = iter(method(*pictures, *([texts] if texts else ())))
        return [[next(results) for _ in range(self.rows(request))] for request in inputs]


@dataclass(frozen=True)
class CallHead(_TextCall):
    """Calls the ability of a task's head and returns a list of results for each request."""

    ability: str
    options: tuple[tuple[str, Any], ...] = ()
    """The settings that the ability states, by name."""

    def __call__(self, inputs: Sequence[Inputs]) -> list[list[Any]]:
        return self._per_text(inputs, partial(self.predictor.ask, self.ability, **dict(self.options)))


@dataclass(frozen=True)
class Locate(_TextCall):
    """Returns heat maps and scores. Its boxes refer to the resized pictures."""

    ability: ClassVar[str] = "locate"

    def __call__(self, inputs: Sequence[Inputs]) -> list[list[Located]]:
        return self._per_text(inputs, self.predictor.locate)


@dataclass(frozen=True, eq=False)
class SearchInputs(Inputs):
    """The text or the picture of a search, with what may differ between the searches of a batch."""

    k: int = 10
    min_match: float | None = None


@dataclass(frozen=True)
class Search:
    """Searches an index for all requests together."""

    index: Any = field(hash=False)
    of: str
    rerank: bool
    ability: ClassVar[str] = "search"

    def rows(self, inputs: Inputs) -> int:
        return RERANKED_ROWS if self.rerank else 1

    def __call__(self, inputs: Sequence[Any], /) -> list[Any]:
        queries = [
            IndexQuery((request.texts or request.pictures)[0], request.k, request.min_match) for request in inputs
        ]
        return list(self.index.search_many(queries, self.of, self.rerank))


def at_size(picture: Image.Image, predictor: Predictor) -> Image.Image:
    """Resizes a picture as the model's own transform does, which then leaves it unchanged."""
    return resize(picture, predictor.transform.image_size)


def _all_pictures(inputs: Sequence[Inputs]) -> list[Image.Image]:
    return [picture for request in inputs for picture in request.pictures]


def _all_texts(inputs: Sequence[Inputs]) -> list[str]:
    return [text for request in inputs for text in request.texts]
