"""Searches pictures by words or by another picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from PIL import Image

from diptych.apps.app.collection import Collection
from diptych.apps.app.fields import PercentField, PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.render import render
from diptych.apps.app.site import Site
from diptych.apps.index import IndexHit, SearchResults
from diptych.apps.report.numbers import percent
from diptych.data.pictures import open_small
from diptych.data.record import BadRecord
from diptych.predict import PooledModel

PAGE = Page(
    "",
    "Search",
    "Which pictures fit?",
    "Describe a picture in words, or give one. On the left are the nearest pictures by similarity: one vector for each "
    "picture and text. On the right the same search again, after the model has looked at every candidate together with "
    "your words.",
)
SHOWN = 6
"""Number of hits in each order."""
THUMBNAIL = 160
NOTHING = "there are no pictures to search in: name a folder (--images DIR) or an index (--index PLACE)"


def form(site: Site) -> Form:
    models = [model for model in site.pool.able("embed") if model.name in site.collections]
    models.sort(key=lambda model: model.predictor.missing("match") is not None)  # those that can re-rank first
    words = [Example(caption, (caption, None, None)) for caption in site.album.captions[1:4]]
    pictures = [Example("Pictures like this one", (None, entry.picture, None)) for entry in site.album.pictures[:1]]
    return Form(
        PAGE,
        {"Model": models},
        (
            TextField("Words", "a whale to the left of a crab", optional=True),
            PictureField("Or a picture", optional=True),
            PercentField("Minimum match, in %", "empty: what the model was calibrated to; 0 shows all"),
        ),
        "Search",
        lambda model, words, picture, least: answer(site.collections, model, words, picture, least),
        "The pictures found will appear here, in two orders side by side.",
        (*words, *pictures),
        None if models else site.missing("embed") or NOTHING,
    )


def answer(
    collections: Mapping[str, Collection],
    model: PooledModel,
    words: str,
    picture: Image.Image | None,
    min_match: float | None = None,
) -> str:
    """Shows both orders side by side. Re-ranked hits that match with less than `min_match` are left out."""
    collection = collections[model.name]
    if words and picture is not None:
        raise ValueError("both words and a picture: clear one of them, and search by the other")
    query = words or picture
    if query is None:
        raise ValueError("nothing to search for yet: write some words, give a picture, or click an example")
    by_similarity, reranked = collection.search(query, SHOWN, min_match)
    captions = None if picture is None else collection.captions(picture, SHOWN, min_match)
    if min_match and reranked is None and (captions is None or captions[1] is None):
        raise ValueError("a minimum match needs re-ranking, which is not possible here: leave it empty")
    return render(
        "search",
        models=[model],
        words=words,
        by_similarity=by_similarity,
        reranked=reranked,
        captions=captions,
        open_pictures=partial(open_pictures, largest_pixels=model.predictor.recipe.data.largest_pixels),
        score=score,
        THUMBNAIL=THUMBNAIL,
    )


def open_pictures(results: SearchResults, largest_pixels: int) -> Iterator[tuple[IndexHit, Image.Image | None, str]]:
    """Opens the pictures of hits at the size that is shown. One that cannot be opened any more is replaced by why."""
    for hit in results.hits:
        assert hit.path is not None
        try:
            yield hit, open_small(hit.path, hit.path.name, THUMBNAIL, largest_pixels)[0], ""
        except BadRecord as error:
            yield hit, None, error.reason


def score(hit: IndexHit) -> str:
    return f"{hit.similarity:.2f}" if hit.match is None else percent(hit.match)
