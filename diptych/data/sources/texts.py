"""Streams texts without pictures from files of any size. Memory holds only where each text begins: 12 bytes per text.

`.txt` files hold one text per line, `.jsonl` files one `{"id": "…", "text": "…"}` per line, and `.tar` shards one text
in each `.txt` member or in the `text` of a `.json` member. A file is opened for each text, so that worker processes
share nothing.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from jaxtyping import Bool, Int, UInt

from diptych.data.columns import LOOKED_AT, NAMED_LINES, NoColumns, choose_columns, kind_of, lines_with_names
from diptych.data.entries import from_entry
from diptych.data.files import decoded, files_below, line_content, lines_of, parsed, split_paths
from diptych.data.record import BadRecord, PlainText
from diptych.data.shards.listing import spelled_out
from diptych.data.skips import list_errors
from diptych.data.sources.listing import SourceListing
from diptych.data.splits import draw_number, held_out_count, own_path
from diptych.data.tables import NoTable, open_table
from diptych.data.tar import members, tar_members
from diptych.printable import printable
from diptych.schema import SPLITS, DataConfig, Split

LAYOUT = "data.source=texts reads .txt files (one text a line), .jsonl files, .tar shards, and folders of them"
LARGEST_TEXT = 1 << 20
"""A text may have at most this many bytes."""


@dataclass(frozen=True, eq=False)
class TextFile:
    """Locates the texts of one file, in its order."""

    path: Path
    starts: Int[np.ndarray, "n"]
    """The position of each text in bytes; in a shard, the position of its header."""
    lines: UInt[np.ndarray, "n"]
    """The line of each text, counted from 1; 0 in a shard, whose members have names."""

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[PlainText]:
        with self.path.open("rb") as stream:
            for start, line in zip(self.starts.tolist(), self.lines.tolist(), strict=True):
                yield self._read(stream, start, line)

    def __getitem__(self, index: int) -> PlainText:
        with self.path.open("rb") as stream:
            return self._read(stream, int(self.starts[index]), int(self.lines[index]))

    def select(self, chosen: Bool[np.ndarray, "n"]) -> TextFile:
        """Returns the texts for which `chosen` is true."""
        return TextFile(self.path, self.starts[chosen], self.lines[chosen])

    def _read(self, stream: BinaryIO, start: int, line: int) -> PlainText:
        """Reads the text at a position. Raises BadRecord if the file has changed since it was opened."""
        stream.seek(start)
        if line:
            return LINES[_suffix(self.path)](line_content(stream.readline(), line), f"{self.path}:{line}")
        try:
            member = next(members(stream, start), None)
            record = _read_member(stream, member, self.path) if member is not None else None
        except (tarfile.TarError, OSError) as error:
            raise BadRecord(str(self.path), "text unreadable", str(error)) from None
        if record is None:
            raise BadRecord(str(self.path), "text unreadable", "the shard has changed")
        return record


@dataclass(frozen=True, eq=False)
class TextSource(Sequence[PlainText]):
    """Serves a split of texts, in the order of files and lines."""

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
    """Opens a split of the texts that `data.path` names. Raises ValueError.

    `data.validation_path` and `data.test_path` decide where they are set; such splits tolerate no broken text.
    Otherwise `data.held_out` of the texts make up each of the two splits. A hash of each text decides which, so that
    equal texts fall into one split.
    """
    path = own_path(config, split)
    source = _divided(config)[split] if path is None else _scan(_stamped_files(path)).source
    if path is not None and source.skipped:
        raise ValueError(
            f"{len(source.skipped)} texts of the {split} split in {path} cannot be used;"
            f" evaluation tolerates none:\n{list_errors(source.skipped)}"
        )
    if not len(source):
        reasons = f"\n{len(source.skipped)} could not be used:\n{list_errors(source.skipped)}" if source.skipped else ""
        where = path or f"{config.path}, of which data.held_out={config.held_out:g} is held out,"
        raise ValueError(f"the {split} split is empty: {where} holds no text for it{reasons}")
    return source


def read_splits(config: DataConfig) -> dict[Split, SourceListing]:
    """Reads all splits, divided as by `open_texts`, each with its broken texts. Raises ValueError."""
    divided = _divided(config)
    paths = {split: own_path(config, split) for split in SPLITS}
    sources = {
        split: divided[split] if path is None else _scan(_stamped_files(path)).source for split, path in paths.items()
    }
    return {
        split: SourceListing(source, list(source.skipped), drawn=paths[split] is None and split != "train")
        for split, source in sources.items()
    }


# --------------------------------------------------------------------------- splits

StampedFile = tuple[Path, int, int]
"""A file with its size and its time. What was read of the file is valid as long as they do not change."""


@dataclass(frozen=True, eq=False)
class _Scan:
    """Holds all texts of some files, with the number of each text by which splits are drawn."""

    source: TextSource
    draws: UInt[np.ndarray, "N"]


def _divided(config: DataConfig) -> dict[Split, TextSource]:
    if config.path is None:
        raise ValueError("data.source=texts needs data.path: where the texts are")
    if config.root is not None:
        raise ValueError("data.root says nothing here: texts lead to no pictures")
    drawn = tuple(split for split in SPLITS if split != "train" and own_path(config, split) is None)
    return _drawn_splits(_stamped_files(config.path), config.held_out, drawn)


@lru_cache(maxsize=2)
def _drawn_splits(files: tuple[StampedFile, ...], share: float, drawn: tuple[Split, ...]) -> dict[Split, TextSource]:
    """Divides the texts of some files into all splits at once, so that opening three splits reads the files once."""
    scan = _scan(files)
    groups = np.unique(scan.draws)
    count = held_out_count(len(groups), share)
    # Validation takes the texts with the `count` smallest numbers, test the next ones.
    turn = np.searchsorted(groups, scan.draws) // count if count else np.full(len(scan.draws), 2)
    held = {split: (turn == number) & (split in drawn) for number, split in enumerate(("validation", "test"))}
    held["train"] = ~(held["validation"] | held["test"])
    ends = np.cumsum([0, *map(len, scan.source.files)])
    return {
        split: TextSource(
            tuple(
                file.select(held[split][start : start + len(file)])
                for file, start in zip(scan.source.files, ends, strict=False)
            ),
            scan.source.skipped if split == "train" else (),
        )
        for split in SPLITS
    }


def _stamped_files(paths: str) -> tuple[StampedFile, ...]:
    """Returns the files that a setting names, in order and each once. Raises ValueError."""
    files = [
        file
        for path in split_paths(paths)
        for name in spelled_out(path)
        for file in _not_tables(_text_files(Path(name)))
    ]
    return tuple((file, (state := file.stat()).st_size, state.st_mtime_ns) for file in dict.fromkeys(files))


def _text_files(place: Path) -> list[Path]:
    if place.is_dir():
        files = [place / file for file in files_below(place) if _suffix(file) in SCANS]
        if not files:
            raise ValueError(f"no text files in {place}: {LAYOUT}")
        return files
    if not place.is_file():
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    if _suffix(place) not in SCANS:
        raise ValueError(f"{place} is none of {', '.join(SCANS)}: {LAYOUT}")
    return [place]


def _not_tables(files: Iterable[Path]) -> Iterator[Path]:
    """Yields the files. Raises ValueError for a list or table of pictures, whose paths would be taken for texts."""
    for file in files:
        if _suffix(file) == ".txt":
            _check_texts(file)
        yield file


def _check_texts(file: Path) -> None:
    """Raises ValueError if the first lines of a text file name pictures."""
    lines = [content.decode(errors="replace") for _, _, content in islice(lines_of(file), LOOKED_AT)]
    paths = [line for line in lines if kind_of(line) in ("path", "address") and " " not in line]
    if len(paths) > len(lines) / 2:
        raise ValueError(
            f"{file} holds no texts: {len(paths)} of its first lines are paths or addresses, such as"
            f" {printable(paths[0][:60])}"
        )
    with suppress(NoTable, NoColumns):
        table = open_table(file)
        columns = choose_columns(table.columns, table.first_rows())
        raise ValueError(f"{file} is {table.form}, with pictures in `{columns.image}`: read it with data.source=table")
    if named := lines_with_names(lines):
        raise ValueError(
            f"{file} is a list of pictures: {len(named)} of its first {len(lines)} lines begin with the name of one,"
            f" such as {printable(named[0][:60])!r}. {NAMED_LINES}"
        )


# --------------------------------------------------------------------------- reading


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def _scan(files: tuple[StampedFile, ...]) -> _Scan:
    """Reads each file once, and keeps the position and the hash of each text."""
    located: list[TextFile] = []
    skipped: list[BadRecord] = []
    draws = array("Q")
    for file, *_ in files:
        starts, lines = array("q"), array("I")
        for text in SCANS[_suffix(file)](file):
            if isinstance(text, BadRecord):
                skipped.append(text)
                continue
            start, line, content = text
            starts.append(start)
            lines.append(line)
            draws.append(draw_number(content))
        located.append(TextFile(file, np.array(starts, np.int64), np.array(lines, np.uint32)))
    return _Scan(TextSource(tuple(located), tuple(skipped)), np.array(draws, np.uint64))


ScannedText = tuple[int, int, str] | BadRecord
"""The position, the line and the content of a text, or the reason why it cannot be used."""


def _scan_lines(file: Path) -> Iterator[ScannedText]:
    read = LINES[_suffix(file)]
    for start, number, content in lines_of(file):
        try:
            yield start, number, read(content, f"{file}:{number}").text
        except BadRecord as error:
            yield error


def _scan_shard(file: Path) -> Iterator[ScannedText]:
    """Yields the texts of a shard. If the shard is broken, the texts before the break are used."""
    with file.open("rb") as stream:
        try:
            for member in tar_members(file):
                try:
                    if record := _read_member(stream, member, file):
                        yield member.offset, 0, record.text
                except BadRecord as error:
                    yield error
        except (tarfile.TarError, OSError, EOFError) as error:
            yield BadRecord(str(file), "shard broken", str(error))


def _read_member(stream: BinaryIO, member: tarfile.TarInfo, shard: Path) -> PlainText | None:
    """Returns the text of a shard's member, or None if it holds none. Raises BadRecord."""
    read = MEMBERS.get(_suffix(Path(member.name)))
    if read is None:
        return None
    stream.seek(member.offset_data)
    return read(stream.read(min(member.size, LARGEST_TEXT + 1)), f"{shard}/{member.name}")


