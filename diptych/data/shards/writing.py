"""Writes any source as tar shards with their indices, in several processes. A stopped call can be continued.

Shard s of a split holds the records s·n to (s+1)·n, so it is settled before anything is written which record comes into
which shard. When a shard is complete, a note of its content is written. `manifest.json`, which is written last, gathers
these notes. A sample consists of its pictures as they are (made ones as PNG), a `.json` in this library's form, and for
a captioned picture its first caption as `.txt`, which other readers look for.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.entries import to_entry
from diptych.data.pictures import LARGEST_PIXELS, open_picture, picture_bytes, suffix_of
from diptych.data.record import BadRecord, PlainText, Record, TaskSource, with_images
from diptych.data.shards.cache import locked
from diptych.data.shards.index import Stamp, build_index
from diptych.data.shards.listing import SUFFIX
from diptych.data.shards.remote import say
from diptych.data.skips import list_errors
from diptych.data.splits import PATH_SETTINGS
from diptych.data.tar import add_member, whole_shard
from diptych.data.workers import each_in_parallel
from diptych.schema import Split
from diptych.writing import spare, write_text

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""The folder of the notes on complete shards, while some are still to be written."""


@dataclass(frozen=True)
class SplitSource:
    """Holds the source of a split that is to be written."""

    source: Any
    """Has `record(index)` and `skipped`, and `pictures(record)` if the pictures are made."""
    made: bool = False
    """Whether the pictures are made by the source instead of lying in files."""
    largest_pixels: int = LARGEST_PIXELS
    """Larger pictures are left out."""

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class WrittenShard:
    """Says what a complete shard contains. `left_out` has the name, the reason and the detail of each bad record."""

    name: str
    samples: int
    bytes: int
    left_out: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Job:
    """Names a shard to be written, with the records from `first` to below `last`."""

    split: Split
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}.tar"


def write_shards(
    splits: Mapping[Split, SplitSource], folder: Path, origin: Mapping[str, Any], samples: int, jobs: int
) -> str:
    """Writes `folder/train-00000.tar` and so on. Returns a message that says what was written and how to use it.

    `samples` is the number of samples per shard and `jobs` the number of processes. `origin` says what is written, so
    that only a call for the same data continues an earlier one. Raises ValueError if the folder holds something else,
    if another process writes to it, or if there is nothing to write.
    """
    if samples < 1 or jobs < 1:
        raise ValueError(f"--samples is {samples} and --jobs {jobs}: both must be at least 1")
    lost = [error for split in splits.values() for error in split.source.skipped]
    splits = {name: split for name, split in splits.items() if len(split)}
    if not splits:
        raise ValueError(f"there is no record to write\n{list_errors(lost)}")
    plan = {**origin, "samples_per_shard": samples, "records": {name: len(split) for name, split in splits.items()}}
    shards = list(_jobs(splits, samples))
    notes = folder / UNFINISHED
    _finished(folder, plan, shards)  # refuses before anything is written, the lock included
    with locked(notes / "lock", f"another process writes to {folder}"):
        done = _finished(folder, plan, shards)
        remaining = [job for job in shards if not _is_complete(folder, done.get(job.name))]
        if remaining:
            _write_json(notes / "plan.json", plan)
            results = each_in_parallel(partial(_write, splits, folder), remaining, min(jobs, len(remaining)))
            for count, shard in enumerate(results, start=1):
                done[shard.name] = shard
                say(f"{shard.name}: {shard.samples:,} samples, {shard.bytes:,} bytes ({count} of {len(remaining)})")
        manifest = _manifest(splits, lost, plan, [done[job.name] for job in shards])
        _write_json(folder / MANIFEST, manifest)
        shutil.rmtree(notes, ignore_errors=True)
    return _report(splits, folder, manifest, len(remaining))


def _jobs(splits: Mapping[Split, SplitSource], samples: int) -> Iterator[Job]:
    for name, split in splits.items():
        for number, first in enumerate(range(0, len(split), samples)):
            yield Job(name, number, first, min(first + samples, len(split)))


# --------------------------------------------------------------------------- one shard


def _write(splits: Mapping[Split, SplitSource], folder: Path, job: Job) -> WrittenShard:
    """Writes a shard, its index and the note of its content."""
    split = splits[job.split]
    left_out: list[tuple[str, str, str]] = []
    file, count, indexed = folder / job.name, 0, True
    with whole_shard(file) as archive:
        for index in range(job.first, job.last):
            try:
                members = list(_members(split, index))
            except BadRecord as error:
                left_out.append((error.record, error.reason, error.detail))
                continue
            for name, content in members:
                add_member(archive, name, content)
            count += 1
            indexed = len(members) > 1  # shards of texts without pictures have no index
    if indexed:
        state = Stamp.of(file.stat())
        build_index(file, str(file), state, "first_dot").write(Path(f"{file}{SUFFIX}"))
    shard = WrittenShard(job.name, count, file.stat().st_size, tuple(left_out))
    _write_json(folder / UNFINISHED / f"{job.name}.json", asdict(shard))
    return shard


