"""Indexes tar shards: says where each sample is. An index is built once and kept in a file, with 20 bytes per sample.

A sample is a run of members that share their name up to its first dot, as in the WebDataset layout: one or two
pictures, and a `.txt` or `.json` that describes them. An index file consists of one line of JSON, padded to a multiple
of eight bytes, and four arrays of n numbers. The first two hold the position (8 bytes) and the length (4 bytes) of each
sample. The other two are sorted by a hash of the picture's identity, by which splits are drawn: the hash (4 bytes) and
the number of its sample (4 bytes).
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt

from diptych.data.picture_kinds import PassedOver, is_hidden, is_picture
from diptych.data.record import BadRecord
from diptych.data.splits import draw_number
from diptych.data.tar import note_member, tar_members

FORMAT = "diptych shard index 1"
BYTES_A_SAMPLE = 20
COLUMNS = (("starts", np.uint64), ("sizes", np.uint32), ("draws", np.uint32), ("samples", np.uint32))
LARGEST_SAMPLE = 1 << 28
"""A sample is read as one block. A larger one, in bytes, is left out."""
LARGEST_TEXT = 1 << 20
"""At most this many bytes of a caption or its metadata are read."""
DRAWS = 1 << 32
"""The number of different hashes."""


@dataclass(frozen=True)
class Stamp:
    """Identifies the state of a shard: its length in bytes, and its modification time or the server's tag for it."""

    size: int
    tag: str

    @classmethod
    def of(cls, state: os.stat_result) -> Stamp:
        return cls(state.st_size, str(state.st_mtime_ns))


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Locates the samples of one shard, in its order. The arrays of an index that was read are mapped from its file."""

    stamp: Stamp
    starts: UInt[np.ndarray, "n"]
    """The position in bytes of each sample's first header."""
    sizes: UInt[np.ndarray, "n"]
    """The number of bytes from there to the end of the sample's last member."""
    draws: UInt[np.ndarray, "n"]
    """The hashes of the pictures' identities, in ascending order."""
    samples: UInt[np.ndarray, "n"]
    """The sample that each hash belongs to."""
    lost: tuple[BadRecord, ...] = ()
    """The parts of the shard that are no usable sample, and why."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """The number of members that look like pictures and are not read as such, by their reasons."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """The four arrays in the order of the file."""
        return self.starts, self.sizes, self.draws, self.samples

    def count(self, low: int, high: int) -> int:
        """Counts the samples with hashes from `low` to below `high`, by binary search."""
        first, last = np.searchsorted(self.draws, np.array([low, high], np.uint64))
        return int(last - first)

    def between(self, low: int, high: int) -> UInt[np.ndarray, "m"]:
        """Returns the numbers of the samples with hashes from `low` to below `high`, in ascending order."""
        first, last = np.searchsorted(self.draws, np.array([low, high], np.uint64))
        return np.sort(self.samples[first:last])

    def with_stamp(self, stamp: Stamp) -> ShardIndex:
        """Copies the index into memory, as the index of a copy of the shard in the state `stamp`."""
        starts, sizes, draws, samples = (column.copy() for column in self.columns)
        return ShardIndex(stamp, starts, sizes, draws, samples, self.lost, self.passed_over)

    def write(self, file: Path) -> None:
        """Writes the index file. A failed attempt leaves no file. Raises OSError."""
        lost = [[error.record, error.reason, error.detail] for error in self.lost]
        head = {"format": FORMAT, "bytes": self.stamp.size, "tag": self.stamp.tag, "count": len(self), "lost": lost}
        if self.passed_over:
            head["passed_over"] = dict(self.passed_over)
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
    """Reads an index file. Returns None if there is none that can be read."""
    try:
        with file.open("rb") as stream:
            head = json.loads(line := stream.readline())
            if head["format"] != FORMAT:
                return None
            count, place = int(head["count"]), len(line)
            if file.stat().st_size != place + BYTES_A_SAMPLE * count:
                return None
        # All arrays share one mapping, because each mapping keeps a file descriptor.
        content = np.memmap(file, np.uint8, "r") if count else np.empty(place, np.uint8)
        columns = {}
        for name, kind in COLUMNS:
            stop = place + count * np.dtype(kind).itemsize
            columns[name] = content[place:stop].view(kind)
            place = stop
        lost = tuple(BadRecord(*error) for error in head["lost"])
        passed_over = {str(reason): int(count) for reason, count in head.get("passed_over", {}).items()}
        stamp = Stamp(int(head["bytes"]), str(head["tag"]))
        return ShardIndex(stamp, **columns, lost=lost, passed_over=passed_over)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# --------------------------------------------------------------------------- building


@dataclass
class _Sample:
    """Gathers what is known about a sample while its members are read."""

    key: str
    start: int
    stop: int = 0
    has_picture: bool = False
    passed_over: bool = False
    """Whether a member looks like a picture and is not read as such."""
    json: tarfile.TarInfo | None = None

    def add(self, member: tarfile.TarInfo) -> None:
        suffix = Path(member.name).suffix.lower()
        self.stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.has_picture |= is_picture(member.name)
        if suffix == ".json":
            self.json = member


def build_index(file: Path, name: str, stamp: Stamp) -> ShardIndex:
    """Builds the index of a shard in one pass from header to header. `name` is the shard's name in messages.

    If the shard is broken, the samples before the break are used, and the rest is named in `lost`. Raises OSError if
    the shard cannot be opened.
    """
    rows = array("Q")
    lost: list[BadRecord] = []
    seen = PassedOver()
    with file.open("rb") as stream:
        for sample in _samples(file, name, lost, seen):
            if not sample.has_picture and sample.passed_over:
                continue
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
        dict(seen.counts),
    )


def _samples(file: Path, name: str, lost: list[BadRecord], seen: PassedOver) -> Iterator[_Sample]:
    """Yields the samples of a shard. Adds an error to `lost` if the shard is broken.

    Hidden members belong to no sample. `seen` counts those that look like pictures and are not read as such.
    """
    sample: _Sample | None = None
    try:
        for member in tar_members(file):
            passed_over = note_member(file, member, seen)
            if is_hidden(member.name):
                continue
            key = key_of(member.name)
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key, member.offset)
            sample.add(member)
            sample.passed_over |= passed_over
    except (tarfile.TarError, EOFError) as error:
        lost.append(BadRecord(name, "shard broken", str(error)))
        if sample is not None and sample.stop > file.stat().st_size:  # the shard ends within this sample
            return
    if sample is not None:
        yield sample


def key_of(member: str) -> str:
    """Returns a member's path up to the first dot of its name, by which WebDataset groups members into samples.

    >>> key_of("00000/000000017.left.jpg")
    '00000/000000017'
    """
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _identity(stream: BinaryIO, sample: _Sample) -> str:
    """Returns the identity of a sample's picture, which decides its split.

    It stands in the metadata. Otherwise it is the sample's key, which stays the same when a shard is moved.
    """
    if sample.json is None or sample.json.size > LARGEST_TEXT:
        return sample.key
    stream.seek(sample.json.offset_data)
    try:
        metadata = json.loads(stream.read(sample.json.size))
    except (ValueError, RecursionError):
        return sample.key
    if not isinstance(metadata, dict):
        return sample.key
    image_ids = metadata.get("image_ids")
    first = image_ids[0] if isinstance(image_ids, list) and image_ids else None
    return str(first or metadata.get("image_id") or metadata.get("url") or sample.key)
