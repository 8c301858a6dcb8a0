"""Builds an index, adds to it and removes from it. Each call can be interrupted at any moment and repeated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from diptych.apps.index.embedding import PORTION, Portion, embed
from diptych.apps.index.items import KINDS, Item, ItemSource, portions, read_items
from diptych.apps.index.neighbours import METHOD_CHOICES, MethodChoice
from diptych.apps.index.places import find_place
from diptych.apps.index.presence import presence
from diptych.apps.index.results import BuildReport
from diptych.apps.index.store import IndexDescription, Place, Store, Writer, no_index
from diptych.data.record import BadRecord
from diptych.predict import Predictor
from diptych.predict.identity import ModelIdentity
from diptych.reading import expand_home

EQUAL = 1 - 1e-5
"""Cosine above which two vectors are of the same picture. Batches of different sizes change a vector by less."""
NEAR = 5
"""Stored neighbours of a new picture among which its earlier name is looked for."""
PATTERN = re.compile(r"[*?[]")
"""What makes a pattern of an id."""
Progress = Callable[[int, int], None]
"""Receives the number of embedded items and the number of all items."""


def build_index(
    place: str | Path, source: ItemSource, predictor: Predictor, kind: MethodChoice = "auto",
    progress: Progress | None = None,
) -> BuildReport:  # fmt: skip
    """Builds an index of everything that a folder or a JSONL file holds, in a folder or at a server's address.

    `kind` chooses the search method; `auto` searches up to `EXACT_UP_TO` vectors exactly (neighbours.py).
    A repeated call with the same source and model continues after an interruption, or updates the index.
    Pictures that cannot be read are skipped and listed in the report.

    Raises ValueError if the source has nothing to embed, and if the place holds an index of another model or of other
    sources.
    """
    if kind not in METHOD_CHOICES:
        raise ValueError(f"an index is searched by one of {', '.join(METHOD_CHOICES)}, not {kind!r}")
    model, location = _identify(predictor), find_place(place)
    with location.writing(begin=True) as writer:
        old = writer.description()
        notes: tuple[str, ...] = ()
        if old is not None and old.complete:
            _check_same(old, model, predictor, source, kind, location.name)
        elif old is not None and (old.model.digest, old.method) != (model.digest, kind):
            notes = (
                f"the unfinished index in {location.name} was made by {old.model} and searched by '{old.method}': "
                "beginning anew",
            )
            old = None
        description = old or IndexDescription(model, predictor.model.embed_dim, kind, (), precision=predictor.precision)
        report = _fill(writer, location, description, source, predictor, progress, anew=old is None)
    return replace(report, notes=(*notes, *report.notes))


def add_to_index(
    place: str | Path, source: ItemSource, predictor: Predictor, progress: Progress | None = None, prune: bool = False
) -> BuildReport:
    """Adds the items of a source that are missing from the index or have changed since they were added.

    With `prune` the items of this source that are gone are removed: pictures whose files are not there any more, and
    texts of lines that the list does not have any more.

    Raises ValueError if there is no complete index, or if another model made it.
    """
    _identify(predictor)
    location = find_place(place)
    with location.writing(begin=False) as writer:
        description = _complete(writer, location)
        description.model.check(predictor, location.name)
        return _fill(writer, location, description, source, predictor, progress, prune=prune)


def remove_from_index(place: str | Path, ids: Sequence[str]) -> int:
    """Removes pictures and texts from an index, and returns how many remain. The model is not needed.

    An id that the index does not hold is a pattern if it has `*`, `?` or `[`, as in `*.png`.

    Raises ValueError, and removes nothing, if one of the ids is unknown, or fits nothing.
    """
    location = find_place(place)
    with location.writing(begin=False) as writer:
        description = _complete(writer, location)
        writer.begin(description, anew=False)
        writer.drop_unwanted({})
        stored = writer.stored(ids)
        all_ids: list[str] | None = None
        found: dict[str, None] = {}
        missing = []
        for id in ids:
            fitting = [id] if id in stored else []
            if not fitting and PATTERN.search(id):
                all_ids = [item.id for item in writer.all_items()] if all_ids is None else all_ids
                fitting = [known for known in all_ids if fnmatchcase(known, id)]
            found |= dict.fromkeys(fitting)
            missing += [] if fitting else [id]
        if missing:
            more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise ValueError(f"{location.name} holds nothing with the id {missing[0]!r}{more}: nothing was removed")
        writer.remove(found)
        writer.commit(None)
    store = location.open()
    return sum(store.count(kind) for kind in KINDS)


def _fill(
    writer: Writer, place: Place, description: IndexDescription, source: ItemSource, predictor: Predictor,
    progress: Progress | None, anew: bool = False, prune: bool = False,
) -> BuildReport:  # fmt: skip
    """Embeds the items that are not stored yet, removes those that are gone if `prune` is set, and commits this."""
    description, number = description.with_root(_root(source))
    items = read_items(source, description.roots[number].prefix, number)
    notes = items.notes
    writer.begin(description, anew)
    writer.drop_unwanted({item.id: item for item in items.items})
    missing = [
        item
        for part in portions(items.items, PORTION)
        for stored in (writer.stored([item.id for item in part]),)
        for item in part
        if stored.get(item.id) != item
    ]
    skipped: list[BadRecord] = [*items.skipped]
    added, kept = 0, len(items.items) - len(missing)
    before = place.open() if missing and description.complete and not anew else None
    renamed: set[str] = set()
    for part in portions(missing, PORTION):
        portion = embed(part, items.root, predictor)
        skipped += portion.skipped
        if before is not None:
            renamed |= _earlier_names(portion, before, renamed)
        if portion.items:
            writer.add(portion)
        added += len(portion.items)
        if progress:
            progress(kept + added, len(items.items))
    if not (added or kept):
        raise ValueError(f"none of the {len(items.items)} pictures can be read; the first: {skipped[0]}")
    gone: tuple[str, ...] = ()
    if description.complete and not anew:
        known = {item.id for item in items.items} | renamed
        path = expand_home(source) if isinstance(source, str | Path) else Path()
        lines = f"{description.roots[number].prefix}{path.name}:" if path.is_file() else ""
        gone = tuple(
            item.id
            for item in writer.all_items()
            if item.source == number and item.id not in known and _is_gone(item, description, lines)
        )
    writer.remove(renamed | {*gone} if prune else renamed)
    # A server keeps no list of what was skipped; a folder shows the line in `info`.
    writer.commit([*skipped, *(BadRecord(str(items.root), note) for note in notes)])
    store = place.open()
    counts = {kind: store.count(kind) for kind in KINDS}
    methods = {kind: store.search_method(kind) for kind in KINDS}
    return BuildReport(
        place.name, added, kept, tuple(skipped), counts, methods, notes, len(renamed),
        () if prune else gone, len(gone) if prune else 0,
    )  # fmt: skip


def _is_gone(item: Item, description: IndexDescription, lines: str) -> bool:
    """Tells whether an item that its source does not name any more is gone.

    Several lists may lie in the folder of one source, so a picture is gone only if its file is, and a text only if its
    id begins with `lines`, the name of the list that is read now.
    """
    if item.kind == "picture":
        return presence(item, description.file(item)) == "gone"
    return bool(lines) and item.id.startswith(lines)


def _earlier_names(portion: Portion, store: Store, taken: Set[str]) -> set[str]:
    """Finds stored pictures that were renamed: their file is gone, and one of the portion has their size and vector.

    A stored picture in `taken` is the earlier name of another one already.
    """
    names: set[str] = set()
    added = {item.id for item in portion.items}
    neighbours = min(NEAR, store.count("picture"))
    for item, vector in zip(portion.items, portion.vectors, strict=True):
        if item.kind != "picture" or not neighbours:
            continue
        near = [id for id, cosine in store.nearest("picture", vector, neighbours) if cosine > EQUAL]
        for known in store.items([id for id in near if id not in taken | names | added]):
            if known.stamp.split(":")[0] == item.stamp.split(":")[0] and not store.description.file(known).exists():
                names.add(known.id)
                break
    return names


def _root(source: ItemSource) -> Path:
    """The folder at which relative paths of a source start."""
    if not isinstance(source, str | Path):
        return Path("/")
    path = expand_home(source).resolve()
    return path.parent if path.is_file() else path


def _identify(predictor: Predictor) -> ModelIdentity:
    """Raises ValueError for a model without trained embeddings."""
    if reason := predictor.missing("embed"):
        raise ValueError(reason)
    return ModelIdentity.of(predictor)


def _complete(writer: Writer, place: Place) -> IndexDescription:
    description = writer.description()
    if description is None or not description.complete:
        place.open()  # raises the precise error
        raise no_index(place.name)
    return description


def _check_same(
    old: IndexDescription, model: ModelIdentity, predictor: Predictor, source: ItemSource, kind: MethodChoice,
    place: str,
) -> None:  # fmt: skip
    """Raises ValueError if a complete index differs in its model, its search method or its first source."""
    if old.model.digest != model.digest:
        old.model.check(predictor, place)
    if kind not in ("auto", old.method):
        raise ValueError(f"{place} is searched by '{old.method}': for '{kind}' build another one")
    root = str(_root(source))
    if root != old.roots[0].folder:
        raise ValueError(
            f"{place} already holds an index of {old.roots[0].folder}: put {root} into it with `diptych index add`, "
            "or name another place"
        )
