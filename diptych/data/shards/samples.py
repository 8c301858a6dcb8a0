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

from diptych.data.entries import from_entry, name_of, texts_of
from diptych.data.files import decoded
from diptych.data.picture_kinds import is_hidden, is_picture
from diptych.data.pictures import part_of
from diptych.data.record import AnyRecord, BadRecord, Picture, PlainText, Record, with_images
from diptych.data.shards.naming import TEXT_SUFFIXES, key_of
from diptych.data.tar import members as tar_members_of
from diptych.printable import brief
from diptych.reading import parse_json
from diptych.schema import MemberNames

CAPTION_SUFFIXES = ("txt", "caption")
"""The members that may be the caption of a sample, the usual one first."""
CAPTION_KEYS = ("caption", "captions", "text")
"""The keys of the metadata that may hold the caption of a sample without such a member."""
TASK_KEYS = ("image", "images", "captions", "hypothesis", "question", "statement", "phrase")
"""Keys that mark a `.json` member as an entry of ours. img2dataset's metadata may have `caption` too."""


@dataclass(frozen=True)
class Members:
    """Holds the members of a sample: its name, the positions of its pictures, and its texts by suffix."""

    name: str
    pictures: dict[str, str]
    """The position in the shard (`part_of`) of each picture, by the member's name."""
    texts: dict[str, bytes]


def members_of(block: bytes, shard: str, start: int, naming: MemberNames = "first_dot") -> Members:
    """Reads the members of a sample from its bytes, which begin at `start` of a shard.

    Raises BadRecord, also if two members would be the text of the sample.
    """
    pictures: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    name = f"{shard}@{start}"
    try:
        for member in tar_members_of(io.BytesIO(block)):
            if is_hidden(member.name):
                continue
            suffix = PurePosixPath(member.name).suffix.lower()
            if is_picture(member.name):
                pictures[member.name] = part_of(shard, start + member.offset_data, member.size)
            else:
                if suffix in TEXT_SUFFIXES and suffix in texts:
                    detail = f"it has several members {suffix}: remove the shard's .index, or set data.sample_names"
                    raise BadRecord(name, "sample ambiguous", detail)
                texts[suffix] = block[member.offset_data : member.offset_data + member.size]
            name = f"{shard}/{key_of(member.name, naming)}"
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
        sample = Img2datasetSample([members.pictures[_picture_name(members)]], texts)
        return read_img2dataset_sample(sample, members.name)
    if "image" not in entry and "images" not in entry:
        entry = {"image": _picture_name(members), **entry}
    entry = {"id": members.name, **entry}
    if "image_id" not in entry and "images" not in entry:
        entry["image_id"] = members.name
    return _with_positions(from_entry(entry, members.name), members)


def _picture_name(members: Members) -> str:
    """Returns the name of the picture that the text of a sample describes: its only one, or the one named as it is.

    A segmentation `17.seg.png` may stand beside `17.jpg`. Raises BadRecord if several pictures could be meant.
    """
    names = list(members.pictures)
    plain = [name for name in names if members.name.endswith("/" + str(PurePosixPath(name).with_suffix("")))]
    if len(names) > 1 and len(plain) != 1:
        detail = f"its text may describe any of {', '.join(names)}: name one as `image` in a .json"
        raise BadRecord(members.name, "sample ambiguous", detail)
    return names[0] if len(names) == 1 else plain[0]


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

    pictures: list[str] = field(default_factory=list)
    """One path, unless a picture was not fetched or the sample is ambiguous."""
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    """The names of the pictures in the shard or folder."""


def read_img2dataset_sample(sample: Img2datasetSample, name: str) -> Record:
    """Returns the record of a sample. Raises BadRecord."""
    metadata = _metadata(sample, name)
    if not sample.pictures:
        raise BadRecord(name, "picture missing", str(metadata.get("error_message") or "not fetched"))
    if len(sample.pictures) > 1:
        raise BadRecord(name, "sample ambiguous", f"its text may describe any of {', '.join(sample.names)}")
    if suffix := next((suffix for suffix in CAPTION_SUFFIXES if suffix in sample.texts), None):
        captions: tuple[str, ...] = (decoded(sample.texts[suffix](), name, "text"),)
    elif key := next((key for key in CAPTION_KEYS if metadata.get(key) is not None), None):
        captions = texts_of(metadata, key, name)
    else:
        raise BadRecord(name, "caption missing", _without_caption(sample, metadata))
    return Record(name, sample.pictures[0], captions, name_of(metadata, "url", name) or name)


def _without_caption(sample: Img2datasetSample, metadata: Mapping[str, Any]) -> str:
    """Says what a sample has instead of a caption."""
    if not metadata:
        return f"no .txt and no .json beside the picture{': only .' * bool(sample.texts)}{', .'.join(sample.texts)}"
    return f"no .txt, and none of {', '.join(CAPTION_KEYS)} in the .json, which has {brief(list(metadata))}"


def _metadata(sample: Img2datasetSample, name: str) -> dict[str, Any]:
    if "json" not in sample.texts:
        return {}
    try:
        metadata = parse_json(decoded(sample.texts["json"](), name, "text"))
    except ValueError as error:
        raise BadRecord(name, "metadata is not JSON", str(error)) from None
    if not isinstance(metadata, dict):
        raise BadRecord(name, "metadata is not JSON", "not an object")
    return metadata
