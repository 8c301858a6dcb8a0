"""Records of any layout as JSONL (schemas: diptych/data/record.py), a file a split, with or without their pictures."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

from diptych.data.pictures import SUFFIXES, part_of, picture_bytes
from diptych.data.record import AnyRecord, PairStatement, PlainText, to_entry
from diptych.data.shards.tar import add_member, whole_shard
from diptych.data.sources.files import Found, listing
from diptych.schema import SPLITS, Split

SHARD_BYTES = 10**9
"""A tar shard is closed before it grows beyond this."""


def write_splits(parts: Mapping[Split, Found], folder: Path, shard_bytes: int | None = None) -> str:
    """Write `folder/train.jsonl` and the like, each whole or not at all. Returns what was done, and how to use it.

    Pictures stay where they are, and the paths lead to them; with `shard_bytes` each picture is copied once, as it is,
    into tar shards of about that size in the folder. Splits that would be drawn from the training data stay part of
    it, since they are drawn from the JSONL as well. Records that cannot be used are left out and named. Raises
    ValueError if there is nothing to write.
    """
    kept: dict[Split, Sequence[AnyRecord]] = {
        split: parts[split].records for split in SPLITS if parts[split].records and not parts[split].drawn
    }
    drawn = [record for split in SPLITS if parts[split].drawn for record in parts[split].records]
    if drawn:
        kept["train"] = [*kept.get("train", []), *drawn]
    lost = [error for part in parts.values() for error in part.skipped]
    if not kept:
        raise ValueError(f"there is no record to write\n{listing(lost)}")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = dict.fromkeys(image for records in kept.values() for record in records for image in record.images)
    places = _pack(pictures, folder, shard_bytes) if shard_bytes is not None else {path: path for path in pictures}
    files = {split: _write(records, folder / f"{split}.jsonl", places) for split, records in kept.items()}
    return _said(kept, files, [f"{len(lost)} could not be used and were left out:\n{listing(lost)}"] if lost else [])


def _said(kept: Mapping[Split, Sequence[AnyRecord]], files: Mapping[Split, Path], lost: Sequence[str]) -> str:
    lines = [f"{file}: {len(kept[split])} records" for split, file in files.items()]
    names = {"train": "data.path", "validation": "data.validation_path", "test": "data.test_path"}
    use = " ".join(f"{names[split]}={file}" for split, file in files.items())
    source = "texts" if all(isinstance(records[0], PlainText) for records in kept.values()) else "jsonl"
    return "\n".join([*lines, *lost, f"use them with: data.source={source} {use}"])


def _pack(pictures: Iterable[str], folder: Path, shard_bytes: int) -> dict[str, str]:
    """Copy pictures into `folder/pictures-00000.tar` and so on. Returns where each of them is now."""
    places: dict[str, str] = {}
    archive: tarfile.TarFile | None = None
    shards = (folder / f"pictures-{number:05}.tar" for number in count())
    with ExitStack() as opened:
        for number, path in enumerate(pictures):
            content = picture_bytes(path)
            if archive is None or archive.offset + len(content) > shard_bytes:
                opened.close()
                shard = next(shards)
                archive = opened.enter_context(whole_shard(shard))
            suffix = Path(path).suffix.lower()
            start = add_member(archive, f"{number:09}{suffix if suffix in SUFFIXES else ''}", content)
            places[path] = part_of(shard, start, len(content))
    return places


def _write(records: Sequence[AnyRecord], file: Path, places: Mapping[str, str]) -> Path:
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        for record in records:
            entry = to_entry(_moved(record, file.parent, places))
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return unfinished.replace(file)


def _moved(record: AnyRecord, folder: Path, places: Mapping[str, str]) -> AnyRecord:
    """The record with the paths that lead from the folder to where its pictures are."""
    if isinstance(record, PlainText):
        return record
    paths = [Path(os.path.relpath(places[image], folder)).as_posix() for image in record.images]
    if isinstance(record, PairStatement):
        return replace(record, images=(paths[0], paths[1]))
    return replace(record, image=paths[0])
