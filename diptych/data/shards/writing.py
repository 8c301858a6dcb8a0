"""Any source as tar shards with their indices, by several processes, going on where it was stopped.

Which record comes into which shard is settled before anything is written: shard s of a split has records s·n to
(s+1)·n. What became of a shard is noted when it is whole; `manifest.json`, written last, gathers these notes.
A sample is its pictures as they are (made ones as PNG), a `.json` in this library's form, and for a picture with
captions the first of them as `.txt`, which other readers look for.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.pictures import open_picture, picture_bytes, suffix_of
from diptych.data.record import AnyRecord, BadRecord, PairStatement, PlainText, Record, TaskSource, to_entry
from diptych.data.shards.index import Stamp, build_index
from diptych.data.shards.kept import locked
from diptych.data.shards.listing import SUFFIX
from diptych.data.shards.remote import say
from diptych.data.shards.tar import add_member, whole_shard
from diptych.data.sources.files import Found, listing
from diptych.data.workers import each_in_parallel
from diptych.schema import Split

SAMPLES = 10_000
"""Samples of a shard, as img2dataset has it."""
MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""Folder of the notes on shards that are whole, as long as not all are."""


@dataclass(frozen=True)
class Part:
    """A split to be written: `source` has `record(index)`, and `pictures(record)` where these are made."""

    source: Any
    lost: tuple[BadRecord, ...] = ()
    """What could not become a record."""
    made: bool = False
    """Whether the pictures are made, and lie in no file."""

    def __len__(self) -> int:
        return len(self.source)


def part_of_found(found: Found) -> Part:
    return Part(_Records(found.records), tuple(found.skipped))


@dataclass(frozen=True)
class _Records:
    """Records of files as a source."""

    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> AnyRecord:
        found: AnyRecord = self.records[index]
        return found


@dataclass(frozen=True)
class Written:
    """What became of a shard. `left_out`: (record, reason, detail) each."""

    name: str
    samples: int
    bytes: int
    left_out: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Job:
    split: Split
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}.tar"


def write_shards(parts: Mapping[Split, Part], folder: Path, origin: Mapping[str, Any], samples: int, jobs: int) -> str:
    """Write `folder/train-00000.tar` and so on. Returns what was done, and how to use it.

    `origin` says what is written, so that only the same is gone on with. Raises ValueError where the folder holds
    something else, where another process writes to it, or where there is nothing to write.
    """
    if samples < 1 or jobs < 1:
        raise ValueError(f"--samples is {samples} and --jobs {jobs}: both must be at least 1")
    lost = [error for part in parts.values() for error in part.lost]
    parts = {split: part for split, part in parts.items() if len(part)}
    if not parts:
        raise ValueError(f"there is no record to write\n{listing(lost)}")
    plan = {**origin, "samples_per_shard": samples, "records": {split: len(part) for split, part in parts.items()}}
    notes = folder / UNFINISHED
    with locked(notes / "lock", f"another process writes to {folder}"):
        done = _begun(folder, plan)
        todo = [job for job in _jobs(parts, samples) if not _whole(folder, done.get(job.name))]
        if todo:
            _write_json(notes / "plan.json", plan)
            _write_all(parts, folder, todo, jobs, done)
        manifest = _manifest(parts, lost, plan, [done[job.name] for job in _jobs(parts, samples)])
        _write_json(folder / MANIFEST, manifest)
        shutil.rmtree(notes, ignore_errors=True)
    return _said(parts, folder, manifest, len(todo))


def _write_all(parts: Mapping[Split, Part], folder: Path, todo: list[Job], jobs: int, done: dict[str, Written]) -> None:
    for count, one in enumerate(each_in_parallel(partial(_write, parts, folder), todo, min(jobs, len(todo))), start=1):
        done[one.name] = one
        say(f"{one.name}: {one.samples:,} samples, {one.bytes:,} bytes ({count} of {len(todo)})")


def _jobs(parts: Mapping[Split, Part], samples: int) -> Iterator[Job]:
    for split, part in parts.items():
        for number, first in enumerate(range(0, len(part), samples)):
            yield Job(split, number, first, min(first + samples, len(part)))


# --------------------------------------------------------------------------- one shard


def _write(parts: Mapping[Split, Part], folder: Path, job: Job) -> Written:
    part, left_out = parts[job.split], []
    file, count, indexed = folder / job.name, 0, True
    with whole_shard(file) as archive:
        for index in range(job.first, job.last):
            try:
                members = list(_members(part, index))
            except BadRecord as error:
                left_out.append((error.record, error.reason, error.detail))
                continue
            for name, content in members:
                add_member(archive, name, content)
            count += 1
            indexed = len(members) > 1
    if indexed:
        state = Stamp.of(file.stat())
        build_index(file, str(file), state).write(Path(f"{file}{SUFFIX}"))
    written = Written(job.name, count, file.stat().st_size, tuple(left_out))
    _write_json(folder / UNFINISHED / f"{job.name}.json", asdict(written))
    return written


