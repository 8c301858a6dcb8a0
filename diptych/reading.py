"""Reads files that somebody else made. What is read is bounded, and whatever a file does becomes one sentence.

A path may lead to a device that never ends or a pipe that never answers, JSON may be nested without end, and a file may
be something else than its name says.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import stat
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

from diptych.printable import brief, printable

LARGEST_JSON = 1 << 26
"""Largest file, in bytes, of JSON that belongs to a checkpoint or an index."""


def expand_home(path: str | Path) -> Path:
    """Replaces `~` at the beginning of a path by the home folder, and `~name` by that of the user of that name.

    Raises ValueError if there is no such user, and if this process has no home folder, as in some containers.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{printable(str(path))} begins with a home folder that does not exist: name the whole path"
        ) from None


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading. Raises OSError, also for devices, pipes and folders, which could block."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(path: str | Path, most: int = LARGEST_JSON) -> bytes:
    """Reads a regular file. Raises OSError, and ValueError for a file of more than `most` bytes."""
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes")
    return content


def parse_json(content: bytes | str) -> Any:
    """Parses JSON. Raises ValueError with a reason in words for everything that can be wrong with it."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except MemoryError:
        raise ValueError("too large") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # Python refuses to convert so many digits
        raise ValueError("a number of thousands of digits") from None


def read_object(path: str | Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Reads a JSON object from a regular file. Raises OSError, or ValueError with a reason."""
    content = parse_json(read_bounded(path, most))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def read_stored(path: str | Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Reads a JSON object as `read_object`, and names the file in every ValueError."""
    try:
        return read_object(path, most)
    except ValueError as error:
        reason = str(error) if type(error) is ValueError else "not JSON"
        raise ValueError(f"{path} is damaged, or of something else ({reason})") from None


# --------------------------------------------------------------------------- what a file really is

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer and not the file itself: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first (gunzip, or tar -xzf)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first (unzstd)"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first (unxz)"),
    (b"BZh", "compressed with bzip2: unpack it first (bunzip2)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error", b"<!--")
ARCHIVE = b"PK\x03\x04"
"""The beginning of a zip file. torch.save writes such files too."""
HEAD = 512


def disguise(head: bytes) -> str | None:
    """Says what a file is by its first bytes, if that is one of the things that are often taken for another file.

    `head` is at least 512 bytes, or the whole file. Returns the rest of a sentence "the file is …".

    >>> disguise(b""), disguise(b"<!DOCTYPE html><html>")[:15], disguise(b"{}")
    ('empty', 'a web page and ', None)
    """
    if not head:
        return "empty"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:HEAD].lower()
    if text.startswith(_PAGES):
        return "a web page and not the file itself: the address may need a login, or led to a page about the file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not any(head):
        return "filled with zeros: it was not downloaded to its end"
    return None


def disguise_of(path: str | Path, binary: bool = False) -> str | None:
    """Says what a file is by its first bytes, as `disguise`. Returns None also where it cannot be read.

    `binary`: the file should hold numbers, so text is a disguise too, and so is an archive without its end.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(HEAD)
        if kind := disguise(head):
            return kind
        if binary and head.startswith(ARCHIVE) and not zipfile.is_zipfile(path):
            return "cut off: it begins as a file of torch.save, and its end is missing. Fetch or copy it again"
    except OSError:
        return None
    return text_of(head) if binary else None


def text_of(head: bytes) -> str | None:
    r"""Says that a file is text by its first bytes, with its beginning. A pickle of letters alone is no text.

    >>> text_of(b"Access denied\n"), text_of(b"(dp0\nVa\np1\n"), text_of(bytes([128, 2]))
    ("text, which begins with 'Access denied'", None, None)
    """
    text = head.decode("utf-8", "replace").removesuffix("\ufffd")  # the end may be within a letter
    if not text.strip() or not all(letter.isprintable() or letter.isspace() for letter in text) or "\ufffd" in text:
        return None
    try:
        deque(pickletools.genops(head), maxlen=0)
        return None
    except Exception as error:  # of each opcode another one; text soon has a letter that is none
        if "unknown" not in str(error):
            return None
    return f"text, which begins with {brief(text.split(chr(10))[0][:60].strip())}"
