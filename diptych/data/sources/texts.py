"""Texts without pictures, streamed: of files of any size, memory holds where each text begins, twelve bytes a text.

`.txt` files hold a text a line, `.jsonl` files `{"id": "…", "text": "…"}` a line, `.tar` shards a text in each `.txt`
member or in the `text` of a `.json` one. Files are opened for one text at a time, so nothing is shared between workers.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from jaxtyping import Bool, Int, UInt

from diptych.data.record import BadRecord, PlainText, from_entry
from diptych.data.shards.listing import spelled_out
from diptych.data.sources.files import (
    Found,
    decoded,
    draw_number,
    held_out_count,
    line_content,
    lines_of,
    listing,
    parsed,
    parts_of,
    tar_members,
)
from diptych.data.sources.folder import files_below
from diptych.schema import SPLITS, DataConfig, Split

LAYOUT = "data.source=texts reads .txt files (one text a line), .jsonl files, .tar shards, and folders of them"
LARGEST_TEXT = 1 << 20
"""Bytes of a text; more is no text."""


@dataclass(frozen=True, eq=False)
class TextFile:
    """One file's texts by their places, in its order."""

    path: Path
    starts: Int[np.ndarray, "n"]
    """Bytes before each text; before its header in a shard."""
    lines: UInt[np.ndarray, "n"]
    """Counted from 1; 0 in a shard, whose members have names."""

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[PlainText]:
        with self.path.open("rb") as stream:
            for start, line in zip(self.starts.tolist(), self.lines.tolist(), strict=True):
                yield self._read(stream, start, line)

    def __getitem__(self, index: int) -> PlainText:
        with self.path.open("rb") as stream:
            return self._read(stream, int(self.starts[index]), int(self.lines[index]))

    def at(self, chosen: Bool[np.ndarray, "n"]) -> TextFile:
        """Some of the texts."""
        return TextFile(self.path, self.starts[chosen], self.lines[chosen])

    def _read(self, stream: BinaryIO, start: int, line: int) -> PlainText:
        """Raises BadRecord where the file has changed since it was opened."""
        stream.seek(start)
        if line:
            return LINES[_kind(self.path)](line_content(stream.readline(), line), f"{self.path}:{line}")
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                found = _member(stream, archive.next(), self.path)
        except (tarfile.TarError, OSError) as error:
            raise BadRecord(str(self.path), "text unreadable", str(error)) from None
        if found is None:
            raise BadRecord(str(self.path), "text unreadable", "the shard has changed")
        return found


