"""Reads Conceptual Captions: the TSV file of CC3M (caption, address) or CC12M (address, caption) and fetched pictures.

A picture file is named after its row, counted from 0. It may have leading zeros and lie in any folder: `17.jpg`,
`000000017.jpg`. Downloaders also append the CRC-32 of the address: `17_3632233996`. Many addresses are dead; rows
without a picture are skipped and counted.
"""

from __future__ import annotations

import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.files import existing, files_below
from diptych.data.picture_kinds import is_picture
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=conceptual reads a TSV of captions and addresses"
_NAME = re.compile(r"(\d+)(?:_(\d+))?")


def read_conceptual(path: str, config: DataConfig) -> SourceListing:
    """Reads all rows. Pictures lie below `config.root` or else below the file's folder. Raises ValueError."""
    file = existing(path, LAYOUT)
    root = Path(config.root or file.parent)
    read = partial(_read, pictures=_pictures(root))
    listing = SourceListing()
    with file.open("rb") as stream:
        for number, line in enumerate(stream):
            row = line.rstrip(b"\r\n")
            listing.add((number, row), f"{path}:{number + 1}", root, config.max_words, read)
    return listing


def _pictures(root: Path) -> dict[int, Path]:
    """Returns the first file that is named after each row."""
    named: dict[int, Path] = {}
    for file in files_below(root):
        if (match := _NAME.fullmatch(file.stem)) and (not file.suffix or is_picture(file)):
            named.setdefault(int(match[1]), file)
    return named


def _read(numbered: Any, name: str, pictures: dict[int, Path]) -> Record:
    number, row = numbered
    caption, url = _columns(row, name)
    file = pictures.get(number)
    if file is None:
        raise BadRecord(name, "picture missing", url)
    match = _NAME.fullmatch(file.stem)
    assert match is not None
    if match[2] and int(match[2]) != zlib.crc32(url.encode()):
        raise BadRecord(name, "picture of another address", f"{file} is not of {url}")
    return Record(name, file.as_posix(), (caption,), url)


def _columns(row: bytes, name: str) -> tuple[str, str]:
    """Splits a row into caption and address. Raises BadRecord."""
    try:
        columns = row.decode().split("\t")
    except UnicodeDecodeError as error:
        raise BadRecord(name, "line is not UTF-8", str(error)) from None
    if len(columns) != 2:
        raise BadRecord(name, "row wrong", f"{len(columns)} columns, not a caption and an address")
    first, second = columns
    return (second, first) if first.startswith(("http://", "https://")) else (first, second)
