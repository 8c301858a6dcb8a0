"""Writing tar shards: each is there as a whole, or not at all."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".part"
"""What a shard is called until it is whole."""


@contextmanager
def whole_shard(file: Path) -> Iterator[tarfile.TarFile]:
    """A new tar file, which takes its name when the block ends well."""
    part = file.with_suffix(UNFINISHED)
    with part.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            yield archive
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Returns where in the file the content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    place = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(member, io.BytesIO(content))
    return place