def _read_plain(content: bytes, name: str) -> PlainText:
    """Reads a line or a member that consists of the text. Raises BadRecord."""
    text = decoded(_checked_length(content, name), name)
    if not text.strip():
        raise BadRecord(name, "text empty")
    return PlainText(name, text)


def _read_object(content: bytes, name: str) -> PlainText:
    """Reads a line `{"id": …, "text": …}`. Raises BadRecord."""
    record = from_entry(parsed(_checked_length(content, name), name), name)
    if not isinstance(record, PlainText):
        raise BadRecord(name, "another task", 'a line of texts is {"text": …} without an image')
    if not record.text.strip():
        raise BadRecord(name, "text empty")
    return record


def _read_metadata(content: bytes, name: str) -> PlainText | None:
    """Reads the `text` of a JSON member. A member without it describes other members. Raises BadRecord."""
    entry = parsed(_checked_length(content, name), name)
    return _read_object(content, name) if isinstance(entry, Mapping) and "text" in entry else None


def _checked_length(content: bytes, name: str) -> bytes:
    if len(content) > LARGEST_TEXT:
        raise BadRecord(name, "text too long", f"more than {LARGEST_TEXT:,} bytes")
    return content


LINES: dict[str, Callable[[bytes, str], PlainText]] = {".txt": _read_plain, ".jsonl": _read_object}
"""The function that reads a line, by the suffix of its file."""
MEMBERS: dict[str, Callable[[bytes, str], PlainText | None]] = {".txt": _read_plain, ".json": _read_metadata}
"""The function that reads a member of a shard, by the suffix of its name."""
SCANS: dict[str, Callable[[Path], Iterator[ScannedText]]] = {
    ".txt": _scan_lines,
    ".jsonl": _scan_lines,
    ".tar": _scan_shard,
}
"""The function that yields the texts of a file, by the file's suffix."""
