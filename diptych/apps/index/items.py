"""Lists what is embedded: the pictures of a folder, or the pictures and texts of a JSONL file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych.data.cleanup import clean_caption
from diptych.data.entries import from_entry, name_of, picture_from_entry, plain_path
from diptych.data.files import files_below, json_lines
from diptych.data.picture_kinds import SUFFIXES, PassedOver, is_picture
from diptych.data.pictures import file_of, why_missing
from diptych.data.record import BadRecord, PlainText
from diptych.reading import expand_home

Kind = Literal["picture", "text"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("picture", "text")
TEXT_KEYS = ("captions", "caption", "hypothesis", "question", "statement", "phrase", "text")
"""Keys of a JSONL line that hold a text, as in diptych/data/entries.py."""


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

    def file(self, item: Item) -> Path:
        """Returns the file of a picture."""
        return self.root / item.content


ItemSource = str | Path | Sequence[Item]
"""A folder, a JSONL file, or a list of items whose paths are absolute."""


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
        reader.read_jsonl(path)
    else:
        raise ValueError(f"no folder or file {path}: name a folder of pictures, or a JSONL file of pictures and texts")
    if not reader.items:
        first = f"; the first that cannot be used: {reader.skipped[0]}" if reader.skipped else ""
        expected = (
            f"looked for {', '.join(sorted(SUFFIXES))}"
            if path.is_dir()
            else "a line is an object with an `image` or a text"
        )
        raise ValueError(f"nothing to embed in {path}: {expected}{first}{reader.passed_over.after}")
    return SourceItems(reader.root, list(reader.items.values()), reader.skipped, reader.passed_over)


class _SourceReader:
    """Collects the items of one source."""

    def __init__(self, root: Path, prefix: str, number: int) -> None:
        self.root, self.prefix, self.number = root, prefix, number
        self.items: dict[str, Item] = {}
        self.skipped: list[BadRecord] = []
        self.passed_over = PassedOver()

    def read_folder(self) -> None:
        for file in files_below(self.root, self.passed_over):
            if is_picture(file):
                self._add_picture(self.prefix + file.as_posix(), file.as_posix(), file.as_posix())

    def read_jsonl(self, path: Path) -> None:
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
        has_text = isinstance(entry, dict) and any(key in entry for key in TEXT_KEYS)
        record = from_entry(entry, name) if has_text else picture_from_entry(entry, name)
        line_id = name_of(entry, "id", name)
        for image, image_id in zip(record.images, record.image_ids, strict=True):
            id = image_id if image_id != plain_path(image) else self.prefix + image_id
            self._add_picture(id, plain_path(image), f"{name}, {image}")
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
