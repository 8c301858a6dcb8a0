"""Reads and writes tar shards. A shard that is being written takes its name only when it is complete."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.writing import whole_file

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
