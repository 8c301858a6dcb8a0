"""Indexes tar shards: says where each sample is. An index is built once and kept in a file, with 20 bytes per sample.

A sample is a run of members that share their name up to its first dot, as in the WebDataset layout, or up to its last
one (diptych/data/shards/naming.py): one or two pictures, and a `.txt` or `.json` that describes them.

An index file consists of one line of JSON, padded to a multiple of eight bytes, and four arrays of n numbers. The first
two hold the position (8 bytes) and the length (4 bytes) of each sample. The other two are sorted by a hash of the
picture's identity, by which splits are drawn: the hash (4 bytes) and the number of its sample (4 bytes).
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt

from diptych.data.picture_kinds import PassedOver, is_hidden, is_picture
from diptych.data.record import BadRecord
from diptych.data.shards.naming import TEXT_SUFFIXES, choose_naming, key_of
from diptych.data.splits import draw_number
from diptych.data.tar import is_link, note_member, tar_members
from diptych.reading import open_regular, parse_json
from diptych.schema import MemberNames, SampleNames

FORMAT = "diptych shard index 1"
BYTES_A_SAMPLE = 20
COLUMNS = (("starts", np.uint64), ("sizes", np.uint32), ("draws", np.uint32), ("samples", np.uint32))
LARGEST_SAMPLE = 1 << 28
"""A sample is read as one block. A larger one, in bytes, is left out."""
LARGEST_TEXT = 1 << 20
"""At most this many bytes of a caption or its metadata are read."""
LARGEST_HEAD = 1 << 26
"""Bytes of an index file's first line, which names what is lost."""
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
    naming: MemberNames = "first_dot"
    """The rule by which members form samples."""
    chosen: bool = True
    """Whether the rule was chosen by looking at the names, instead of by the user."""
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
        return ShardIndex(stamp, starts, sizes, draws, samples, self.lost, self.naming, self.chosen, self.passed_over)

    def fits(self, names: SampleNames) -> bool:
        """Returns whether its samples are those of a rule, or were formed by looking if that is asked for."""
        return self.chosen if names == "auto" else self.naming == names

    def write(self, file: Path) -> None:
        """Writes the index file. A failed attempt leaves no file. Raises OSError."""
        lost = [[error.record, error.reason, error.detail, error.count] for error in self.lost]
        head = {
            "format": FORMAT, "bytes": self.stamp.size, "tag": self.stamp.tag, "count": len(self), "lost": lost,
            "naming": self.naming, "chosen": self.chosen, "passed_over": dict(self.passed_over),
        }  # fmt: skip
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
        with open_regular(file) as stream:
            head = parse_json(line := stream.readline(LARGEST_HEAD))
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
        lost = tuple(
            BadRecord(str(name), str(reason), str(detail), int(many[0]) if many else 1)
            for name, reason, detail, *many in head["lost"]
        )
        # Earlier versions knew the first dot only.
        naming, chosen = head.get("naming", "first_dot"), bool(head.get("chosen", True))
        passed_over = {str(reason): int(count) for reason, count in head.get("passed_over", {}).items()}
        stamp = Stamp(int(head["bytes"]), str(head["tag"]))
        return ShardIndex(stamp, **columns, lost=lost, naming=naming, chosen=chosen, passed_over=passed_over)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


# --------------------------------------------------------------------------- building


@dataclass
class _Sample:
    """Gathers the members of a sample that stand together."""

    key: str
    members: list[tarfile.TarInfo] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.members[0].offset

    @property
    def stop(self) -> int:
        last = self.members[-1]
        return last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    @property
    def has_picture(self) -> bool:
        return any(is_picture(member.name) for member in self.members)

    @property
    def has_text(self) -> bool:
        return not self._suffixes.isdisjoint(TEXT_SUFFIXES)

    @property
    def json(self) -> tarfile.TarInfo | None:
        return next((member for member in self.members if _suffix(member) == ".json"), None)

    @property
    def _suffixes(self) -> set[str]:
        return set(map(_suffix, self.members))


