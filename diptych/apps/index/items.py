"""Lists what is embedded: the pictures of a folder, or the pictures and texts of a list, read as for training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych.data.cleanup import clean_caption
from diptych.data.columns import LOOKED_AT
from diptych.data.entries import from_entry, name_of, picture_from_entry, plain_path, text_key
from diptych.data.files import files_below, json_lines
from diptych.data.picture_kinds import SUFFIXES, PassedOver, is_picture
from diptych.data.pictures import file_of, why_missing
from diptych.data.record import BadRecord, PlainText
from diptych.data.sources.jsonl import table_of
from diptych.data.sources.listing import SourceListing, paths_below
from diptych.data.sources.table import add_table
from diptych.data.tables import NoTable, Table, open_table
from diptych.reading import expand_home
from diptych.schema import DataConfig

Kind = Literal["picture", "text"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("picture", "text")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or a text."""

    id: str
    """Unique within its index, across both kinds."""
    kind: Kind
    content: str
    """The path of a picture, relative to its source's root or absolute; or the text itself."""
    stamp: str = ""
    """Size and modification time of a picture file, which reveal a changed file. Empty for texts."""
    source: int = 0
    """The number of its source in the index."""


@dataclass(frozen=True)
class SourceItems:
    """The items of one source."""

    root: Path
    """Absolute folder at which relative paths start."""
    items: list[Item]
    skipped: list[BadRecord] = field(default_factory=list)
    """Invalid lines, missing pictures, texts without words, and repeated ids."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The files of a folder that look like pictures and are not read as such."""
    columns: tuple[str, ...] = ()
    """What was found out about the columns of a list by looking, for its user to check."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the source."""
        return (*self.columns, *([str(self.passed_over)] if self.passed_over else []))

    def file(self, item: Item) -> Path:
        """Returns the file of a picture."""
        return self.root / item.content


ItemSource = str | Path | Sequence[Item]
"""A folder, a file that lists pictures and texts, or a sequence of items whose paths are absolute."""


def read_items(source: ItemSource, prefix: str = "", number: int = 0) -> SourceItems:
    """Reads all items of a source in order.

    `prefix` precedes every id that comes from a path or a line number; `number` is the number of the source.

    Raises ValueError if the source does not exist, and if nothing in it can be used.
    """
    if not isinstance(source, str | Path):
        return SourceItems(Path("/"), list(source))
    path = expand_home(source)
    if path.is_dir():
        reader = _SourceReader(path.resolve(), prefix, number)
        reader.read_folder()
    elif path.is_file():
        reader = _SourceReader(path.resolve().parent, prefix, number)
        reader.read_list(path)
    else:
        raise ValueError(f"no folder or file {path}: name a folder of pictures, or a list of pictures and texts")
    if not reader.items:
        first = f"; the first that cannot be used: {reader.skipped[0]}" if reader.skipped else ""
        expected = (
            f"looked for {', '.join(sorted(SUFFIXES))}"
            if path.is_dir()
            else "a line is an object with an `image` or a text"
        )
        raise ValueError(f"nothing to embed in {path}: {expected}{first}{reader.passed_over.after}")
    return SourceItems(reader.root, list(reader.items.values()), reader.skipped, reader.passed_over, reader.columns)


