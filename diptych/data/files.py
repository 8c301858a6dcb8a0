"""Reads folders, JSON files and lines of text files, with errors that say what was expected.

`layout` is always a sentence that says which files a source reads; error messages end with it.
"""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diptych.data.picture_kinds import LINKED_FOLDER, PassedOver
from diptych.data.pictures import spelled_on_disk
from diptych.data.record import BadRecord
from diptych.reading import HEAD, disguise, disguise_of, open_regular, parse_json

LARGEST_LINE = 1 << 24
"""Bytes of a line of a list. Longer ones are named and left out."""

MOSTLY = 0.8
"""Of UTF-16 in European languages, more than this share of the upper bytes is zero."""
LOOKED_AT_BYTES = 1 << 16
"""This many bytes of a file are looked at to tell its encoding and the form of its lines."""


def files_below(folder: Path, seen: PassedOver | None = None) -> Iterator[Path]:
    """Yields every file below `folder`, relative to it, as `names_below` does."""
    return map(Path, names_below(folder, seen))


def names_below(folder: Path, seen: PassedOver | None = None) -> Iterator[str]:
    """Yields the path of every file below `folder`, relative to it, in the order of names. Hidden files are left out.

    `seen` counts the files that look like pictures and are not read as such, and the links to folders, which are not
    followed because they may lead in circles. Paths are texts, because a `Path` of each of a million takes seconds.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        below = os.path.relpath(place, folder)
        start = "" if below == os.curdir else f"{below}{os.sep}"
        for name in sorted(names):
            if seen is not None:
                seen.note(start + name, b"" if "." in name else beginning_of(Path(place, name)))
            if not name.startswith("."):
                yield start + name
        if seen is not None:
            seen.add(LINKED_FOLDER, sum((Path(place) / name).is_symlink() for name in folders))


def beginning_of(file: Path) -> bytes:
    """Returns the first bytes of a file. What cannot be read, or is no regular file, has none."""
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""


def split_paths(paths: str) -> list[str]:
    """Splits a setting that names several paths at its commas. An existing path may contain commas itself."""
    if os.path.exists(paths):  # noqa: PTH110 — Path.exists raises where a long list is no valid file name
        return [paths]
    return [spelled_on_disk(path.strip()) for path in paths.split(",") if path.strip()]


def existing(path: str | Path, layout: str) -> Path:
    """Returns the path. Raises ValueError unless it is a file."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {file}: {layout}")
    return file


# --------------------------------------------------------------------------- JSON files


def read_json(path: str | Path, layout: str) -> Any:
    """Reads a JSON file. Raises ValueError if it is missing or not JSON."""
    file = existing(path, layout)
    try:
        return parse_json(file.read_bytes())
    except ValueError as error:
        kind = disguise_of(file)
        raise ValueError(f"{file} is not JSON: {f'it is {kind}' if kind else error}") from None


def json_list(path: str | Path, layout: str) -> list[Any]:
    """Reads a JSON file that must hold a list. Raises ValueError."""
    content = read_json(path, layout)
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a list: {layout}")
    return content


def json_object(path: str | Path, layout: str) -> dict[str, Any]:
    """Reads a JSON file that must hold an object. Raises ValueError."""
    content = read_json(path, layout)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not an object: {layout}")
    return content


def list_of(content: Mapping[str, Any], key: str, file: str | Path, layout: str) -> list[Any]:
    """Returns the list under a key of a file's JSON object. Raises ValueError if there is none."""
    if not isinstance(content.get(key), list):
        raise ValueError(f"{file} has no list `{key}`: {layout}")
    return list(content[key])


# --------------------------------------------------------------------------- lines


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields each non-empty line of a JSONL file as its name FILE:LINE and its value.

    The value of a line that cannot be parsed is a BadRecord.
    """
    for _, number, content in lines_of(file):
        name = f"{file}:{number}"
        try:
            yield name, parsed(content, name)
        except BadRecord as error:
            yield name, error


def lines_of(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yields the position in bytes, the number (from 1) and the content of each non-empty line.

    Of a line of more than `LARGEST_LINE` bytes, the content is one byte more than that: it is not read into memory.
    Raises ValueError if the file is UTF-16 or has no line feeds.
    """
    check_lines(file)
    start = 0
    with open_regular(file) as stream:  # read as bytes, so that one broken line does not spoil the others
        for number in itertools.count(1):
            line = stream.readline(LARGEST_LINE + 1)
            if not line:
                return
            length = len(line)
            while length > LARGEST_LINE and not line.endswith(b"\n") and (rest := stream.readline(LARGEST_LINE)):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            if content := line if length > LARGEST_LINE else line_content(line, number):
                yield start, number, content
            start += length


def line_content(line: bytes, number: int, ends: bytes | None = None) -> bytes:
    """Strips white space, or else the bytes `ends`, from a line, and from the first line the byte order mark that some
    editors write."""
    return (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip(ends)


def check_lines(file: Path) -> None:
    """Raises ValueError if a file of lines is UTF-16, or if its lines end as on the first Macs.

    Neither can be cut into lines byte by byte.
    """
    with file.open("rb") as stream:
        head = stream.read(LOOKED_AT_BYTES)
    if not is_text(head):
        raise ValueError(f"{file} is {disguise(head) or f'no text file: it begins with {head[:4]!r}'}")
    if _is_utf16(head):
        raise ValueError(f"{file} is {_encoding(head)}. Save it as UTF-8")
    if b"\r" in head.strip() and b"\n" not in head:
        raise ValueError(f"the lines of {file} end with CR alone, as on the first Macs. Save it with LF or CR LF")


def parsed(content: bytes, name: str) -> Any:
    """Parses a line of JSON. Raises BadRecord."""
    text = decoded(content, name)
    try:
        return parse_json(text)
    except ValueError as error:
        kind = disguise(content) if name.endswith(":1") else None
        raise BadRecord(name, "line is not JSON", f"the file is {kind}" if kind else str(error)) from None


def decoded(content: bytes, name: str, subject: str = "line") -> str:
    """Decodes a line, or another `subject`, as UTF-8 with or without a byte order mark.

    Raises BadRecord, which says what the bytes look like. Zero bytes are valid UTF-8, but only texts in UTF-16 have
    them.
    """
    if len(content) > LARGEST_LINE:
        raise BadRecord(name, f"{subject} too long", f"more than {LARGEST_LINE:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = disguise(content) if name.endswith(":1") else None
        found = f"the file is {kind}" if kind else f"it looks like {_encoding(content)}; {error}"
        raise BadRecord(name, f"{subject} is not UTF-8", found) from None
    if "\0" in text:
        seems = f"it looks like {_encoding(content)}" if _is_utf16(content) else "it has zero bytes"
        raise BadRecord(name, f"{subject} is not UTF-8", seems)
    return text


def is_text(content: bytes) -> bool:
    """Returns whether bytes may be a text in any encoding. Only UTF-16 has zero bytes in texts."""
    return b"\0" not in content or _is_utf16(content)


def _is_utf16(content: bytes) -> bool:
    """Returns whether bytes are marked as UTF-16, or whether every other one is zero, as in European texts."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    halves = content[::2], content[1::2]
    return len(content) > 1 and max(half.count(0) / len(half) for half in halves) > MOSTLY


def _encoding(content: bytes) -> str:
    """Says which encoding bytes that are not UTF-8 seem to have."""
    if _is_utf16(content):
        return "UTF-16, as PowerShell and Excel write it"
    return "cp1252 or another encoding of one byte a letter, as Windows programs write it"
