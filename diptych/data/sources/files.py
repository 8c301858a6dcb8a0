"""What the sources of picture files share: the record of an entry, the splits, reading pictures.

An entry is what a published list says of one picture or pair: `{"image": …, "caption" or "captions": …}`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

from PIL import Image

from diptych.data.cleanup import clean_caption, clean_question
from diptych.data.pictures import file_of, open_picture
from diptych.data.record import (
    TASK_NAMES,
    AnyRecord,
    BadRecord,
    PairStatement,
    Picture,
    PlainText,
    Question,
    R,
    Record,
    Referring,
    from_entry,
    text_of,
)
from diptych.schema import SPLITS, DataConfig, Split

TRAINING_SIDE = 1024
"""Training takes large JPEGs at a reduced scale, as long as no side falls below this: more than any crop resolves."""
LEAST_DRAWN = 3
"""Pictures drawn for an evaluation split at least, where the source has four times as many."""
NAMED = 20
"""Bad records that a message lists."""


@dataclass(frozen=True)
class FileSource(Generic[R]):
    """Records whose images are paths of picture files."""

    records: tuple[R, ...]
    skipped: tuple[BadRecord, ...] = ()
    least_side: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> R:
        return self.records[index]

    def picture(self, record: R) -> Image.Image:
        """The first picture of a record."""
        return self.pictures(record)[0]

    def pictures(self, record: R) -> tuple[Image.Image, ...]:
        return tuple(open_picture(image, record.id, self.least_side) for image in record.images)


@dataclass
class Found:
    """What reading a list or folder gave so far: records of one task."""

    records: Sequence[Any] = field(default_factory=list)
    """A list while it is read; of a split that is streamed, whatever gives its records one by one."""
    skipped: list[BadRecord] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    splits: dict[str, Split] = field(default_factory=dict)
    """Where the layout itself says so: the split of each record, by its id, and of each skipped one, by its name."""
    drawn: bool = False
    """Whether this is a share of the pictures for evaluation, drawn because the layout has no such split."""

    def add(
        self,
        entry: Any,
        name: str,
        root: Path,
        max_words: int,
        read: Callable[[Any, str], AnyRecord] = from_entry,
        split_of: Callable[[Any, str], Split] | None = None,
    ) -> None:
        """Keep an entry as a record, or note why not. `name` says where it stands; `read` makes a record of it and
        `split_of` says its split, where the layout does; both raise BadRecord."""
        split: Split | None = None
        try:
            if isinstance(entry, BadRecord):
                raise entry
            split = split_of(entry, name) if split_of else None
            record, empty = _located(read(entry, name), name, root, max_words)
            self._check(record, name)
        except BadRecord as error:
            self.skip(error, split)
            return
        self._keep(record, split)
        for lost in empty:
            self.skip(lost, split)

    def join(self, other: Found, path: str) -> None:
        """Keep what `path` gave, but for records of another task or with an id that is taken, which are named."""
        for record in other.records:
            split = other.splits.get(record.id)
            try:
                self._check(record, f"{path}, {record.id}")
            except BadRecord as error:
                self.skip(error, split)
            else:
                self._keep(record, split)
        for lost in other.skipped:
            self.skip(lost, other.splits.get(lost.record))

    def skip(self, error: BadRecord, split: Split | None = None) -> None:
        self.skipped.append(error)
        if split is not None:
            self.splits[error.record] = split

    def of(self, split: Split) -> Found:
        """The part that the layout gives to a split. What was skipped without one counts as training data."""
        return Found(
            [record for record in self.records if self.splits.get(record.id) == split],
            [error for error in self.skipped if self.splits.get(error.record, "train") == split],
        )

    def _keep(self, record: AnyRecord, split: Split | None) -> None:
        assert isinstance(self.records, list)
        self.ids.add(record.id)
        self.records.append(record)
        if split is not None:
            self.splits[record.id] = split

    def _check(self, record: AnyRecord, name: str) -> None:
        if record.id in self.ids:
            raise BadRecord(name, "id repeated", record.id)
        if self.records and type(record) is not type(self.records[0]):
            raise BadRecord(
                name, "another task", f"{TASK_NAMES[type(record)]} among {TASK_NAMES[type(self.records[0])]}"
            )


def _located(record: AnyRecord, name: str, root: Path, max_words: int) -> tuple[AnyRecord, list[BadRecord]]:
    """The record with the paths of its pictures, and those of its captions that are empty. Raises BadRecord."""
    if isinstance(record, PlainText):
        if not record.text.strip():
            raise BadRecord(name, "text empty")
        return record, []
    paths = [str(root / image) for image in record.images]
    clean = clean_question if isinstance(record, Question) else clean_caption
    keep = [number for number, text in enumerate(record.texts) if clean(text, max_words)]
    if not keep and not isinstance(record, Picture):
        raise BadRecord(name, f"{record.text_name} empty", paths[0])
    for path in paths:
        if "\0" in path or not os.path.isfile(file_of(path)):  # noqa: PTH113 — a million of these take seconds
            raise BadRecord(name, "picture missing", path)
    if isinstance(record, Record):
        lost = sorted(set(range(len(record.captions))).difference(keep))
        captions = tuple(record.captions[number] for number in keep)
        noiseless = tuple(record.clean[number] for number in keep) if record.clean else ()
        empty = [BadRecord(f"{name}, caption {number + 1}", "caption empty", paths[0]) for number in lost]
        return replace(record, image=paths[0], captions=captions, clean=noiseless), empty
    if isinstance(record, PairStatement):
        return replace(record, images=(paths[0], paths[1])), []
    return replace(record, image=paths[0]), []


# --------------------------------------------------------------------------- reading lists


def existing(path: str | Path, layout: str) -> Path:
    """The file. Raises ValueError; `layout` says what was looked for."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {file}: {layout}")
    return file


