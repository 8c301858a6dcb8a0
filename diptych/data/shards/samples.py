"""The bytes of a sample as the record that they say. Nothing here knows where the bytes come from.

A `.json` member is a line of this library's JSONL form (diptych/data/record.py) if it names pictures or has the key of
a task; its `image` is then a member's name, and the sample's picture where it says none. Anything else is what
img2dataset writes: the caption in `.txt`, metadata in `.json`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from diptych.data.pictures import SUFFIXES, part_of
from diptych.data.record import AnyRecord, BadRecord, PairStatement, Picture, PlainText, from_entry
from diptych.data.shards.index import key_of
from diptych.data.sources.img2dataset import Sample, read_sample

TASK_KEYS = ("image", "images", "captions", "hypothesis", "question", "statement", "phrase")
"""Keys of a `.json` member that make it an entry of ours; `caption` alone is img2dataset's too."""


@dataclass(frozen=True)
class Members:
    """A sample's parts: what it is called, where its pictures are, and its texts by suffix."""

    name: str
    pictures: dict[str, str]
    """Member's name → the part of the shard that holds it."""
    texts: dict[str, bytes]


def members_of(block: bytes, shard: str, start: int) -> Members:
    """The members in the bytes of a sample, which begins at `start` of a shard. Raises BadRecord."""
    pictures: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    name = f"{shard}@{start}"
    try:
        with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as archive:
            for member in archive:
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in SUFFIXES:
                    pictures[member.name] = part_of(shard, start + member.offset_data, member.size)
                elif member.isreg():
                    texts[suffix] = block[member.offset_data : member.offset_data + member.size]
                name = f"{shard}/{key_of(member.name)}"
    except tarfile.TarError as error:
        raise BadRecord(name, "shard broken", str(error)) from None
    return Members(name, pictures, texts)


def record_of(members: Members, pictures_alone: bool = False) -> AnyRecord:
    """Its record, with the parts of the shard as images. Raises BadRecord."""
    if not members.pictures:
        raise BadRecord(members.name, "picture missing", "no member of the sample is a picture")
    entry = _entry(members)
    if pictures_alone:
        return _picture(members, entry or {})
    if entry is None or not any(key in entry for key in TASK_KEYS):
        return _of_img2dataset(members)
    entry = {"image": next(iter(members.pictures)), "id": members.name, **entry}
    if "image_id" not in entry and "images" not in entry:
        entry["image_id"] = members.name
    return _placed(from_entry(entry, members.name), members)


def _picture(members: Members, entry: Mapping[str, Any]) -> Picture:
    """The first picture, whatever is said of it. In this library's form it has the name that it has there."""
    name = entry.get("id") if "image" in entry else None
    identity = entry.get("image_id") or entry.get("url") or members.name
    return Picture(str(name or members.name), next(iter(members.pictures.values())), str(identity))


def _entry(members: Members) -> Mapping[str, Any] | None:
    if ".json" not in members.texts:
        return None
    try:
        entry = json.loads(members.texts[".json"])
    except (ValueError, RecursionError) as error:
        raise BadRecord(members.name, "metadata is not JSON", str(error)) from None
    if not isinstance(entry, dict):
        raise BadRecord(members.name, "metadata is not JSON", "not an object")
    return entry


def _placed(record: AnyRecord, members: Members) -> AnyRecord:
    """The record with each picture's member as the part of the shard where it is."""
    if isinstance(record, PlainText):
        raise BadRecord(members.name, "another task", "a text without a picture: data.source=texts reads these")
    for image in record.images:
        if image not in members.pictures:
            raise BadRecord(members.name, "picture missing", f"no member {image} in the sample")
    if isinstance(record, PairStatement):
        left, right = record.images
        return replace(record, images=(members.pictures[left], members.pictures[right]))
    return replace(record, image=members.pictures[record.image])


def _of_img2dataset(members: Members) -> AnyRecord:
    texts: dict[str, Callable[[], bytes]] = {
        suffix[1:]: partial(bytes, content) for suffix, content in members.texts.items()
    }
    return read_sample(Sample(next(iter(members.pictures.values())), texts), members.name)
