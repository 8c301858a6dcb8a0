"""Reads folders, JSON files and lines of text files, with errors that say what was expected.

`layout` is always a sentence that says which files a source reads; error messages end with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diptych.data.pictures import spelled_on_disk
from diptych.data.record import BadRecord


def files_below(folder: Path) -> Iterator[Path]:
    """Yields every file below `folder`, relative to it, in the order of names. Hidden files are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder)


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
        return json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None


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
    """Yields the position in bytes, the number (from 1) and the content of each non-empty line."""
    start = 0
    with file.open("rb") as stream:  # read as bytes, so that one broken line does not spoil the others
        for number, line in enumerate(stream, start=1):
            if content := line_content(line, number):
                yield start, number, content
            start += len(line)


def line_content(line: bytes, number: int) -> bytes:
    """Strips white space from a line, and from the first line the byte order mark that some editors write."""
    return (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()


def parsed(content: bytes, name: str) -> Any:
    """Parses a line of JSON. Raises BadRecord."""
    try:
        return json.loads(decoded(content, name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(name, "line is not JSON", str(error)) from None


def decoded(content: bytes, name: str) -> str:
    """Decodes a line as UTF-8. Raises BadRecord."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(name, "line is not UTF-8", str(error)) from None
