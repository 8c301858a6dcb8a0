"""Files that are either whole or not there, and a folder that one process at a time may change."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diptych.checkpoints.files import flush

UNFINISHED = ".unfinished"
"""What the name of a file ends with while it is written; nothing reads such a one."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside its place, flushes it to the disk and renames it. Raises OSError where the disk refuses."""
    beside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    flush(path.parent)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def write_lines(path: Path, entries: Iterable[Any]) -> None:
    """A JSONL file."""

    def write(file: IO[bytes]) -> None:
        file.writelines(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)

    write_whole(path, write)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder. Raises ValueError if somebody else does, in this process or another.

    The lock goes with its holder, however that ends.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process writes to {folder}: wait for it, or stop it") from error
        yield