def read_json(path: str | Path, layout: str) -> Any:
    """A whole JSON file. Raises ValueError; `layout` says what it should be."""
    file = existing(path, layout)
    try:
        return json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None


def json_list(path: str | Path, layout: str) -> list[Any]:
    """A JSON file that must hold a list. Raises ValueError."""
    content = read_json(path, layout)
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a list: {layout}")
    return content


def json_object(path: str | Path, layout: str) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises ValueError."""
    content = read_json(path, layout)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not an object: {layout}")
    return content


def list_of(content: Mapping[str, Any], key: str, file: str | Path, layout: str) -> list[Any]:
    """A list that a JSON object must hold. Raises ValueError."""
    if not isinstance(content.get(key), list):
        raise ValueError(f"{file} has no list `{key}`: {layout}")
    return list(content[key])


def object_of(entry: Any, name: str) -> Mapping[str, Any]:
    """The entry itself, if it is a JSON object. Raises BadRecord."""
    if not isinstance(entry, Mapping):
        raise BadRecord(name, "not an object")
    return entry


def split_named(entry: Any, name: str, splits: Mapping[str, Split]) -> Split:
    """What an entry's `split` is called here. Raises BadRecord."""
    published = text_of(object_of(entry, name), "split", name)
    if published not in splits:
        raise BadRecord(name, "split unknown", f"'{published}' is none of {', '.join(splits)}")
    return splits[published]


def parts_of(paths: str) -> list[str]:
    """Several paths in one setting, with commas between them; a path that is there may hold commas itself."""
    if os.path.exists(paths):  # noqa: PTH110 — where Path.exists raises: a long list is no name of a file
        return [paths]
    return [part.strip() for part in paths.split(",") if part.strip()]


def each(read: Callable[[str, DataConfig], Found]) -> Callable[[str, DataConfig], Found]:
    """A reader of one path as a reader of several, with commas between them: their records in that order."""

    def read_each(paths: str, config: DataConfig) -> Found:
        found = Found()
        for path in parts_of(paths):
            found.join(read(path, config), path)
        return found

    return read_each


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a file that hold something, each as (FILE:LINE, what it says, or BadRecord why that is unknown)."""
    for _, number, content in lines_of(file):
        name = f"{file}:{number}"
        try:
            yield name, parsed(content, name)
        except BadRecord as error:
            yield name, error


def lines_of(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file that hold something: where each begins, its number from 1, its content."""
    start = 0
    with file.open("rb") as stream:  # bytes, so that one broken line does not spoil the others
        for number, line in enumerate(stream, start=1):
            if content := line_content(line, number):
                yield start, number, content
            start += len(line)


