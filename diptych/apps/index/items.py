"""What is embedded: the pictures of a folder, or the pictures and texts of a JSONL file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych.data.cleanup import clean_caption
from diptych.data.entries import from_entry, name_of, picture_from_entry, plain_path
from diptych.data.files import files_below, json_lines
from diptych.data.pictures import SUFFIXES, file_of
from diptych.data.record import BadRecord, PlainText

Kind = Literal["picture", "text"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("picture", "text")
TEXT_KEYS = ("captions", "caption", "hypothesis", "question", "statement", "phrase", "text")
"""Keys of a line that hold a text, as diptych/data/entries.py has them."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or a text."""

    id: str
    """Unique in its index, over both kinds."""
    kind: Kind
    content: str
    """A picture's path, from its source's root where that is relative; else the text."""
    stamp: str = ""
    """Of a picture file: its size and time, so that a changed one is noticed. A text is its own."""
    source: int = 0
    """The number of its source in the index."""


@dataclass(frozen=True)
class Items:
    """What a source holds."""

    root: Path
    """Where relative paths start: absolute."""
    items: list[Item]
    skipped: list[BadRecord] = field(default_factory=list)
    """Lines that are no record, pictures that are not there, texts without words, ids that are taken."""

    def file(self, item: Item) -> Path:
        """The file of a picture."""
        return self.root / item.content


Given = str | Path | Sequence[Item]
"""A folder, a JSONL file, or items made by hand, whose paths are absolute."""


def read_items(source: Given, prefix: str = "", number: int = 0) -> Items:
    """All that a source holds, in its order. `prefix` goes before every id that comes from a path or a line's number;
    `number` is that of the source.

    Raises ValueError for what is neither, and for a source in which nothing can be used.
    """
    if not isinstance(source, str | Path):
        return Items(Path("/"), list(source))
    path = Path(source)
    if path.is_dir():
        reading = _Reading(path.resolve(), prefix, number)
        reading.folder()
    elif path.is_file():
        reading = _Reading(path.resolve().parent, prefix, number)
        reading.jsonl(path)
    else:
        raise ValueError(f"no folder or file {path}: name a folder of pictures, or a JSONL file of pictures and texts")
    if not reading.found:
        first = f"; the first that cannot be used: {reading.skipped[0]}" if reading.skipped else ""
        looked = f"looked for {', '.join(sorted(SUFFIXES))}" if path.is_dir() else "a line is an object with an `image`"
        raise ValueError(f"nothing to embed in {path}: {looked}{' or a text' if path.is_file() else ''}{first}")
    return Items(reading.root, list(reading.found.values()), reading.skipped)


class _Reading:
    """Gathers the items of one source."""

    def __init__(self, root: Path, prefix: str, number: int) -> None:
        self.root, self.prefix, self.number = root, prefix, number
        self.found: dict[str, Item] = {}
        self.skipped: list[BadRecord] = []

    def folder(self) -> None:
        for file in files_below(self.root):
            if file.suffix.lower() in SUFFIXES:
                self._picture(self.prefix + file.as_posix(), file.as_posix(), file.as_posix())

    def jsonl(self, path: Path) -> None:
        for line, entry in json_lines(path):
            name = f"{path.name}:{line.rpartition(':')[2]}"
            try:
                if isinstance(entry, BadRecord):
                    raise BadRecord(name, entry.reason, entry.detail)
                self._line(entry, name)
            except BadRecord as error:
                self.skipped.append(error)

    def _line(self, entry: Any, name: str) -> None:
        """The pictures of a line, each once in all lines, and its texts. Raises BadRecord."""
        texts = isinstance(entry, dict) and any(key in entry for key in TEXT_KEYS)
        record = from_entry(entry, name) if texts else picture_from_entry(entry, name)
        named = name_of(entry, "id", name)
        for image, identity in zip(record.images, record.image_ids, strict=True):
            own = identity if identity != plain_path(image) else self.prefix + identity
            self._picture(own, plain_path(image), f"{name}, {image}")
        base = named if named is not None else self.prefix + name
        for place, text in enumerate(record.texts, start=1):
            self._text(base if isinstance(record, PlainText) else f"{base}#{place}", text, name)

    def _picture(self, id: str, path: str, name: str) -> None:
        try:
            status = os.stat(file_of(str(self.root / path)))  # noqa: PTH116 — a million of these take seconds
        except (OSError, ValueError) as error:
            self.skipped.append(BadRecord(name, "picture missing", str(error)))
            return
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
        self._keep(Item(id, "picture", path, stamp, self.number), name)

    def _text(self, id: str, text: str, name: str) -> None:
        if clean_caption(text, max_words=len(text) + 1):
            self._keep(Item(id, "text", text, source=self.number), name)
        else:
            self.skipped.append(BadRecord(name, "text without words", repr(text)))

    def _keep(self, item: Item, name: str) -> None:
        if why := _unfit(item.id + item.content):
            self.skipped.append(BadRecord(name.encode(errors="backslashreplace").decode(), why))
            return
        taken = self.found.setdefault(item.id, item)
        if taken is not item and taken != item:  # one picture in many lines is one picture
            self.skipped.append(BadRecord(name, "id repeated", item.id))


def _unfit(text: str) -> str | None:
    """Why a text cannot be stored everywhere, or None. File names can hold half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not Unicode"
    return "a zero byte in it" if "\0" in text else None


def portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