class _SourceReader:
    """Collects the items of one source."""

    def __init__(self, root: Path, prefix: str, number: int) -> None:
        self.root, self.prefix, self.number = root, prefix, number
        self.items: dict[str, Item] = {}
        self.skipped: list[BadRecord] = []
        self.passed_over = PassedOver()
        self.columns: tuple[str, ...] = ()

    def read_folder(self) -> None:
        for file in files_below(self.root, self.passed_over):
            if is_picture(file):
                self._add_picture(self.prefix + file.as_posix(), file.as_posix(), file.as_posix())

    def read_list(self, path: Path) -> None:
        """Reads lines with the keys of this library, or else a table of captioned pictures with any columns."""
        if (table := _table(path.resolve())) is None:
            self._read_lines(path)
            return
        listing = SourceListing()
        try:
            add_table(listing, table, DataConfig())
        except ValueError as error:
            raise ValueError(
                f"{error}\nnothing was read. `diptych data convert table {path} --to FOLDER` takes such settings as"
                " options (--root, --image-column, --caption-column), and writes a list that can be read here"
            ) from None
        self.columns = tuple(listing.notes)
        listed = str(table.place)
        self.skipped += [
            BadRecord(error.record.replace(listed, path.name, 1), error.reason, error.detail)
            for error in listing.skipped
        ]
        for record in listing.records:
            name = record.id.replace(listed, path.name, 1)
            self._add_picture(self.prefix + record.image_id, self._content(record.image), f"{name}, {record.image}")
            for position, text in enumerate(record.captions, start=1):
                self._add_text(f"{self.prefix}{name}#{position}", text, name)

    def _content(self, path: str) -> str:
        """Returns the path of a picture as items have it: from the root, unless it lies elsewhere."""
        return plain_path(path.removeprefix(f"{self.root}{os.sep}"))

    def _read_lines(self, path: Path) -> None:
        for line, entry in json_lines(path):
            name = f"{path.name}:{line.rpartition(':')[2]}"
            try:
                if isinstance(entry, BadRecord):
                    raise BadRecord(name, entry.reason, entry.detail)
                self._read_line(entry, name)
            except BadRecord as error:
                self.skipped.append(error)

    def _read_line(self, entry: Any, name: str) -> None:
        """Adds the pictures and texts of one line. Raises BadRecord for an invalid line."""
        record = from_entry(entry, name) if text_key(entry) else picture_from_entry(entry, name)
        line_id = name_of(entry, "id", name)
        named = record.image_ids
        record, paths = paths_below(record, self.root)
        for image, place, own_id, image_id in zip(record.images, paths, named, record.image_ids, strict=True):
            id = image_id if own_id != plain_path(image) else self.prefix + image_id
            self._add_picture(id, self._content(place), f"{name}, {image}")
        base = line_id if line_id is not None else self.prefix + name
        for position, text in enumerate(record.texts, start=1):
            self._add_text(base if isinstance(record, PlainText) else f"{base}#{position}", text, name)

    def _add_picture(self, id: str, path: str, name: str) -> None:
        place = str(self.root / path)
        try:
            status = os.stat(file_of(place))  # noqa: PTH116 — Path.stat takes seconds longer for a million files
        except (OSError, ValueError) as error:
            self.skipped.append(BadRecord(name, "picture missing", why_missing(place, error)))
            return
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
        self._add(Item(id, "picture", path, stamp, self.number), name)

    def _add_text(self, id: str, text: str, name: str) -> None:
        if clean_caption(text, max_words=len(text) + 1):
            self._add(Item(id, "text", text, source=self.number), name)
        else:
            self.skipped.append(BadRecord(name, "text without words", repr(text)))

    def _add(self, item: Item, name: str) -> None:
        if reason := _unstorable(item.id + item.content):
            self.skipped.append(BadRecord(name.encode(errors="backslashreplace").decode(), reason))
            return
        known = self.items.setdefault(item.id, item)
        if known is not item and known != item:  # a picture that several lines name is one item
            self.skipped.append(BadRecord(name, "id repeated", item.id))


def _table(path: Path) -> Table | None:
    """Returns the table that a list is; None for lines with the keys of this library."""
    table = None
    with suppress(NoTable):
        table = open_table(path)
    if table is None or table.kind == "lines" or (table.kind == "separated" and _has_objects(path)):
        return table_of(path, DataConfig())
    return table


def _has_objects(path: Path) -> bool:
    return any(isinstance(entry, dict) for _, entry in islice(json_lines(path), LOOKED_AT))


def _unstorable(text: str) -> str | None:
    """Says why some backend cannot store a text; None if all can. File names may hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not Unicode"
    return "a zero byte in it" if "\0" in text else None


def portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Splits a sequence into slices of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
