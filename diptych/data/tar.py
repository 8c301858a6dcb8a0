"""Reads and writes tar shards. A shard that is being written takes its name only when it is complete."""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from diptych.data.picture_kinds import PassedOver
from diptych.reading import HEAD, disguise, open_regular
from diptych.writing import whole_file

UNFINISHED = ".part"
"""Suffix of a shard that is still being written."""
LARGEST_EXTENSION = 1 << 20
"""Largest header, in bytes, that only describes the next member, as pax and GNU tar write for long names. It is read
into memory."""
MOST_DIGITS = 300
"""Digits of a number in a pax header. File names have at most 255."""
EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class _Header(tarfile.TarInfo):
    """A member's header, whose size is checked before anything is skipped or read by it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:  # it would lead back to where the reader has been
            raise tarfile.ReadError("a member of negative size")
        if header.type in EXTENSIONS and header.size > LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header

    def _proc_pax(self, archive: tarfile.TarFile) -> Any:
        """Checks a pax header before Python parses it, which before 3.11.10 takes hours, or all memory, for some."""
        stream: Any = archive.fileobj
        start = stream.tell()
        _check_pax(stream.read(self.size))
        stream.seek(start)
        return super()._proc_pax(archive)  # type: ignore[misc]  # not in the stubs


def _check_pax(content: bytes) -> None:
    """Raises tarfile.ReadError unless a pax header consists of records `LENGTH KEY=VALUE` of the stated lengths."""
    if any(len(digits) > MOST_DIGITS for digits in re.findall(rb"\d+", content)):
        raise tarfile.ReadError("a pax header with a number of hundreds of digits")
    place = 0
    while place < len(content) and content[place]:
        length, blank, _ = content[place : place + MOST_DIGITS].partition(b" ")
        end = place + int(length) if blank and length.isdigit() else 0
        if not place < end <= len(content) or content[end - 1 : end] != b"\n" or b"=" not in content[place:end]:
            raise tarfile.ReadError("a pax header that is malformed")
        place = end


def is_tar(head: bytes) -> bool:
    """Tells whether a file that begins with `head`, of 512 bytes or more, is a tar file. Python's own test reads on."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_members(shard: Path, links: bool = False) -> Iterator[tarfile.TarInfo]:
    """Yields the files of a tar shard in its order, and with `links` the links too, which have no content of their own.

    Raises tarfile.TarError, OSError or EOFError if it is broken.
    """
    with open_regular(shard) as stream:
        yield from members(stream, links=links)
        stream.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(stream.read()):  # without this check a shard cut between two members would look complete
            raise tarfile.ReadError("it does not end as tar files do")


def members(stream: BinaryIO | io.BytesIO, start: int = 0, links: bool = False) -> Iterator[tarfile.TarInfo]:
    """Yields the files of a tar stream from `start` on. The last one may end behind the end of the stream.

    Sparse members, whose content is not what stands in the file, are left out. Raises tarfile.TarError, whatever the
    stream holds.
    """
    before = -1
    stream.seek(start)
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header of a shard
                if archive.offset <= before or member.size < 0:
                    raise tarfile.ReadError("a member that leads backwards")
                before = archive.offset
                if (member.isreg() and not member.issparse()) or (links and is_link(member)):
                    yield member
    except tarfile.ReadError as error:
        stream.seek(start)
        kind = disguise(stream.read(HEAD))
        raise tarfile.ReadError(f"it is {kind}" if kind and kind != "a tar archive" else str(error)) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise tarfile.ReadError("unexpected end of data") from None  # no file can be as long as a member says
    except (ArithmeticError, LookupError, RecursionError, UnicodeError, AttributeError, TypeError, ValueError) as error:
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from None


def is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def note_member(shard: Path, member: tarfile.TarInfo, seen: PassedOver) -> bool:
    """Counts a member in `seen` if it is passed over, and returns whether it is. Raises OSError.

    The content is looked at only where the name has no suffix, as in folders. Links are passed over.
    """
    if is_link(member):
        return seen.note_link(member.name)
    head = b""
    if "." not in PurePosixPath(member.name).name:
        with shard.open("rb") as stream:
            stream.seek(member.offset_data)
            head = stream.read(min(member.size, HEAD))
    return seen.note(member.name, head)


@contextmanager
def whole_shard(file: Path) -> Iterator[tarfile.TarFile]:
    """Opens a new tar file, which takes its name when the block ends without an error. Raises WriteError."""
    with (
        whole_file(file, file.with_suffix(UNFINISHED)) as part,
        tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        yield archive


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a file to an archive and returns the position at which its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    position = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(member, io.BytesIO(content))
    return position
