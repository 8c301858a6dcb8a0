"""Writes files atomically, and lets one process at a time change a folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diptych.data.record import BadRecord
from diptych.writing import whole_file

UNFINISHED = ".unfinished"
"""Suffix of a file while it is being written. Readers ignore such files."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a temporary file beside `path`, flushes it to the disk and renames it. Raises WriteError."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    with whole_file(path, unfinished) as beside, beside.open("wb") as file:
        write(file)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def write_lines(path: Path, entries: Iterable[Any]) -> None:
    """Writes one JSON line per entry."""

    def write(file: IO[bytes]) -> None:
        file.writelines(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)

    write_whole(path, write)


def write_skipped(path: Path, errors: Iterable[BadRecord]) -> None:
    """Writes one JSON line per item that could not be used. Lone surrogates in file names become backslash escapes."""
    entries = ({"record": error.record, "reason": error.reason, "message": str(error)} for error in errors)
    write_lines(
        path,
        ({key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()} for entry in entries),
    )


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. Raises ValueError if another writer, in this process or another, holds it.

    The operating system releases the lock when its holder ends, however that happens.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process writes to {folder}: wait for it, or stop it") from error
        yield