@dataclass(frozen=True, eq=False)
class TextSource(Sequence[PlainText]):
    """A split of texts, in the order of files and lines."""

    files: tuple[TextFile, ...]
    skipped: tuple[BadRecord, ...] = ()

    @cached_property
    def _ends(self) -> Int[np.ndarray, "F"]:
        return np.cumsum([len(file) for file in self.files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.files else 0

    def __iter__(self) -> Iterator[PlainText]:
        for file in self.files:
            yield from file

    @overload
    def __getitem__(self, index: int) -> PlainText: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlainText]: ...
    def __getitem__(self, index: int | slice) -> PlainText | list[PlainText]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        number = int(np.searchsorted(self._ends, place, side="right"))
        file = self.files[number]
        return file[place - int(self._ends[number]) + len(file)]

    def record(self, index: int) -> PlainText:
        return self[index]

    def pictures(self, record: PlainText) -> tuple[()]:
        return ()


def open_texts(config: DataConfig, split: Split) -> TextSource:
    """A split of the texts that `data.path` leads to. Raises ValueError.

    `data.validation_path` and `data.test_path` decide where they are given, and then no text may be broken. Otherwise
    `data.held_out` of the texts make up each of these splits, drawn by what they say: equal texts fall into one split.
    """
    own = _own_path(config, split)
    source = _divided(config)[split] if own is None else _read(_stamped(own)).source
    if own is not None and source.skipped:
        raise ValueError(
            f"{len(source.skipped)} texts of the {split} split in {own} cannot be used;"
            f" evaluation tolerates none:\n{listing(source.skipped)}"
        )
    if not len(source):
        reasons = f"\n{len(source.skipped)} could not be used:\n{listing(source.skipped)}" if source.skipped else ""
        where = own or f"{config.path}, of which data.held_out={config.held_out:g} is held out,"
        raise ValueError(f"the {split} split is empty: {where} holds no text for it{reasons}")
    return source


def read_splits(config: DataConfig) -> dict[Split, Found]:
    """All that is there, divided as `open_texts` does, with what is wrong with each part. Raises ValueError."""
    divided = _divided(config)
    own = {split: _own_path(config, split) for split in SPLITS}
    sources = {split: divided[split] if path is None else _read(_stamped(path)).source for split, path in own.items()}
    return {
        split: Found(source, list(source.skipped), drawn=own[split] is None and split != "train")
        for split, source in sources.items()
    }


def _own_path(config: DataConfig, split: Split) -> str | None:
    return {"validation": config.validation_path, "test": config.test_path}.get(split)


# --------------------------------------------------------------------------- splits

Stamp = tuple[Path, int, int]
"""A file with its size and its time: what was read of it holds as long as they do."""


@dataclass(frozen=True, eq=False)
class _Read:
    """All texts of some files, with a number for each by which splits are drawn."""

    source: TextSource
    draws: UInt[np.ndarray, "N"]


def _divided(config: DataConfig) -> dict[Split, TextSource]:
    if config.path is None:
        raise ValueError("data.source=texts needs data.path: where the texts are")
    if config.root is not None:
        raise ValueError("data.root says nothing here: texts lead to no pictures")
    drawn = tuple(split for split in SPLITS if split != "train" and _own_path(config, split) is None)
    return _drawn(_stamped(config.path), config.held_out, drawn)


@lru_cache(maxsize=2)
def _drawn(stamped: tuple[Stamp, ...], share: float, drawn: tuple[Split, ...]) -> dict[Split, TextSource]:
    """Every split of one path: opening three splits reads the files once."""
    read = _read(stamped)
    groups = np.unique(read.draws)
    count = held_out_count(len(groups), share)
    turn = np.searchsorted(groups, read.draws) // count if count else np.full(len(read.draws), 2)
    held = {split: (turn == number) & (split in drawn) for number, split in enumerate(("validation", "test"))}
    held["train"] = ~(held["validation"] | held["test"])
    ends = np.cumsum([0, *map(len, read.source.files)])
    return {
        split: TextSource(
            tuple(
                file.at(held[split][start : start + len(file)])
                for file, start in zip(read.source.files, ends, strict=False)
            ),
            read.source.skipped if split == "train" else (),
        )
        for split in SPLITS
    }


def _stamped(paths: str) -> tuple[Stamp, ...]:
    """The files of a setting, in order. Raises ValueError."""
    files = [file for path in parts_of(paths) for name in spelled_out(path) for file in _files(Path(name))]
    return tuple((file, (state := file.stat()).st_size, state.st_mtime_ns) for file in dict.fromkeys(files))


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        files = [place / file for file in files_below(place) if _kind(file) in SCANS]
        if not files:
            raise ValueError(f"no text files in {place}: {LAYOUT}")
        return files
    if not place.is_file():
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    if _kind(place) not in SCANS:
        raise ValueError(f"{place} is none of {', '.join(SCANS)}: {LAYOUT}")
    return [place]


# --------------------------------------------------------------------------- reading


def _kind(file: Path) -> str:
    return file.suffix.lower()


def _read(stamped: tuple[Stamp, ...]) -> _Read:
    """All texts of some files: each is read once, and its place kept."""
    files: list[TextFile] = []
    skipped: list[BadRecord] = []
    draws = array("Q")
    for file, *_ in stamped:
        starts, lines = array("q"), array("I")
        for found in SCANS[_kind(file)](file):
            if isinstance(found, BadRecord):
                skipped.append(found)
                continue
            start, line, text = found
            starts.append(start)
            lines.append(line)
            draws.append(draw_number(text))
        files.append(TextFile(file, np.array(starts, np.int64), np.array(lines, np.uint32)))
    return _Read(TextSource(tuple(files), tuple(skipped)), np.array(draws, np.uint64))


Scanned = tuple[int, int, str] | BadRecord
"""Where a text begins, its line and what it says; or what is wrong."""


def _scan_lines(file: Path) -> Iterator[Scanned]:
    read = LINES[_kind(file)]
    for start, number, content in lines_of(file):
        try:
            yield start, number, read(content, f"{file}:{number}").text
        except BadRecord as error:
            yield error


def _scan_shard(file: Path) -> Iterator[Scanned]:
    """A shard that is broken is named, and what could be read of it is kept."""
    with file.open("rb") as stream:
        try:
            for member in tar_members(file):
                try:
                    if found := _member(stream, member, file):
                        yield member.offset, 0, found.text
                except BadRecord as error:
                    yield error
        except (tarfile.TarError, OSError, EOFError) as error:
            yield BadRecord(str(file), "shard broken", str(error))


def _member(stream: BinaryIO, member: tarfile.TarInfo | None, shard: Path) -> PlainText | None:
    """What a member of a shard says, if it holds a text. Raises BadRecord."""
    read = MEMBERS.get(_kind(Path(member.name))) if member is not None else None
    if member is None or read is None:
        return None
    stream.seek(member.offset_data)
    return read(stream.read(min(member.size, LARGEST_TEXT + 1)), f"{shard}/{member.name}")


def _plain(content: bytes, name: str) -> PlainText:
    """A line, or a whole member. Raises BadRecord."""
    text = decoded(_bounded(content, name), name)
    if not text.strip():
        raise BadRecord(name, "text empty")
    return PlainText(name, text)


def _object(content: bytes, name: str) -> PlainText:
    """`{"id": …, "text": …}`. Raises BadRecord."""
    record = from_entry(parsed(_bounded(content, name), name), name)
    if not isinstance(record, PlainText):
        raise BadRecord(name, "another task", 'a line of texts is {"text": …} without an image')
    if not record.text.strip():
        raise BadRecord(name, "text empty")
    return record


def _metadata(content: bytes, name: str) -> PlainText | None:
    """A member's `text`; what has none says something of other members."""
    entry = parsed(_bounded(content, name), name)
    return _object(content, name) if isinstance(entry, Mapping) and "text" in entry else None


def _bounded(content: bytes, name: str) -> bytes:
    if len(content) > LARGEST_TEXT:
        raise BadRecord(name, "text too long", f"more than {LARGEST_TEXT:,} bytes")
    return content


LINES: dict[str, Callable[[bytes, str], PlainText]] = {".txt": _plain, ".jsonl": _object}
"""What reads a line, by its file's suffix."""
MEMBERS: dict[str, Callable[[bytes, str], PlainText | None]] = {".txt": _plain, ".json": _metadata}
"""What reads a member of a shard; None where it holds no text."""
SCANS: dict[str, Callable[[Path], Iterator[Scanned]]] = {
    ".txt": _scan_lines,
    ".jsonl": _scan_lines,
    ".tar": _scan_shard,
}
"""What goes through a file."""
