"""Where the samples of a tar shard are: an index, built once and kept in a file, twenty bytes a sample.

A sample is the run of members that share a name up to its first dot, as in the WebDataset layout: a picture or two,
and a `.txt` or `.json` that says something of them. The file is one line of JSON, padded to a multiple of eight bytes,
then four arrays of n numbers: where each sample begins (8 bytes), its length (4), and, in the order of a hash of the
picture's identity by which splits are drawn, that hash (4) and the number of its sample (4).
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt

from diptych.data.pictures import SUFFIXES
from diptych.data.record import BadRecord
from diptych.data.sources.files import draw_number, tar_members

FORMAT = "diptych shard index 1"
BYTES_A_SAMPLE = 20
COLUMNS = (("starts", np.uint64), ("sizes", np.uint32), ("draws", np.uint32), ("samples", np.uint32))
LARGEST_SAMPLE = 1 << 28
"""Bytes of all members of a sample, which is read as one piece; more is left out."""
LARGEST_TEXT = 1 << 20
"""Bytes of a caption or its metadata; more is neither."""
DRAWS = 1 << 32
"""How many different hashes there are."""


@dataclass(frozen=True)
class Stamp:
    """What tells one state of a shard from another: its length in bytes, and its time or the server's tag for it."""

    size: int
    tag: str

    @classmethod
    def of(cls, state: os.stat_result) -> Stamp:
        return cls(state.st_size, str(state.st_mtime_ns))


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, in its order. The arrays of one that was read lie in its file, not in memory."""

    stamp: Stamp
    starts: UInt[np.ndarray, "n"]
    """Bytes before each sample's first header."""
    sizes: UInt[np.ndarray, "n"]
    """Bytes from there to the end of its last member."""
    draws: UInt[np.ndarray, "n"]
    """Hashes of the pictures' identities, ascending."""
    samples: UInt[np.ndarray, "n"]
    """The sample that each hash belongs to."""
    lost: tuple[BadRecord, ...] = ()
    """What of the shard is no sample, and why."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """In the order of the file."""
        return self.starts, self.sizes, self.draws, self.samples

    def count(self, low: int, high: int) -> int:
        """How many samples have hashes from `low` to below `high`. Looks at a few of them only."""
        first, last = np.searchsorted(self.draws, np.array([low, high], np.uint64))
        return int(last - first)

    def chosen(self, low: int, high: int) -> UInt[np.ndarray, "m"]:
        """The numbers of these samples, ascending."""
        first, last = np.searchsorted(self.draws, np.array([low, high], np.uint64))
        return np.sort(self.samples[first:last])

    def of(self, stamp: Stamp) -> ShardIndex:
        """This index in memory, as that of a copy of the shard."""
        starts, sizes, draws, samples = (column.copy() for column in self.columns)
        return ShardIndex(stamp, starts, sizes, draws, samples, self.lost)

    def write(self, file: Path) -> None:
        """Whole or not at all. Raises OSError."""
        lost = [[error.record, error.reason, error.detail] for error in self.lost]
        head = {"format": FORMAT, "bytes": self.stamp.size, "tag": self.stamp.tag, "count": len(self), "lost": lost}
        line = json.dumps(head).encode()
        line += b" " * (-(len(line) + 1) % 8) + b"\n"
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                stream.write(line)
                for column, (_, kind) in zip(self.columns, COLUMNS, strict=True):
                    stream.write(column.astype(kind).tobytes())
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def read_index(file: Path) -> ShardIndex | None:
    """The index in a file, or None where there is none that can be read."""
    try:
        with file.open("rb") as stream:
            head = json.loads(line := stream.readline())
            if head["format"] != FORMAT:
                return None
            count, place = int(head["count"]), len(line)
            if file.stat().st_size != place + BYTES_A_SAMPLE * count:
                return None
        whole = (
            np.memmap(file, np.uint8, "r") if count else np.empty(place, np.uint8)
        )  # one, as each keeps a descriptor
        columns = {}
        for name, kind in COLUMNS:
            stop = place + count * np.dtype(kind).itemsize
            columns[name] = whole[place:stop].view(kind)
            place = stop
        lost = tuple(BadRecord(*error) for error in head["lost"])
        return ShardIndex(Stamp(int(head["bytes"]), str(head["tag"])), **columns, lost=lost)
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --------------------------------------------------------------------------- building


@dataclass
class _Sample:
    """What is known of a sample while its members are met."""

    key: str
    start: int
    stop: int = 0
    has_picture: bool = False
    json: tarfile.TarInfo | None = None

    def meet(self, member: tarfile.TarInfo) -> None:
        suffix = Path(member.name).suffix.lower()
        self.stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.has_picture |= suffix in SUFFIXES
        if suffix == ".json":
            self.json = member


def build_index(file: Path, name: str, stamp: Stamp) -> ShardIndex:
    """Goes through a shard once, from header to header. Of one that is broken the sound part is kept, the rest named.

    `name`: what to call it. Raises OSError where it cannot be opened.
    """
    rows = array("Q")
    lost: list[BadRecord] = []
    with file.open("rb") as stream:
        for sample in _samples(file, name, lost):
            if not sample.has_picture:
                lost.append(BadRecord(f"{name}/{sample.key}", "picture missing", "no member of it is a picture"))
            elif sample.stop - sample.start > LARGEST_SAMPLE:
                lost.append(BadRecord(f"{name}/{sample.key}", "sample too large", f"over {LARGEST_SAMPLE:,} bytes"))
            else:
                draw = draw_number(_identity(stream, sample)) >> 32
                rows.extend((sample.start, sample.stop - sample.start, draw))
    starts, sizes, draws = np.array(rows, np.uint64).reshape(-1, 3).T
    order = np.argsort(draws, kind="stable")
    return ShardIndex(
        stamp,
        starts,
        sizes.astype(np.uint32),
        draws[order].astype(np.uint32),
        order.astype(np.uint32),
        tuple(lost),
    )


def _samples(file: Path, name: str, lost: list[BadRecord]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    try:
        for member in tar_members(file):
            key = key_of(member.name)
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key, member.offset)
            sample.meet(member)
    except (tarfile.TarError, EOFError) as error:
        lost.append(BadRecord(name, "shard broken", str(error)))
        if sample is not None and sample.stop > file.stat().st_size:  # its content is what was cut off
            return
    if sample is not None:
        yield sample


def key_of(member: str) -> str:
    """A member's path up to the first dot of its name, by which WebDataset puts members together.

    >>> key_of("00000/000000017.left.jpg")
    '00000/000000017'
    """
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _identity(stream: BinaryIO, sample: _Sample) -> str:
    """What of a picture decides its split: what the metadata calls it, or else the sample's key, which stays the same
    when a shard is moved."""
    if sample.json is None or sample.json.size > LARGEST_TEXT:
        return sample.key
    stream.seek(sample.json.offset_data)
    try:
        metadata = metadata_of(stream.read(sample.json.size))
    except (ValueError, RecursionError):
        return sample.key
    several = metadata.get("image_ids")
    first = several[0] if isinstance(several, list) and several else None
    return str(first or metadata.get("image_id") or metadata.get("url") or sample.key)


def metadata_of(content: bytes) -> dict[str, Any]:
    """The JSON object of a sample; empty where there is none. Raises ValueError."""
    found = json.loads(content) if content else {}
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