def _suffix(member: tarfile.TarInfo) -> str:
    return Path(member.name).suffix.lower()


def build_index(file: Path, name: str, stamp: Stamp, names: SampleNames = "auto") -> ShardIndex:
    """Builds the index of a shard in one pass from header to header. `name` is the shard's name in messages.

    If the shard is broken, the samples before the break are used, and the rest is named in `lost`. Samples whose
    members do not stand together cannot be read as one block, and are counted there too. Raises OSError if the shard
    cannot be opened.
    """
    rows = array("Q")
    lost: list[BadRecord] = []
    seen = PassedOver()
    members, passed_over = _members(file, name, lost, seen)
    naming, _ = choose_naming((member.name for member in members), names, "first_dot")
    samples = _together(_samples(members, naming), name, lost)
    if lost and lost[0].reason == "shard broken" and samples and samples[-1].stop > file.stat().st_size:
        samples.pop()  # the shard ends within this sample
    with file.open("rb") as stream:
        for sample in samples:
            if not sample.has_picture and any(member.offset in passed_over for member in sample.members):
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
        naming,
        chosen=names == "auto",
        passed_over=dict(seen.counts),
    )


def _members(file: Path, name: str, lost: list[BadRecord], seen: PassedOver) -> tuple[list[tarfile.TarInfo], set[int]]:
    """Returns the members of a shard that are not hidden. Adds an error to `lost` if the shard is broken.

    `seen` counts those that look like pictures and are not read as such; their positions are the second value.
    """
    members: list[tarfile.TarInfo] = []
    passed_over: set[int] = set()
    try:
        for member in tar_members(file, links=True):
            if note_member(file, member, seen):
                passed_over.add(member.offset)
            if not is_hidden(member.name) and not is_link(member):
                members.append(member)
    except (tarfile.TarError, EOFError) as error:
        lost.append(BadRecord(name, "shard broken", str(error)))
    return members, passed_over


def _samples(members: Iterable[tarfile.TarInfo], naming: MemberNames) -> list[_Sample]:
    """Groups neighbours of one key into samples. A key whose members do not stand together occurs several times."""
    samples: list[_Sample] = []
    for member in members:
        key = key_of(member.name, naming)
        if not samples or samples[-1].key != key:
            samples.append(_Sample(key))
        samples[-1].members.append(member)
    return samples


def _together(samples: list[_Sample], name: str, lost: list[BadRecord]) -> list[_Sample]:
    """Leaves out the samples whose members do not stand together, and adds an error to `lost` that counts them."""
    with_texts = any(sample.has_text for sample in samples)
    times = Counter(sample.key for sample in samples)
    apart = {
        sample.key: None
        for sample in samples
        if times[sample.key] > 1 and not (sample.has_picture and (sample.has_text or not with_texts))
    }
    if apart:
        way_out = "pack it anew with `tar --sort=name`, or read it with data.source=img2dataset"
        detail = f"the members of {len(apart)} samples do not stand together, such as those of {next(iter(apart))}"
        lost.append(BadRecord(name, "members apart", f"{detail}: {way_out}", len(apart)))
    return [sample for sample in samples if sample.key not in apart]


def _identity(stream: BinaryIO, sample: _Sample) -> str:
    """Returns the identity of a sample's picture, which decides its split.

    It stands in the metadata. Otherwise it is the sample's key, which stays the same when a shard is moved.
    """
    if sample.json is None or sample.json.size > LARGEST_TEXT:
        return sample.key
    stream.seek(sample.json.offset_data)
    try:
        metadata = parse_json(stream.read(sample.json.size))
    except ValueError:
        return sample.key
    if not isinstance(metadata, dict):
        return sample.key
    image_ids = metadata.get("image_ids")
    first = image_ids[0] if isinstance(image_ids, list) and image_ids else None
    identity = first or metadata.get("image_id") or metadata.get("url") or sample.key
    return str(identity) if isinstance(identity, str | int | float) else sample.key
