"""Where the search page searches: an index that was built before, or one that is made of the example pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from diptych.apps.app.examples import Album
from diptych.apps.index import Index, Item, SearchResults, build_index, open_index
from diptych.predict import ModelPool, PooledModel

MOST_PICTURES = 1_000
"""Of a folder that is searched without an index of its own: they are embedded at the first question."""


@dataclass(frozen=True)
class Collection:
    """What one model searches."""

    model: PooledModel
    album: Album
    index: Index | None = None
    """As it was opened; None: it is made of the album, when it is first asked."""

    @cached_property
    def searched(self) -> Index:
        return self.index or index_of(self.album, self.model)

    def search(self, query: str | Image.Image, k: int) -> tuple[SearchResults, SearchResults | None]:
        """Pictures by similarity and, for words, re-ranked; of a picture, similar ones. Raises ValueError."""
        if isinstance(query, str):
            judged = self.model.predictor.missing("match") is None
            again = self.searched.search(query, k, rerank=True) if judged else None
            return self.searched.search(query, k), again
        return self.searched.search(query, k), None

    def captions(self, picture: Image.Image, k: int) -> tuple[SearchResults, SearchResults | None] | None:
        """Texts that fit a picture, by similarity and re-ranked; None where the index holds no texts."""
        if not self.searched.counts.get("text"):
            return None
        judged = self.model.predictor.missing("match") is None
        again = self.searched.search(picture, k, of="text", rerank=True) if judged else None
        return self.searched.search(picture, k, of="text"), again


def open_collections(pool: ModelPool, album: Album, place: str | None) -> dict[str, Collection]:
    """By the model's name. Raises ValueError for an index that none of the models made, and for too many pictures."""
    able = pool.able("embed")
    if place is not None:
        return _opened(able, album, place)
    if len(album.pictures) > MOST_PICTURES:
        raise ValueError(
            f"{album.folder} holds {len(album.pictures):,} pictures, and more than {MOST_PICTURES:,} need an index: "
            f"diptych index build {album.folder} --model RUN, then diptych app RUN --index PLACE"
        )
    return {one.name: Collection(one, album) for one in able} if album.pictures else {}


def _opened(able: Sequence[PooledModel], album: Album, place: str) -> dict[str, Collection]:
    """Of the models that the index is of."""
    found, why = {}, ValueError(f"no model here makes vectors, so that {place} cannot be searched")
    for one in able:
        try:
            found[one.name] = Collection(one, album, open_index(place, one.predictor))
        except ValueError as error:
            why = error
    if not found:
        raise why
    return found


def index_of(album: Album, model: PooledModel) -> Index:
    """An index of the pictures and captions, gone when the process ends."""
    pictures = [Item(str(one.picture), "picture", str(one.picture.resolve())) for one in album.pictures]
    texts = [Item(f"caption {number}", "text", text) for number, text in enumerate(album.captions, 1)]
    with tempfile.TemporaryDirectory(prefix="diptych-") as place:
        build_index(place, [*pictures, *texts], model.predictor)
        return open_index(place, model.predictor)
