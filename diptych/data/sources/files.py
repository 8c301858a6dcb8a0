"""What the sources of picture files share: the record of an entry, the splits, reading pictures.

An entry is what a published list says of one picture: `{"image": …, "caption" or "captions": …}`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.cleanup import clean_caption
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord, Record, Split
from diptych.schema import DataConfig

TRAINING_SIDE = 1024
"""Training takes large JPEGs at a reduced scale, as long as no side falls below this: more than any crop resolves."""
LEAST_DRAWN = 3
"""Pictures drawn for an evaluation split at least, where the source has four times as many."""
NAMED = 20
"""Bad records that a message lists."""


@dataclass(frozen=True)
class FileSource:
    """Records whose `image` is the path of a picture file."""

    records: tuple[Record, ...]
    skipped: tuple[BadRecord, ...] = ()
    least_side: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def picture(self, record: Record) -> Image.Image:
        return open_picture(record.image, record.id, self.least_side)


@dataclass
class Found:
    """What reading a list or folder gave so far."""

    records: list[Record] = field(default_factory=list)
    skipped: list[BadRecord] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def add(self, entry: Any, name: str, root: Path, max_words: int) -> None:
        """Keep an entry as a record, or note why not. `name` says where it stands."""
        try:
            record, empty = _record(entry, name, root, max_words)
            if record.id in self.ids:
                raise BadRecord(name, "id repeated", record.id)
        except BadRecord as error:
            self.skipped.append(error)
            return
        self.ids.add(record.id)
        self.records.append(record)
        self.skipped += empty


def _record(entry: Any, name: str, root: Path, max_words: int) -> tuple[Record, list[BadRecord]]:
    """The record of an entry, and those of its captions that are empty. Raises BadRecord."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object", 'each entry is {"image": …, "caption": …}')
    image = _text(entry, "image", name)
    captions = _captions(entry, "captions" if "captions" in entry else "caption", name)
    clean = _captions(entry, "clean", name) if entry.get("clean") else ()
    if clean and len(clean) != len(captions):
        raise BadRecord(name, "wrong type", "`clean` must have one text for each caption")
    keep = [number for number, caption in enumerate(captions) if clean_caption(caption, max_words)]
    path = root / image
    if not keep:
        raise BadRecord(name, "caption empty", str(path))
    if "\0" in image or not os.path.isfile(path):  # noqa: PTH113 — a million of these take seconds
        raise BadRecord(name, "picture missing", str(path))
    record = Record(
        id=_name(entry, "id", name) or name,
        image=str(path),
        captions=tuple(captions[number] for number in keep),
        image_id=_name(entry, "image_id", name) or Path(os.path.normpath(image)).as_posix(),
        clean=tuple(clean[number] for number in keep) if clean else (),
    )
    lost = set(range(len(captions))).difference(keep)
    return record, [BadRecord(f"{name}, caption {number + 1}", "caption empty", str(path)) for number in sorted(lost)]


def _text(entry: Mapping[str, Any], key: str, name: str) -> str:
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    if not isinstance(entry[key], str):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text")
    return _unicode(entry[key], name)


def _name(entry: Mapping[str, Any], key: str, name: str) -> str | None:
    """An optional name; published lists number their pictures, so whole numbers will do."""
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(name, "wrong type", f"`{key}` must be a text or a whole number")


def _captions(entry: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    if key not in entry:
        raise BadRecord(name, "key missing", key)
    value = entry[key]
    captions = (value,) if isinstance(value, str) else value
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise BadRecord(name, "wrong type", f"`{key}` must be a text or a list of texts")
    return tuple(_unicode(caption, name) for caption in captions)


def _unicode(text: str, name: str) -> str:
    """JSON and file names can hold half characters, which no tokenizer takes and no terminal prints."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(name.encode(errors="backslashreplace").decode(), "not Unicode", str(error)) from None
    return text


# --------------------------------------------------------------------------- splits


def open_split(read: Callable[[str], Found], config: DataConfig, split: Split) -> FileSource:
    """A split of a source. `read` turns a path of the configuration into what it holds.

    `validation_path` and `test_path` decide where they are given, and tolerate no bad entry. Otherwise
    `config.held_out` of the pictures of `path` make up each of these splits, drawn by a hash of their identity: all
    records of a picture fall into one split, and no order of the file and no seed changes which. Of a split drawn so,
    pictures that cannot be read are left out and named in `skipped`.
    """
    own = {"validation": config.validation_path, "test": config.test_path}.get(split)
    if own is not None:
        return _given(read(own), own, split)
    found = read(_path(config))
    held = _held_out(found, config)
    if split == "train":
        training = tuple(record for record in found.records if record.image_id not in held)
        source = FileSource(training, tuple(found.skipped), least_side=TRAINING_SIDE)
    else:
        source = _readable([record for record in found.records if held.get(record.image_id) == split])
    if not source.records:
        raise ValueError(_why_empty(found, source, config, split))
    return source


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise ValueError(f"data.source={config.source} needs data.path: where the pictures and their captions are")
    return config.path


def _given(found: Found, path: str, split: Split) -> FileSource:
    if found.skipped:
        raise ValueError(
            f"{len(found.skipped)} records of the {split} split in {path} cannot be used;"
            f" evaluation tolerates none:\n{listing(found.skipped)}"
        )
    if not found.records:
        raise ValueError(f"the {split} split in {path} holds no records")
    return FileSource(tuple(found.records))


def _held_out(found: Found, config: DataConfig) -> dict[str, Split]:
    """The pictures of `config.path` that training must not see, each with its split."""
    if not 0 <= config.held_out < 0.5:
        raise ValueError(f"data.held_out is {config.held_out}: it must be at least 0 and below 0.5")
    pictures = sorted({record.image_id for record in found.records}, key=_draw)
    count = round(config.held_out * len(pictures))
    if config.held_out > 0:
        count = max(count, min(LEAST_DRAWN, len(pictures) // 4))
    held: dict[str, Split] = {}
    if config.validation_path is None:
        held |= dict.fromkeys(pictures[:count], "validation")
    if config.test_path is None:
        held |= dict.fromkeys(pictures[count : 2 * count], "test")
    return held


def _draw(image_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), image_id


def _readable(records: Iterable[Record]) -> FileSource:
    kept: list[Record] = []
    skipped: list[BadRecord] = []
    sound: set[str] = set()
    for record in records:
        try:
            if record.image not in sound:
                open_picture(record.image, record.id, least_side=64)
                sound.add(record.image)
            kept.append(record)
        except BadRecord as error:
            skipped.append(error)
    return FileSource(tuple(kept), tuple(skipped))


def _why_empty(found: Found, source: FileSource, config: DataConfig, split: Split) -> str:
    bad = [*found.skipped, *source.skipped] if split != "train" else found.skipped
    reasons = f"\n{len(bad)} could not be used:\n{listing(bad)}" if bad else ""
    if not found.records:
        return f"{config.path} holds no usable picture with a caption{reasons}"
    return (
        f"the {split} split is empty: of {len(found.records)} records in {config.path},"
        f" data.held_out={config.held_out:g} leaves none for it. Give more pictures, another share, or"
        f" data.validation_path and data.test_path.{reasons}"
    )


def listing(errors: Sequence[BadRecord]) -> str:
    """The first few, one a line."""
    more = [f"  and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
    return "\n".join([*(f"  {error}" for error in errors[:NAMED]), *more])