def _members(split: SplitSource, index: int) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of each member of a sample. Raises BadRecord before the first of them."""
    record = split.source.record(index)
    key = f"{index:09}"
    if not isinstance(record, PlainText):
        contents = [_picture_content(picture, record.id, split.largest_pixels) for picture in _pictures(split, record)]
        places = [""] if len(contents) == 1 else [f".{number}" for number in range(len(contents))]
        names = [f"{key}{place}{suffix_of(content)}" for place, content in zip(places, contents, strict=True)]
        yield from zip(names, contents, strict=True)
        record = with_images(record, names)
    if isinstance(record, Record):
        yield f"{key}.txt", record.captions[0].encode()
    yield f"{key}.json", json.dumps(to_entry(record), ensure_ascii=False).encode()


def _pictures(split: SplitSource, record: Any) -> tuple[Any, ...]:
    """Returns the pictures of a record if they are made, or else their paths."""
    if not split.made:
        return tuple(record.images)
    if isinstance(split.source, TaskSource):
        return split.source.pictures(record)
    return (split.source.picture(record),)


def _picture_content(picture: Image.Image | str, record_id: str, largest_pixels: int) -> bytes:
    """Returns the bytes of a picture. Raises BadRecord unless it can be decoded."""
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()
    try:
        content = picture_bytes(picture)
    except OSError as error:
        raise BadRecord(record_id, "picture missing", str(error)) from None
    open_picture(content, record_id, 64, largest_pixels)
    return content


# --------------------------------------------------------------------------- earlier calls, manifest, report


def _finished(folder: Path, plan: Mapping[str, Any], shards: Iterable[Job]) -> dict[str, WrittenShard]:
    """Returns the shards that an earlier call completed. Raises ValueError if that call wrote something else, or if no
    call wrote what is there already."""
    manifest, notes = _read_json(folder / MANIFEST), folder / UNFINISHED
    is_manifest = isinstance(manifest, dict) and {"plan", "shards"} <= manifest.keys()
    earlier = manifest["plan"] if is_manifest else _read_json(notes / "plan.json")
    if earlier is None:
        spare([folder / MANIFEST, *(folder / job.name for job in shards)], (), lambda file: False)
    present = json.loads(json.dumps(plan))
    if earlier is not None and earlier != present:
        changed = sorted(key for key in {*earlier, *plan} if earlier.get(key) != present.get(key))
        raise ValueError(
            f"{folder} holds shards of something else, or the source has changed ({', '.join(changed)}): name another"
            " folder, or remove it"
        )
    written = manifest["shards"] if is_manifest else [_read_json(note) for note in sorted(notes.glob("[!.]*.tar.json"))]
    return {
        shard["name"]: WrittenShard(**{**shard, "left_out": tuple(map(tuple, shard["left_out"]))})
        for shard in written
        if shard
    }


def _is_complete(folder: Path, shard: WrittenShard | None) -> bool:
    file = folder / shard.name if shard else None
    return shard is not None and file is not None and file.is_file() and file.stat().st_size == shard.bytes


def _manifest(
    splits: Mapping[Split, SplitSource], lost: list[BadRecord], plan: Mapping[str, Any], shards: list[WrittenShard]
) -> dict[str, Any]:
    not_records = [(error.record, error.reason, error.detail) for error in lost]
    left_out = [*not_records, *(entry for shard in shards for entry in shard.left_out)]
    counts = {split: sum(shard.samples for shard in shards if shard.name.startswith(f"{split}-")) for split in splits}
    return {
        "plan": plan,
        "samples": counts,
        "bytes": sum(shard.bytes for shard in shards),
        "left_out": dict(Counter(reason for _, reason, _ in left_out)),
        "not_records": not_records,
        "shards": [asdict(shard) for shard in shards],
    }


def _report(splits: Mapping[Split, SplitSource], folder: Path, manifest: Mapping[str, Any], written: int) -> str:
    """Says what was written, what was left out, and with which settings the shards are used."""
    shards = [shard["name"] for shard in manifest["shards"]]
    counts = {split: sum(name.startswith(f"{split}-") for name in shards) for split in splits}
    left_out = [BadRecord(*entry) for entry in manifest["not_records"]]
    left_out += [BadRecord(*entry) for shard in manifest["shards"] for entry in shard["left_out"]]
    lines = [f"{folder}: {written} of {len(shards)} shards written, {manifest['bytes']:,} bytes in all"]
    lines += [f"{split}: {count:,} samples" for split, count in manifest["samples"].items()]
    lines += [f"{len(left_out)} left out:\n{list_errors(left_out)}"] if left_out else []
    first = next(iter(splits.values()))
    source = "texts" if isinstance(first.source.record(0), PlainText) else "shards"
    settings = " ".join(f"{PATH_SETTINGS[split]}={_pattern(folder, split, count)}" for split, count in counts.items())
    return "\n".join([*lines, f"use them with: data.source={source} {settings}"])


def _pattern(folder: Path, split: Split, count: int) -> str:
    """Returns a pattern of all shards of a split, quoted for a shell."""
    return f"{folder}/{split}-00000.tar" if count == 1 else f"'{folder}/{split}-{{00000..{count - 1:05}}}.tar'"


def _write_json(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, ensure_ascii=False, indent=1))


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
