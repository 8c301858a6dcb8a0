"""Turns the bytes of a sample into its record. Nothing here knows where the bytes come from.

A `.json` member is an entry in this library's JSON form (diptych/data/entries.py) if it names pictures or has the key
of a task. Its `image` is then the name of a member; by default it is the sample's picture. Any other sample is taken
for img2dataset's, whose caption is in `.txt` and whose metadata is in `.json`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from diptych.data.entries import from_entry, name_of, text_of
from diptych.data.pictures import SUFFIXES, part_of
from diptych.data.record import AnyRecord, BadRecord, Picture, PlainText, Record, with_images
from diptych.data.shards.index import key_of
from diptych.data.tar import members as tar_members_of
from diptych.printable import brief
from diptych.reading import parse_json

TASK_KEYS = ("image", "images", "captions", "hypothesis", "question", "statement", "phrase")
"""Keys that mark a `.json` member as an entry of ours. img2dataset's metadata may have `caption` too."""


@dataclass(frozen=True)
class Members:
    """Holds the members of a sample: its name, the positions of its pictures, and its texts by suffix."""

    name: str
    pictures: dict[str, str]
    """The position in the shard (`part_of`) of each picture, by the member's name."""
    texts: dict[str, bytes]


def members_of(block: bytes, shard: str, start: int) -> Members:
    """Reads the members of a sample from its bytes, which begin at `start` of a shard. Raises BadRecord."""
    pictures: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    name = f"{shard}@{start}"
    try:
        for member in tar_members_of(io.BytesIO(block)):
            suffix = PurePosixPath(member.name).suffix.lower()
            if suffix in SUFFIXES:
                pictures[member.name] = part_of(shard, start + member.offset_data, member.size)
            else:
                texts[suffix] = block[member.offset_data : member.offset_data + member.size]
            name = f"{shard}/{key_of(member.name)}"
    except tarfile.TarError as error:
        raise BadRecord(name, "shard broken", str(error)) from None
    return Members(name, pictures, texts)


def record_of(members: Members, pictures_alone: bool = False) -> AnyRecord:
    """Returns the record of a sample, whose images are positions in the shard. Raises BadRecord."""
    if not members.pictures:
        raise BadRecord(members.name, "picture missing", "no member of the sample is a picture")
    entry = _entry(members)
    if pictures_alone:
        return _picture(members, entry or {})
    if entry is None or not any(key in entry for key in TASK_KEYS):
        texts: dict[str, Callable[[], bytes]] = {
            suffix[1:]: partial(bytes, content) for suffix, content in members.texts.items()
        }
        sample = Img2datasetSample(next(iter(members.pictures.values())), texts)
        return read_img2dataset_sample(sample, members.name)
    entry = {"image": next(iter(members.pictures)), "id": members.name, **entry}
    if "image_id" not in entry and "images" not in entry:
        entry["image_id"] = members.name
    return _with_positions(from_entry(entry, members.name), members)


def _picture(members: Members, entry: Mapping[str, Any]) -> Picture:
    """Returns the first picture of a sample without its texts. An entry of ours gives it the name it has there."""
    name = entry.get("id") if "image" in entry else None
    identity = entry.get("image_id") or entry.get("url") or members.name
    return Picture(_short(name or members.name), next(iter(members.pictures.values())), _short(identity))


def _short(name: Any) -> str:
    """Returns a name as text. Anything may stand in a member."""
    return name if isinstance(name, str) else brief(name)


def _entry(members: Members) -> Mapping[str, Any] | None:
    """Returns the JSON object of a sample, or None if it has no `.json` member. Raises BadRecord."""
    if ".json" not in members.texts:
        return None
    try:
        entry = parse_json(members.texts[".json"])
    except ValueError as error:
        raise BadRecord(members.name, "metadata is not JSON", str(error)) from None
    if not isinstance(entry, dict):
        raise BadRecord(members.name, "metadata is not JSON", "not an object")
    return entry


def _with_positions(record: AnyRecord, members: Members) -> AnyRecord:
    """Replaces the member names of a record's pictures by their positions in the shard. Raises BadRecord."""
    if isinstance(record, PlainText):
        raise BadRecord(members.name, "another task", "a text without a picture: data.source=texts reads these")
    for image in record.images:
        if image not in members.pictures:
            raise BadRecord(members.name, "picture missing", f"no member {image} in the sample")
    located: AnyRecord = with_images(record, [members.pictures[image] for image in record.images])
    return located


# --------------------------------------------------------------------------- img2dataset's samples


@dataclass
class Img2datasetSample:
    """Holds the parts of a sample of img2dataset: its picture's path and functions that read its texts, by suffix."""

    picture: str | None = None
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)


def read_img2dataset_sample(sample: Img2datasetSample, name: str) -> Record:
    """Returns the record of a sample. Raises BadRecord."""
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


def _metadata(sample: Img2datasetSample, name: str) -> dict[str, Any]:
    if "json" not in sample.texts:
        return {}
    try:
        metadata = parse_json(_decoded(sample.texts["json"](), name))
    except BadRecord:
        raise
    except ValueError as error:
        raise BadRecord(name, "metadata is not JSON", str(error)) from None
    if not isinstance(metadata, dict):
        raise BadRecord(name, "metadata is not JSON", "not an object")
    return metadata


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(name, "text is not UTF-8", str(error)) from None
