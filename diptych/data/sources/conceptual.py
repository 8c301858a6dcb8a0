"""Reads Conceptual Captions: the TSV file of CC3M (caption, address) or CC12M (address, caption) and fetched pictures.

A picture file is named after its row, counted from 0. It may have leading zeros and lie in any folder: `17.jpg`,
`000000017.jpg`. Downloaders also append the CRC-32 of the address: `17_3632233996`. Many addresses are dead; rows
without a picture are skipped and counted.

A header row, which some guides tell people to add, is recognised and not counted. Nothing but the number pairs a
picture that has no CRC-32 with its row, so everything that hints at a shift is refused or noted: above all a row that
some programs count and others do not, such as an empty one.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.columns import is_address, is_header_name
from diptych.data.files import decoded, existing, files_below, line_content
from diptych.data.picture_kinds import is_picture
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=conceptual reads a TSV of captions and addresses"
_NAME = re.compile(r"(\d+)(?:_(\d+))?")


def read_conceptual(path: str, config: DataConfig) -> SourceListing:
    """Reads all rows. Pictures lie below `config.root` or else below the file's folder.

    Raises ValueError, also if the numbers of the pictures cannot be those of the rows.
    """
    file = existing(path, LAYOUT)
    root = Path(config.root or file.parent)
    pictures = _pictures(root)
    read = partial(_read, pictures=pictures)
    listing = SourceListing()
    header, rows, last = 0, 0, 0
    doubt: tuple[str, int] | None = None
    """What to say of the first row that may not count, and how many pairs stand before it."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            row = line_content(line, number, b"\r\n")
            if number == 1 and _is_header(row):
                header = 1
                continue
            if doubt is None and _may_not_count(row):
                doubt = _doubt(row, path, number), len(listing.records)
            listing.add((rows, row), f"{path}:{number}", root, config.max_words, read)
            rows += 1
            last = rows if row.strip() else last
    _check_numbers(pictures, last, header, path)
    if doubt is not None and _unproven(listing.records[doubt[1] :]):
        raise ValueError(doubt[0])
    listing.notes += _notes(listing, pictures, header, path)
    return listing


def _pictures(root: Path) -> dict[int, list[Path]]:
    """Returns the files that are named after each row."""
    named: defaultdict[int, list[Path]] = defaultdict(list)
    for file in files_below(root):
        if (match := _NAME.fullmatch(file.stem)) and (not file.suffix or is_picture(file)):
            named[int(match[1])].append(file)
    return dict(named)


def _read(numbered: Any, name: str, pictures: dict[int, list[Path]]) -> Record:
    number, row = numbered
    caption, url = _columns(row, name)
    if not (named := pictures.get(number)):
        raise BadRecord(name, "picture missing", url)
    files = [file for file in named if (check := _check_of(file)) is None or check == zlib.crc32(url.encode())]
    if not files:
        raise BadRecord(name, "picture of another address", f"{named[0]} is not of {url}")
    if len(files) > 1:
        raise BadRecord(name, "sample ambiguous", f"{' and '.join(map(str, files))} have the number of the row")
    return Record(name, files[0].as_posix(), (caption,), url)


def _check_of(file: Path) -> int | None:
    """Returns the CRC-32 of an address that a picture's name holds, if there is one."""
    match = _NAME.fullmatch(file.stem)
    return int(match[2]) if match and match[2] else None


def _columns(row: bytes, name: str) -> tuple[str, str]:
    """Splits a row into caption and address. Raises BadRecord."""
    columns = decoded(row, name).split("\t")
    if len(columns) != 2:
        raise BadRecord(name, "row wrong", f"{len(columns)} columns, not a caption and an address")
    first, second = columns
    if is_address(first) == is_address(second):
        number = "two addresses" if is_address(first) else "no address"
        raise BadRecord(name, "row wrong", f"{number}, not a caption and an address: {first[:40]!r}, {second[:40]!r}")
    return (second, first) if is_address(first) else (first, second)


# --------------------------------------------------------------------------- pairing by number


def _is_header(row: bytes) -> bool:
    """Returns whether the first row names the columns."""
    columns = row.decode(errors="replace").split("\t")
    return len(columns) == 2 and not any(map(is_address, columns)) and any(map(is_header_name, columns))


def _may_not_count(row: bytes) -> bool:
    """Returns whether a row is none of a caption and an address. Some programs count such rows, others leave them out.

    Counting a header as row 0, for example, would give every picture its neighbour's caption.
    """
    columns = row.decode(errors="replace").split("\t")
    return len(columns) != 2 or not any(map(is_address, columns))


def _doubt(row: bytes, path: str, number: int) -> str:
    """Says what is to be done about a row that may not count."""
    columns = row.decode(errors="replace").split("\t")
    shown = ", ".join(repr(column[:40]) for column in columns[:3]) + ", …" * (len(columns) > 3)
    lacks = "is no caption and address with a tab between" if any(map(is_address, columns)) else "has no address"
    return (
        f"{path}:{number}: the {'first ' * (number == 1)}row ({shown}) {lacks}. Remove it if it names the columns or"
        " was left out when the pictures were fetched, or else complete it: pictures are paired with rows by number,"
        " and one row too many or too few gives each picture behind it its neighbour's caption"
    )


def _check_numbers(pictures: dict[int, list[Path]], rows: int, header: int, path: str) -> None:
    """Raises ValueError if the pictures are counted from 1, or the header was counted when they were fetched."""
    if 0 not in pictures and max(pictures, default=-1) == rows:
        counted = "the header row was counted" if header else "counting began at 1"
        raise ValueError(
            f"{path} has {rows} rows, counted from 0, but {pictures[rows][0]} has the number {rows} and no picture has"
            f" 0: {counted} when they were fetched. Each picture would get its neighbour's caption; rename the pictures"
        )


def _unproven(records: Iterable[Record]) -> list[Record]:
    """Returns the records whose pictures are paired with their rows by number alone."""
    return [record for record in records if _check_of(Path(record.image)) is None]


def _notes(listing: SourceListing, pictures: dict[int, list[Path]], header: int, path: str) -> list[str]:
    notes = [f"{path}: the first row names the columns and is not counted"] if header else []
    if unproven := _unproven(listing.records):
        first = unproven[0]
        notes.append(
            f"{path}: {len(unproven)} pictures are paired with rows by their number alone, which nothing can check:"
            f' {first.image} is taken for "{first.captions[0][:60]}" ({first.id}). Look at it, or use `data show`'
        )
        broken = [error for error in listing.skipped if error.reason in ("row wrong", "line is not UTF-8")]
        if broken:
            notes.append(
                f"{path}: from {broken[0].record} on, the pairs are wrong if the program that fetched the pictures"
                " left out or joined rows that are broken"
            )
    return notes