def _members(part: Part, index: int) -> Iterator[tuple[str, bytes]]:
    """A sample's members by name. Raises BadRecord before the first of them if it cannot be used."""
    record = part.source.record(index)
    key = f"{index:09}"
    if not isinstance(record, PlainText):
        contents = [_content(picture, record.id) for picture in _pictures(part, record)]
        places = [""] if len(contents) == 1 else [f".{number}" for number in range(len(contents))]
        names = [f"{key}{place}{suffix_of(content)}" for place, content in zip(places, contents, strict=True)]
        yield from zip(names, contents, strict=True)
        record = _called(record, names)
    if isinstance(record, Record):
        yield f"{key}.txt", record.captions[0].encode()
    yield f"{key}.json", json.dumps(to_entry(record), ensure_ascii=False).encode()


def _pictures(part: Part, record: Any) -> tuple[Any, ...]:
    if not part.made:
        return tuple(record.images)
    if isinstance(part.source, TaskSource):
        return part.source.pictures(record)
    return (part.source.picture(record),)


def _content(picture: Image.Image | str, record_id: str) -> bytes:
    """The bytes of a picture that can be decoded. Raises BadRecord."""
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()
    try:
        content = picture_bytes(picture)
    except OSError as error:
        raise BadRecord(record_id, "picture missing", str(error)) from None
    open_picture(content, record_id, least_side=64)
    return content


def _called(record: Any, names: list[str]) -> AnyRecord:
    """The record with the names of its pictures in the shard."""
    if isinstance(record, PairStatement):
        return replace(record, images=(names[0], names[1]))
    called: AnyRecord = replace(record, image=names[0])
    return called


# --------------------------------------------------------------------------- what there is already


def _begun(folder: Path, plan: Mapping[str, Any]) -> dict[str, Written]:
    """The shards that an earlier call finished. Raises ValueError where it wrote something else."""
    manifest, notes = _read_json(folder / MANIFEST), folder / UNFINISHED
    earlier = manifest["plan"] if manifest else _read_json(notes / "plan.json")
    if earlier is not None and earlier != json.loads(json.dumps(plan)):
        changed = sorted(key for key in {*earlier, *plan} if earlier.get(key) != json.loads(json.dumps(plan)).get(key))
        raise ValueError(
            f"{folder} holds shards of something else, or the source has changed ({', '.join(changed)}): name another"
            " folder, or remove it"
        )
    found = manifest["shards"] if manifest else [_read_json(note) for note in sorted(notes.glob("*.tar.json"))]
    return {one["name"]: Written(**{**one, "left_out": tuple(map(tuple, one["left_out"]))}) for one in found if one}


def _whole(folder: Path, written: Written | None) -> bool:
    file = folder / written.name if written else None
    return written is not None and file is not None and file.is_file() and file.stat().st_size == written.bytes


def _manifest(
    parts: Mapping[Split, Part], lost: list[BadRecord], plan: Mapping[str, Any], shards: list[Written]
) -> dict[str, Any]:
    not_records = [(error.record, error.reason, error.detail) for error in lost]
    left_out = [*not_records, *(entry for shard in shards for entry in shard.left_out)]
    counts = {split: sum(one.samples for one in shards if one.name.startswith(f"{split}-")) for split in parts}
    return {
        "plan": plan,
        "samples": counts,
        "bytes": sum(shard.bytes for shard in shards),
        "left_out": dict(Counter(reason for _, reason, _ in left_out)),
        "not_records": not_records,
        "shards": [asdict(shard) for shard in shards],
    }


def _said(parts: Mapping[Split, Part], folder: Path, manifest: Mapping[str, Any], written: int) -> str:
    names = {"train": "data.path", "validation": "data.validation_path", "test": "data.test_path"}
    shards = [shard["name"] for shard in manifest["shards"]]
    ranges = {split: sum(name.startswith(f"{split}-") for name in shards) for split in parts}
    left = [BadRecord(*entry) for entry in manifest["not_records"]]
    left += [BadRecord(*entry) for shard in manifest["shards"] for entry in shard["left_out"]]
    lines = [f"{folder}: {written} of {len(shards)} shards written, {manifest['bytes']:,} bytes in all"]
    lines += [f"{split}: {count:,} samples" for split, count in manifest["samples"].items()]
    lines += [f"{len(left)} left out:\n{listing(left)}"] if left else []
    first = next(iter(parts.values()))
    source = "texts" if isinstance(first.source.record(0), PlainText) else "shards"
    use = " ".join(f"{names[split]}={_pattern(folder, split, count)}" for split, count in ranges.items())
    return "\n".join([*lines, f"use them with: data.source={source} {use}"])


def _pattern(folder: Path, split: Split, count: int) -> str:
    """What names the shards of a split, for a shell."""
    return f"{folder}/{split}-00000.tar" if count == 1 else f"'{folder}/{split}-{{00000..{count - 1:05}}}.tar'"


def _write_json(file: Path, content: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    part.replace(file)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
