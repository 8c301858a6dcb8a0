"""Pictures that fit some words, or another picture."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from diptych.apps.app import parts
from diptych.apps.app.collection import Collection
from diptych.apps.app.fields import PictureField, TextField
from diptych.apps.app.form import Example, Form, Page
from diptych.apps.app.quality import quality
from diptych.apps.app.site import Site
from diptych.apps.index import IndexHit, SearchResults
from diptych.apps.report.html import Html, tag
from diptych.apps.report.numbers import percent
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord
from diptych.predict import PooledModel

PAGE = Page(
    "",
    "Search",
    "Which pictures fit?",
    "Describe a picture in words, or give one. At the left, what is nearest by similarity: one vector for each picture "
    "and text. At the right, the same again after the model has looked at every candidate together with your words.",
)
SHOWN = 6
"""Pictures of each order."""
THUMB = 160


def form(site: Site) -> Form:
    models = [one for one in site.pool.able("embed") if one.name in site.collections]
    models.sort(key=lambda one: one.predictor.missing("match") is not None)  # those that can re-rank first
    words = [Example(caption, (caption, None)) for caption in site.album.captions[1:4]]
    pictures = [Example("Pictures like this one", (None, one.picture)) for one in site.album.pictures[:1]]
    return Form(
        PAGE,
        {"Model": models},
        (
            TextField("Words", "a whale to the left of a crab", optional=True),
            PictureField("Or a picture", optional=True),
        ),
        "Search",
        lambda model, words, picture: ask(site.collections, model, words, picture),
        "The pictures found will stand here, in two orders side by side.",
        (*words, *pictures),
        None if models else site.missing("embed") or NOTHING,
    )


NOTHING = "there are no pictures to search in: name a folder (--images DIR) or an index (--index PLACE)"


def ask(collections: Mapping[str, Collection], model: PooledModel, words: str, picture: Image.Image | None) -> Html:
    collection = collections[model.name]
    if words and picture is not None:
        raise ValueError("words and a picture at once: clear one of them, and search by the other")
    if words:
        found, again = collection.search(words, SHOWN)
        content = [_orders(found, again, f"“{words}”"), parts.unknown_words(model, words)]
    elif picture is not None:
        found, _ = collection.search(picture, SHOWN)
        texts = collection.captions(picture, SHOWN)
        content = [parts.card("Similar pictures", _pictures(found), note=_among(found))]
        content += [_orders(*texts, "texts for this picture")] if texts else []
    else:
        raise ValueError("nothing to search for yet: write some words, give a picture, or click an example")
    return parts.answer(*content, parts.asked((model.name, quality(model))))


def _orders(found: SearchResults, again: SearchResults | None, query: str) -> Html:
    """By similarity at the left, re-ranked at the right."""
    judged = (
        parts.card("Re-ranked", _hits(again), note=f"{query}: ordered by the probability of a match.")
        if again
        else parts.card("Re-ranked", parts.message("Not here", "This model has no trained match head.", "missing"))
    )
    return tag("div", parts.card("By similarity", _hits(found), note=f"{query}: {_among(found)}"), judged, class_="two")


def _among(found: SearchResults) -> str:
    return f"among {found.searched:,}, {found.search_method}."


def _hits(found: SearchResults) -> Html:
    return _texts(found) if found.hits and found.hits[0].kind == "text" else _pictures(found)


def _pictures(found: SearchResults) -> Html:
    return parts.gallery([_picture(hit, place) for place, hit in enumerate(found.hits, 1)])


def _picture(hit: IndexHit, place: int) -> Html:
    assert hit.path is not None
    name = hit.path.name
    try:
        image = open_picture(hit.path, name)
    except BadRecord as error:  # it was there when the index was built
        return tag("figure", tag("div", error.reason, class_="gone"), tag("figcaption", name, " · ", _score(hit)))
    return parts.shown(image, f"place {place}: {name}", tag("b", _score(hit)), tag("span", name), side=THUMB)


def _texts(found: SearchResults) -> Html:
    return tag(
        "ol", [tag("li", tag("span", hit.text or ""), tag("b", _score(hit))) for hit in found.hits], class_="texts"
    )


def _score(hit: IndexHit) -> str:
    return f"{hit.similarity:.2f}" if hit.match is None else percent(hit.match)