def line_content(line: bytes, number: int) -> bytes:
    """A line without the white space around it; some editors put a mark before the first."""
    return (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()


def parsed(content: bytes, name: str) -> Any:
    """What a line of JSON says. Raises BadRecord."""
    try:
        return json.loads(decoded(content, name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(name, "line is not JSON", str(error)) from None


def decoded(content: bytes, name: str) -> str:
    """A line as text. Raises BadRecord."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(name, "line is not UTF-8", str(error)) from None


def tar_members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar shard, in its order. Raises tarfile.TarError, OSError or EOFError where it is broken."""
    with tarfile.open(shard, "r:") as archive:
        yield from (member for member in archive if member.isreg())
    with shard.open("rb") as stream:  # one that was cut between two members looks whole otherwise
        stream.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(stream.read()):
            raise tarfile.ReadError("it does not end as tar files do")


# --------------------------------------------------------------------------- splits


def open_layout(read: Callable[[str, DataConfig], Found], config: DataConfig, split: Split) -> FileSource[Any]:
    """A split of a layout that `read` reads from a path of the configuration. Raises ValueError."""
    return open_split(lambda path: read(path, config), config, split)


def open_split(read: Callable[[str], Found], config: DataConfig, split: Split) -> FileSource[Any]:
    """A split of a source. `read` turns a path of the configuration into what it holds.

    `validation_path` and `test_path` decide where they are given, and the layout's own splits where it has any; these
    tolerate no bad entry. Otherwise `config.held_out` of the pictures of `path` make up each of these splits, drawn by
    a hash of their identity: all records of a picture fall into one split, and no order of the file and no seed changes
    which. Of a split drawn so, pictures that cannot be read are left out and named in `skipped`.
    """
    own = _own_path(config, split)
    if own is not None:
        return _given(_part(read(own), split), own, split)
    path = _path(config)
    found = read(path)
    if found.splits and split != "train":
        return _given(found.of(split), path, split)
    part = _divided(found, config, split)
    if split == "train":
        source = FileSource(tuple(part.records), tuple(part.skipped), least_side=_least_side(part.records))
    else:
        source = _readable(part.records)
    if not source.records:
        raise ValueError(_why_empty(found, source, config, split))
    return source


def read_splits(read: Callable[[str, DataConfig], Found], config: DataConfig) -> dict[Split, Found]:
    """All that a layout holds, divided as `open_split` does, with what is wrong with each part. Raises ValueError."""
    found = read(_path(config), config)
    own = {split: _own_path(config, split) for split in SPLITS}
    return {
        split: _divided(found, config, split) if path is None else _part(read(path, config), split)
        for split, path in own.items()
    }


def _own_path(config: DataConfig, split: Split) -> str | None:
    return {"validation": config.validation_path, "test": config.test_path}.get(split)


def _divided(found: Found, config: DataConfig, split: Split) -> Found:
    """The part of what `config.path` holds that belongs to a split."""
    if found.splits:
        return found.of(split)
    held = _held_out(found, config)
    kept = [record for record in found.records if held.get(_shown(record)[0], "train") == split]
    return Found(kept, found.skipped) if split == "train" else Found(kept, drawn=True)


def _part(found: Found, split: Split) -> Found:
    return found.of(split) if found.splits else found


def _least_side(records: Sequence[AnyRecord]) -> int | None:
    """Boxes count the pixels of the whole picture."""
    return None if records and isinstance(records[0], Referring) else TRAINING_SIDE


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise ValueError(f"data.source={config.source} needs data.path: where the pictures and their captions are")
    return config.path


def _given(found: Found, path: str, split: Split) -> FileSource[Any]:
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
    group_of = _groups(found.records)
    groups = sorted(set(group_of.values()), key=_draw)
    count = held_out_count(len(groups), config.held_out)
    held: dict[str, Split] = {}
    if config.validation_path is None:
        held |= dict.fromkeys(groups[:count], "validation")
    if config.test_path is None:
        held |= dict.fromkeys(groups[count : 2 * count], "test")
    return {picture: held[group] for picture, group in group_of.items() if group in held}


def held_out_count(groups: int, share: float) -> int:
    """How many of so many pictures an evaluation split gets. Raises ValueError for a share that leaves nothing."""
    if not 0 <= share < 0.5:
        raise ValueError(f"data.held_out is {share}: it must be at least 0 and below 0.5")
    count = round(share * groups)
    return max(count, min(LEAST_DRAWN, groups // 4)) if share > 0 else count


def _groups(records: Iterable[AnyRecord]) -> dict[str, str]:
    """Each picture with the name of its group: pictures that records show together must fall into one split."""
    above: dict[str, str] = {}

    def top(picture: str) -> str:
        while above.setdefault(picture, picture) != picture:
            above[picture] = above[above[picture]]
            picture = above[picture]
        return picture

    for record in records:
        seen = _shown(record)
        first, last = sorted((top(seen[0]), top(seen[-1])))
        above[last] = first  # so that a group's name is its least, whatever the order
    return {picture: top(picture) for picture in above}


def _draw(image_id: str) -> tuple[int, str]:
    return draw_number(image_id), image_id


def draw_number(identity: str) -> int:
    """What splits are drawn by: those with the least of these 64-bit numbers are held out."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _readable(records: Iterable[AnyRecord]) -> FileSource[Any]:
    kept: list[AnyRecord] = []
    skipped: list[BadRecord] = []
    sound: set[str] = set()
    for record in records:
        try:
            for image in set(record.images) - sound:
                open_picture(image, record.id, least_side=64)
                sound.add(image)
            kept.append(record)
        except BadRecord as error:
            skipped.append(error)
    return FileSource(tuple(kept), tuple(skipped))


def _why_empty(found: Found, source: FileSource[Any], config: DataConfig, split: Split) -> str:
    bad = [*found.skipped, *source.skipped] if split != "train" else found.skipped
    reasons = f"\n{len(bad)} could not be used:\n{listing(bad)}" if bad else ""
    if not found.records:
        return f"{config.path} holds no usable record{reasons}"
    return (
        f"the {split} split is empty: of {len(found.records)} records in {config.path},"
        f" data.held_out={config.held_out:g} leaves none for it. Give more pictures, another share, or"
        f" data.validation_path and data.test_path.{reasons}"
    )


def _shown(record: AnyRecord) -> Sequence[str]:
    """What must not fall into two splits: a record's pictures, or what it says without any."""
    return record.image_ids or record.texts


def without_pictures(source: FileSource[Any]) -> FileSource[PlainText]:
    """Each text of a source, whatever it was said of. Raises ValueError where there is none."""
    texts = tuple(
        PlainText(record.id if len(record.texts) == 1 else f"{record.id}, text {number}", text)
        for record in source.records
        for number, text in enumerate(record.texts, start=1)
    )
    if not texts:
        raise ValueError("this task needs texts, and the data has none: choose a data.source that does")
    return FileSource(texts, source.skipped)


def without_texts(source: FileSource[Any]) -> FileSource[Picture]:
    """Each picture of a source once, whatever was said of it. Raises ValueError where there is none."""
    pictures: dict[str, Picture] = {}
    for record in source.records:
        for image, image_id in zip(record.images, record.image_ids, strict=True):
            pictures.setdefault(image_id, Picture(record.id, image, image_id))
    if not pictures:
        raise ValueError("this task needs pictures, and the data has none: choose a data.source that does")
    return FileSource(tuple(pictures.values()), source.skipped, source.least_side)


def listing(errors: Sequence[BadRecord]) -> str:
    """The first few, one a line."""
    more = [f"  and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
    return "\n".join([*(f"  {error}" for error in errors[:NAMED]), *more])
