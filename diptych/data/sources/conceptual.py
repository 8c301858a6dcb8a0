"""Conceptual Captions: the TSV of CC3M (caption, address) or CC12M (address, caption), and pictures fetched from it.

A picture is the file whose name begins with the number of its row, counted from 0, with any leading zeros and in any
folder: `17.jpg`, `000000017.jpg`, or with the CRC-32 of its address, as downloaders write it, `17_3632233996`. Many
addresses are dead; rows without a picture are skipped and counted.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.pictures import SUFFIXES
from diptych.data.record import BadRecord, Record
from diptych.data.sources.files import Found, existing
from diptych.data.sources.folder import files_below
from diptych.schema import DataConfig

LAYOUT = "data.source=conceptual reads a TSV of captions and addresses"
_NAME = re.compile(r"(\d+)(?:_(\d+))?")


def read_conceptual(path: str, config: DataConfig) -> Found:
    """All rows. Pictures lie below `config.root`, or below the file's folder. Raises ValueError."""
    file = existing(path, LAYOUT)
    root = Path(config.root or file.parent)
    read = partial(_read, pictures=_pictures(root))
    found = Found()
    for number, row in enumerate(_rows(file)):
        found.add((number, row), f"{path}:{number + 1}", root, config.max_words, read)
    return found


def _rows(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        for line in stream:
            yield line.rstrip(b"\r\n")


def _pictures(root: Path) -> dict[int, Path]:
    """Row → the first file named after it."""
    named: dict[int, Path] = {}
    for file in files_below(root):
        if (match := _NAME.fullmatch(file.stem)) and file.suffix.lower() in SUFFIXES | {""}:
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
    """Caption, address."""
    try:
        columns = row.decode().split("\t")
    except UnicodeDecodeError as error:
        raise BadRecord(name, "line is not UTF-8", str(error)) from None
    if len(columns) != 2:
        raise BadRecord(name, "row wrong", f"{len(columns)} columns, not a caption and an address")
    first, second = columns
    return (second, first) if first.startswith(("http://", "https://")) else (first, second)
