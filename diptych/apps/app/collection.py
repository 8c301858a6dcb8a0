"""Provides what the search page searches: an existing index, or one that is built from the example pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from diptych.apps.app.examples import Album
from diptych.apps.index import Index, Item, SearchResults, build_index, open_index
from diptych.apps.index.items import Kind
from diptych.predict import ModelPool, PooledModel

MOST_PICTURES = 1_000
"""Largest number of pictures of a folder without an index. They are embedded at the first search."""


@dataclass(frozen=True)
class Collection:
    """The pictures and texts that one model searches."""

    model: PooledModel
    album: Album
    opened: Index | None = None
    """An existing index; None builds one from the album at the first search."""

    @cached_property
    def index(self) -> Index:
        return self.opened or index_of(self.album, self.model)

    def search(
        self, query: str | Image.Image, k: int, min_match: float | None = None
    ) -> tuple[SearchResults, SearchResults | None]:
        """Finds pictures by similarity and, for a text, also re-ranked, without those that match with less than
        `min_match`. Raises ValueError."""
        if isinstance(query, str):
            return self._both_orders(query, k, "picture", min_match)
        return self.index.search(query, k), None

    def captions(
        self, picture: Image.Image, k: int, min_match: float | None = None
    ) -> tuple[SearchResults, SearchResults | None] | None:
        """Finds texts for a picture, by similarity and re-ranked. None if the index holds no texts."""
        return self._both_orders(picture, k, "text", min_match) if self.index.counts.get("text") else None

    def _both_orders(
        self, query: str | Image.Image, k: int, of: Kind, min_match: float | None
    ) -> tuple[SearchResults, SearchResults | None]:
        """Searches by similarity and, if the model has a match head, re-ranked."""
        can_match = self.model.predictor.missing("match") is None
        reranked = self.index.search(query, k, of=of, rerank=True, min_match=min_match) if can_match else None
        return self.index.search(query, k, of=of), reranked


def open_collections(pool: ModelPool, album: Album, place: str | None) -> dict[str, Collection]:
    """Returns the collections by the model's name.

    Raises ValueError for an index that none of the models made, and for too many pictures without an index.
    """
    models = pool.able("embed")
    if place is not None:
        return _open_index(models, album, place)
    if len(album.pictures) > MOST_PICTURES:
        raise ValueError(
            f"{album.folder} holds {len(album.pictures):,} pictures, and more than {MOST_PICTURES:,} need an index: "
            f"diptych index build {album.folder} --model RUN, then diptych app RUN --index PLACE"
        )
    return {model.name: Collection(model, album) for model in models} if album.pictures else {}


def _open_index(models: Sequence[PooledModel], album: Album, place: str) -> dict[str, Collection]:
    """Opens an index with those of the models that made it."""
    collections = {}
    problem = ValueError(f"no model here has trained embeddings, so that {place} cannot be searched")
    for model in models:
        try:
            collections[model.name] = Collection(model, album, open_index(place, model.predictor))
        except ValueError as error:
            problem = error
    if not collections:
        raise problem
    return collections


def index_of(album: Album, model: PooledModel) -> Index:
    """Builds an index of the album's pictures and captions. Its files are deleted at once; it stays in memory."""
    pictures = [Item(str(entry.picture), "picture", str(entry.picture.resolve())) for entry in album.pictures]
    texts = [Item(f"caption {number}", "text", text) for number, text in enumerate(album.captions, 1)]
    with tempfile.TemporaryDirectory(prefix="diptych-") as place:
        build_index(place, [*pictures, *texts], model.predictor)
        return open_index(place, model.predictor)
