"""Building an index, adding to it and removing from it. Each can be broken off at any moment and called again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from diptych.apps.index.embedding import PORTION, embed
from diptych.apps.index.identity import Maker
from diptych.apps.index.items import KINDS, Given, Items, portions, read_items
from diptych.apps.index.neighbours import WANTED, Wanted
from diptych.apps.index.results import Built
from diptych.apps.index.store import About, Place, Writer, find_place
from diptych.data.record import BadRecord
from diptych.predict import Predictor

Say = Callable[[int, int], None]
"""Told how many of how many items are embedded."""


def build_index(
    place: str | Path, source: Given, predictor: Predictor, kind: Wanted = "auto", said: Say | None = None
) -> Built:
    """An index of all that a folder or a JSONL file holds, at a place: a folder, or a server's address.

    `kind`: how it is to be searched; `auto` looks at all vectors up to `EXACT_UP_TO` of them (neighbours.py).
    Called again with the same source and model, it goes on where it was broken off, or brings the index up to date.
    Pictures that cannot be read are passed over and named in the result.

    Raises ValueError for a source without anything to embed, and for a place that holds another model's index, or one
    of other sources.
    """
    if kind not in WANTED:
        raise ValueError(f"an index is searched by one of {', '.join(WANTED)}, not {kind!r}")
    maker, at = _ready(predictor), find_place(place)
    with at.writing(begin=True) as writer:
        old = writer.about()
        notes: tuple[str, ...] = ()
        if old is not None and old.complete:
            _check_same(old, maker, predictor, source, kind, at.name)
        elif old is not None and (old.maker.digest, old.wanted) != (maker.digest, kind):
            notes = (f"what was begun at {at.name} was of {old.maker}, searched by {old.wanted}: beginning anew",)
            old = None
        about = old or About(maker, predictor.model.embed_dim, kind, ())
        built = _fill(writer, at, about, source, predictor, said, anew=old is None)
    return replace(built, notes=notes)


def add_to_index(place: str | Path, source: Given, predictor: Predictor, said: Say | None = None) -> Built:
    """All of a source that the index does not hold yet, and what has changed since it was added.

    Raises ValueError where there is no complete index, or one of another model.
    """
    _ready(predictor)
    at = find_place(place)
    with at.writing(begin=False) as writer:
        about = _complete(writer, at)
        about.maker.check(predictor, at.name)
        return _fill(writer, at, about, source, predictor, said)


def remove_from_index(place: str | Path, ids: Sequence[str]) -> int:
    """Takes pictures and texts out of an index, and returns how many it holds now. The model is not needed.

    Raises ValueError, and removes nothing, where one of the ids is not there.
    """
    at = find_place(place)
    with at.writing(begin=False) as writer:
        about = _complete(writer, at)
        writer.begin(about, anew=False)
        writer.forget({})
        there = writer.held(ids)
        if missing := [id for id in ids if id not in there]:
            more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise ValueError(f"{at.name} holds nothing with the id {missing[0]!r}{more}: nothing was removed")
        writer.remove(ids)
        writer.commit(None)
    store = at.open()
    return sum(store.count(kind) for kind in KINDS)


def _fill(
    writer: Writer, place: Place, about: About, source: Given, predictor: Predictor, said: Say | None,
    anew: bool = False,
) -> Built:  # fmt: skip
    """Embeds what is not there yet, and lets it be found."""
    about, items = _read(about, source)
    writer.begin(about, anew)
    writer.forget({item.id: item for item in items.items})
    missing = [
        item
        for part in portions(items.items, PORTION)
        for held in (writer.held([item.id for item in part]),)
        for item in part
        if held.get(item.id) != item
    ]
    skipped: list[BadRecord] = [*items.skipped]
    added, kept = 0, len(items.items) - len(missing)
    for part in portions(missing, PORTION):
        portion = embed(part, items.root, predictor)
        skipped += portion.skipped
        if portion.items:
            writer.add(portion)
        added += len(portion.items)
        if said:
            said(kept + added, len(items.items))
    if not (added or kept):
        raise ValueError(f"none of the {len(items.items)} pictures can be read; the first: {skipped[0]}")
    writer.commit(skipped)
    store = place.open()
    counts = {kind: store.count(kind) for kind in KINDS}
    return Built(place.name, added, kept, tuple(skipped), counts, {kind: store.how(kind) for kind in KINDS})


def _read(about: About, source: Given) -> tuple[About, Items]:
    """The source's items with their ids in this index."""
    about, number = about.with_root(_root(source))
    return about, read_items(source, about.roots[number].prefix, number)


def _root(source: Given) -> Path:
    if not isinstance(source, str | Path):
        return Path("/")
    path = Path(source).resolve()
    return path.parent if path.is_file() else path


def _ready(predictor: Predictor) -> Maker:
    """Raises ValueError for a model without vectors."""
    if why := predictor.missing("embed"):
        raise ValueError(why)
    return Maker.of(predictor)


def _complete(writer: Writer, place: Place) -> About:
    about = writer.about()
    if about is None or not about.complete:
        place.open()  # says what is the matter
        raise ValueError(f"no index in {place.name}: make one with `diptych index build`")
    return about


def _check_same(old: About, maker: Maker, predictor: Predictor, source: Given, kind: Wanted, place: str) -> None:
    if old.maker.digest != maker.digest:
        old.maker.check(predictor, place)
    if kind not in ("auto", old.wanted):
        raise ValueError(f"{place} is searched by '{old.wanted}': for '{kind}' build another one")
    root = str(_root(source))
    if root != old.roots[0].folder:
        raise ValueError(
            f"{place} holds an index of {old.roots[0].folder} already: put {root} into it with `diptych index add`, "
            "or name another place"
        )
