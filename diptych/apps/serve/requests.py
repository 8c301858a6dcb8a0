"""What models are asked, many requests in one call. Equal asks may share a batch: model, ability and options agree.

An ask takes a sequence of `Given`, one a request, and gives one result for each. What pictures of a request go with
which texts is each ask's own. Pictures come at the model's size, so that a waiting request holds little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from PIL import Image

from diptych.data.transforms import resize
from diptych.predict import Located, PooledModel, Predictor

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Given:
    """What a request brings."""

    pictures: tuple[Image.Image, ...] = ()
    texts: tuple[str, ...] = ()


@runtime_checkable
class Ask(Protocol):
    """Hashable; called on the thread of the models only."""

    @property
    def ability(self) -> str: ...

    def rows(self, given: Given, /) -> int:
        """How much of a batch a request takes up."""
        ...

    def __call__(self, given: Sequence[Given], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class _OfModel:
    shelved: PooledModel

    @property
    def predictor(self) -> Predictor:
        return self.shelved.predictor


@dataclass(frozen=True)
class Embed(_OfModel):
    """Gives the vectors of the pictures and of the texts."""

    ability: ClassVar[str] = "embed"

    def rows(self, given: Given) -> int:
        return len(given.pictures) + len(given.texts)

    def __call__(self, given: Sequence[Given]) -> list[tuple[list[list[float]], list[list[float]]]]:
        pictures, texts = _all_pictures(given), _all_texts(given)
        of_pictures = iter(self.predictor.embed_images(pictures).tolist() if pictures else ())
        of_texts = iter(self.predictor.embed_texts(texts).tolist() if texts else ())
        return [([next(of_pictures) for _ in one.pictures], [next(of_texts) for _ in one.texts]) for one in given]


@dataclass(frozen=True)
class Match(_OfModel):
    """Gives the probabilities of every picture with every text of the same request."""

    ability: ClassVar[str] = "match"

    def rows(self, given: Given) -> int:
        return len(given.pictures) * len(given.texts)

    def __call__(self, given: Sequence[Given]) -> list[list[list[float]]]:
        pairs: list[tuple[int, int]] = []
        picture, text = 0, 0
        for one in given:
            pairs += [(picture + n, text + m) for n in range(len(one.pictures)) for m in range(len(one.texts))]
            picture, text = picture + len(one.pictures), text + len(one.texts)
        found = iter(self.predictor.match_pairs(_all_pictures(given), _all_texts(given), pairs).tolist())
        return [[[next(found) for _ in one.texts] for _ in one.pictures] for one in given]


@dataclass(frozen=True)
class _OfTexts(_OfModel):
    """Asks about each text of a request with its one picture, or with its two; once where there is no text."""

    def rows(self, given: Given) -> int:
        return max(1, len(given.texts))

    def _ask(self, given: Sequence[Given], ask: Callable[..., Sequence[Result]]) -> list[list[Result]]:
        per_row = [one.pictures for one in given for _ in range(self.rows(one))]
        pictures, texts = map(list, zip(*per_row, strict=True)), _all_texts(given)
        found = iter(ask(*pictures, *([texts] if texts else ())))
        return [[next(found) for _ in range(self.rows(one))] for one in given]


@dataclass(frozen=True)
class AskHead(_OfTexts):
    """Asks the head of a task for its ability. Gives a list of results for each request."""

    ability: str
    options: tuple[tuple[str, Any], ...] = ()
    """The settings that the ability states, by name."""

    def __call__(self, given: Sequence[Given]) -> list[list[Any]]:
        return self._ask(given, partial(self.predictor.ask, self.ability, **dict(self.options)))


@dataclass(frozen=True)
class Locate(_OfTexts):
    """Gives heat maps and scores. The boxes are those of the pictures as they come here, at the model's size."""

    ability: ClassVar[str] = "locate"

    def __call__(self, given: Sequence[Given]) -> list[list[Located]]:
        return self._ask(given, self.predictor.locate)


@dataclass(frozen=True)
class Search:
    """One request after another: an index embeds its query itself."""

    index: Any = field(hash=False)
    k: int
    of: str
    rerank: bool
    ability: ClassVar[str] = "search"

    def rows(self, given: Given) -> int:
        return 1

    def __call__(self, given: Sequence[Given]) -> list[Any]:
        return [self.index.search((one.texts or one.pictures)[0], self.k, self.of, self.rerank) for one in given]


def at_size(picture: Image.Image, predictor: Predictor) -> Image.Image:
    """As the model's own transform makes it, which then changes nothing more."""
    return resize(picture, predictor.transform.image_size)


def _all_pictures(given: Sequence[Given]) -> list[Image.Image]:
    return list(_chained(one.pictures for one in given))


def _all_texts(given: Sequence[Given]) -> list[str]:
    return list(_chained(one.texts for one in given))


def _chained(parts: Iterator[tuple[Result, ...]]) -> Iterator[Result]:
    return chain.from_iterable(parts)
