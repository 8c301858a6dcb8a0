"""Writes files and folders whole or not at all.

What is unfinished has another name, which nothing loads. It is flushed to the disk and then renamed. If the disk
refuses, it is removed, so that a second attempt finds the room and the place that the first one found, and the error
names the file.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Begins the name of what is being written."""
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""The errors of a write, which name no file."""


class WriteError(OSError):
    """A file or folder could not be written. Nothing stands under its name that did not stand there before."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} could not be written ({reason})")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason)


@contextmanager
def whole_file(path: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """Yields the name under which the block writes a file, which then takes the name `path`. Raises WriteError.

    By default that name differs between processes. `unfinished` is another one, for large files that a single process
    writes: what a kill has left of one is overwritten by the next attempt.
    """
    unfinished = unfinished or path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    with _named(path, unfinished):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            flush(unfinished)
            unfinished.replace(path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a text in UTF-8, with escapes for file names that are not valid UTF-8. Returns its path.

    Raises WriteError.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder that the block fills, which then takes the name `folder`. Raises WriteError.

    `folder` must not exist, or be empty (`is_free`). An empty one is kept, because it may be a place where a disk is
    mounted, and is filled at the end.
    """
    inside = folder.is_dir()
    unfinished = folder / f"{UNFINISHED}{folder.name}" if inside else folder.with_name(f"{UNFINISHED}{folder.name}")
    with _named(folder, unfinished):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                flush(path)
            if inside:
                for path in sorted(unfinished.iterdir()):
                    path.replace(folder / path.name)
            else:
                unfinished.replace(folder)
            flush(folder if inside else folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def spare(targets: Iterable[Path], read: Iterable[str | Path], is_own: Callable[[Path], bool]) -> None:
    """Raises ValueError if one of the files to be written is one of those that are `read`, also through a link, or is
    there already without being this library's own (`is_own`)."""
    present = [target for target in targets if os.path.lexists(target)]
    identities = {identity: target for target in present if (identity := _identity(target)) is not None}
    for file in read if identities else ():
        if (identity := _identity(file)) in identities:
            raise ValueError(f"{identities[identity]} is one of the files that are read: write to another place")
    for target in present:
        if not is_own(target):
            raise ValueError(f"{target} is there already, and diptych did not write it: write to another place")


def spare_page(page: Path, read: Iterable[str | Path] = ()) -> None:
    """Raises ValueError if an HTML page would overwrite a file that is read, or one that is no page by its name."""
    spare([page], read, lambda file: file.suffix.lower() in (".html", ".htm"))


def _identity(file: str | Path) -> tuple[int, int] | None:
    """Returns what all names and links of a file have in common, or None where there is no file."""
    try:
        status = os.stat(file)  # noqa: PTH116 — Path.stat takes seconds longer for a million files
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_free(folder: Path) -> bool:
    """Whether a folder does not exist, or is empty but for what an interrupted `whole_folder` has left."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name.startswith(UNFINISHED) for path in folder.iterdir())


@contextmanager
def _named(path: Path, unfinished: Path) -> Iterator[None]:
    """Turns the refusal of a disk into a WriteError for `path`. Other errors, of files that are read, pass."""
    try:
        yield
    except WriteError as error:  # of a part of it
        raise WriteError(path, error.reason) from error
    except OSError as error:
        places = (unfinished, *unfinished.parents)
        own = isinstance(error.filename, str | os.PathLike) and (
            Path(error.filename) in places or Path(error.filename).is_relative_to(unfinished)
        )
        if not own and (error.filename is not None or error.errno not in REFUSALS):
            raise
        raise WriteError(path, error.strerror or str(error)) from error


def flush(path: Path) -> None:
    """Forces a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
