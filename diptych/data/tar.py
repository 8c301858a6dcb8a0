"""Reads and writes tar shards. A shard that is being written takes its name only when it is complete."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from diptych.data.picture_kinds import HEAD, PassedOver

UNFINISHED = ".part"
"""Suffix of a shard that is still being written."""


def tar_members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the files of a tar shard in its order. Raises tarfile.TarError, OSError or EOFError if it is broken."""
    with tarfile.open(shard, "r:") as archive:
        yield from (member for member in archive if member.isreg())
    with shard.open("rb") as stream:  # without this check a shard cut between two members would look complete
        stream.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(stream.read()):
            raise tarfile.ReadError("it does not end as tar files do")


def note_member(shard: Path, member: tarfile.TarInfo, seen: PassedOver) -> bool:
    """Counts a member in `seen` if it is passed over, and returns whether it is. Raises OSError.

    The content is looked at only where the name has no suffix, as in folders.
    """
    head = b""
    if "." not in PurePosixPath(member.name).name:
        with shard.open("rb") as stream:
            stream.seek(member.offset_data)
            head = stream.read(min(member.size, HEAD))
    return seen.note(member.name, head)


@contextmanager
def whole_shard(file: Path) -> Iterator[tarfile.TarFile]:
    """Opens a new tar file, which takes its name when the block ends without an error."""
    part = file.with_suffix(UNFINISHED)
    with part.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            yield archive
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a file to an archive and returns the position at which its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    position = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(member, io.BytesIO(content))
    return position
