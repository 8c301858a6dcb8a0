"""Writes the records of any layout as JSONL, one file per split, with or without copies of their pictures.

diptych/data/entries.py lists the JSON form of each kind of record.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path

from diptych.data.entries import from_entry, to_entry
from diptych.data.files import json_lines
from diptych.data.picture_kinds import SUFFIXES
from diptych.data.pictures import file_of, part_of, picture_bytes
from diptych.data.record import LOOKED_AT, AnyRecord, BadRecord, PlainText, with_images
from diptych.data.skips import list_errors
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.texts import TextSource
from diptych.data.splits import PATH_SETTINGS
from diptych.data.tar import add_member, tar_members, whole_shard
from diptych.schema import SPLITS, Split
from diptych.writing import spare, whole_file

SHARD_NAME = "pictures-"
SHARD_BYTES = 10**9
"""A tar shard is closed before it grows beyond this."""


def write_splits(
    listings: Mapping[Split, SourceListing],
    folder: Path,
    shard_bytes: int | None = None,
    read: Sequence[str | Path] = (),
) -> str:
    """Writes `folder/train.jsonl` and so on. Returns a message that says what was written and how to use it.

    Each file is complete or not written at all. By default pictures stay where they are, and the paths lead to them.
    With `shard_bytes`, each picture is copied once, unchanged, into tar shards of about that size in the folder. Splits
    that were drawn from the training data stay part of it, since they will be drawn from the JSONL as well. Records
    that cannot be used are left out and named. Raises ValueError if there is nothing to write, and where `spare_data`
    does; `read` names the files that the listings were read from.
    """
    spare_data(listings, folder, read, shard_bytes is not None)
    records: dict[Split, Sequence[AnyRecord]] = {
        split: listings[split].records for split in SPLITS if listings[split].records and not listings[split].drawn
    }
    drawn = [record for split in SPLITS if listings[split].drawn for record in listings[split].records]
    if drawn:
        records["train"] = [*records.get("train", []), *drawn]
    lost = [error for listing in listings.values() for error in listing.skipped]
    if not records:
        raise ValueError(f"there is no record to write\n{list_errors(lost)}")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = dict.fromkeys(image for group in records.values() for record in group for image in record.images)
    places = _pack(pictures, folder, shard_bytes) if shard_bytes is not None else {path: path for path in pictures}
    files = {split: _write(group, folder / f"{split}.jsonl", places) for split, group in records.items()}
    lines = [f"{file}: {len(records[split])} records" for split, file in files.items()]
    if lost:
        lines.append(f"{len(lost)} could not be used and were left out:\n{list_errors(lost)}")
    settings = " ".join(f"{PATH_SETTINGS[split]}={file}" for split, file in files.items())
    source = "texts" if all(isinstance(group[0], PlainText) for group in records.values()) else "jsonl"
    return "\n".join([*lines, f"use them with: data.source={source} {settings}"])


def spare_data(
    listings: Mapping[Split, SourceListing], folder: Path, read: Iterable[str | Path], shards: bool = False
) -> None:
    """Raises ValueError if `write_splits` would overwrite what it did not write, or one of `files_read`."""
    splits = {"train" if listing.drawn else split for split, listing in listings.items() if listing.records}
    targets = [folder / f"{split}.jsonl" for split in splits]
    targets += folder.glob(f"{SHARD_NAME}*.tar") if shards else ()
    spare(targets, files_read(listings, read), _is_own)


def files_read(listings: Mapping[Split, SourceListing], named: Iterable[str | Path]) -> Iterator[str | Path]:
    """Yields the files that are `named` as data, and those that hold the pictures and texts of the listings."""
    yield from named
    seen: set[str] = set()
    for records in (listing.records for listing in listings.values()):
        if isinstance(records, TextSource):
            yield from (file.path for file in records.files)
            continue
        for file in (file_of(image) for record in records for image in record.images):
            if file not in seen:
                seen.add(file)
                yield file


def _is_own(file: Path) -> bool:
    """Returns whether a list or shard looks exactly as `write_splits` writes it, judged by its beginning."""
    try:
        if file.suffix == ".tar":  # of pictures alone, counted through all shards
            keys = [member.name.partition(".")[0] for member in islice(tar_members(file), 2)]
            return keys == [f"{number:09}" for number in range(int(keys[0]), int(keys[0]) + len(keys))]
        return all(to_entry(from_entry(entry, name)) == entry for name, entry in islice(json_lines(file), LOOKED_AT))
    except (BadRecord, ValueError, OSError, EOFError, IndexError, tarfile.TarError):
        return False


def _pack(pictures: Iterable[str], folder: Path, shard_bytes: int) -> dict[str, str]:
    """Copies pictures into `folder/pictures-00000.tar` and so on. Returns the new place of each."""
    places: dict[str, str] = {}
    archive: tarfile.TarFile | None = None
    shards = (folder / f"{SHARD_NAME}{number:05}.tar" for number in count())
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
    """Writes records to a JSONL file, with picture paths that lead from its folder to the pictures' places."""
    with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
        for record in records:
            paths = [Path(os.path.relpath(places[image], file.parent)).as_posix() for image in record.images]
            stream.write(json.dumps(to_entry(with_images(record, paths)), ensure_ascii=False) + "\n")
    return file
