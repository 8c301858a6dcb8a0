"""What img2dataset writes: folders or tar shards, in which a picture, its caption and its metadata share a name.

`00000/000000017.jpg`, `.txt` and `.json`, or the same three as members of `00000.tar`. The metadata is `{"caption": …,
"key": …, "url": …, "status": "success"}`; failed downloads have no picture, and no more than a caption and metadata.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.pictures import SUFFIXES, part_of
from diptych.data.record import BadRecord, Record, name_of, text_of
from diptych.data.sources.files import Found, tar_members
from diptych.data.sources.folder import files_below
from diptych.schema import DataConfig

LAYOUT = "data.source=img2dataset reads a folder of img2dataset's output, or one of its tar shards"
LARGEST_TEXT = 1 << 20
"""Bytes of a caption or its metadata; more is neither."""


@dataclass
class Sample:
    """The parts of a sample: where its picture is, and how to read its texts."""

    picture: str | None = None
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)


def read_img2dataset(path: str, config: DataConfig) -> Found:
    """All samples below a folder, or of a shard. Raises ValueError."""
    if config.root is not None:
        raise ValueError("data.root says nothing here: img2dataset keeps pictures beside their captions")
    place = Path(path)
    if place.is_file():
        shards, root = [place], place.parent
    elif place.is_dir():
        root = place
        shards = [root / file for file in files_below(root) if file.suffix == ".tar"]
    else:
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    found = Found()
    for shard in shards:
        for name, sample in shard_samples(shard, root, found):
            found.add(sample, name, root, config.max_words, read_sample)
    if place.is_dir():
        for name, sample in _folder(root):
            found.add(sample, name, root, config.max_words, read_sample)
    return found


def read_sample(sample: Any, name: str) -> Record:
    """The record of a `Sample`. Raises BadRecord."""
    metadata = _metadata(sample, name)
    if sample.picture is None:
        raise BadRecord(name, "picture missing", str(metadata.get("error_message") or "not fetched"))
    if "txt" in sample.texts:
        caption = _decoded(sample.texts["txt"](), name)
    elif metadata.get("caption") is not None:
        caption = text_of(metadata, "caption", name)
    else:
        raise BadRecord(name, "caption missing")
    return Record(name, sample.picture, (caption,), name_of(metadata, "url", name) or name)


def _metadata(sample: Sample, name: str) -> dict[str, Any]:
    if "json" not in sample.texts:
        return {}
    try:
        metadata = json.loads(_decoded(sample.texts["json"](), name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(name, "metadata is not JSON", str(error)) from None
    if not isinstance(metadata, dict):
        raise BadRecord(name, "metadata is not JSON", "not an object")
    return metadata


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(name, "text is not UTF-8", str(error)) from None


def _folder(root: Path) -> Iterator[tuple[str, Sample]]:
    """The samples of plain files, in the order of names."""
    samples: dict[str, Sample] = {}
    for file in files_below(root):
        if not file.name.endswith("_stats.json"):
            _collect(samples, file.as_posix(), file.as_posix(), partial(_file_text, root / file))
    yield from samples.items()


def _file_text(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(LARGEST_TEXT)


def shard_samples(shard: Path, root: Path, found: Found) -> Iterator[tuple[str, Sample]]:
    """The samples of a tar file, in its order. Pictures are not read, but their places noted."""
    samples: dict[str, Sample] = {}
    try:
        for member in tar_members(shard):
            place = part_of(shard.resolve(), member.offset_data, member.size)
            text = partial(_part_text, shard, member.offset_data, min(member.size, LARGEST_TEXT))
            _collect(samples, member.name, place, text)
    except (tarfile.TarError, OSError, EOFError) as error:
        found.skip(BadRecord(str(shard), "shard broken", str(error)))
    yield from ((f"{shard.relative_to(root).as_posix()}/{key}", sample) for key, sample in samples.items())


def _part_text(shard: Path, start: int, size: int) -> bytes:
    with shard.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def _collect(samples: dict[str, Sample], name: str, place: str, text: Callable[[], bytes]) -> None:
    """Put a file to its sample: what shares its path but for the suffix."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        samples.setdefault(str(path.with_suffix("")), Sample()).picture = place
    elif suffix in (".txt", ".json"):
        samples.setdefault(str(path.with_suffix("")), Sample()).texts[suffix[1:]] = text
