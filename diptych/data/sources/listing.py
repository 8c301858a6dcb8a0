"""Collects what a list or folder holds: its usable records, and the entries that could not become records.

An entry is what a published list says about one record. A reader function turns it into a record or raises BadRecord.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.data.cleanup import clean_text
from diptych.data.entries import from_entry, plain_path
from diptych.data.files import split_paths
from diptych.data.picture_kinds import PassedOver
from diptych.data.pictures import file_of, spelled_on_disk
from diptych.data.record import (
    TASK_NAMES,
    AnyRecord,
    BadRecord,
    Picture,
    Question,
    Record,
    has_word,
    with_image_ids,
    with_images,
)
from diptych.schema import DataConfig, Split


@dataclass
class SourceListing:
    """Collects the records of one task that a list or folder holds, and the entries that were skipped."""

    records: Sequence[Any] = field(default_factory=list)
    """A list while it is being read. For a streamed split, any sequence that produces its records one by one."""
    skipped: list[BadRecord] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    splits: dict[str, Split] = field(default_factory=dict)
    """If the layout has its own splits: the split of each record, by its id, and of each skipped entry, by its name."""
    drawn: bool = False
    """Whether this evaluation split was drawn from the training data, because no path was set for it."""
    notes: list[str] = field(default_factory=list)
    """What was found out about the files by looking, such as which columns hold pictures, for their user to check."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The files that look like pictures and are not read as such."""

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Any:
        return self.records[index]

    def add(
        self,
        entry: Any,
        name: str,
        root: Path,
        max_words: int,
        read: Callable[[Any, str], AnyRecord] = from_entry,
        split_of: Callable[[Any, str], Split] | None = None,
    ) -> None:
        """Adds the record of an entry, or notes why it has none.

        `name` says where the entry stands. `read` turns it into a record, and `split_of` returns its split if the
        layout has its own; both raise BadRecord.
        """
        split: Split | None = None
        try:
            if isinstance(entry, BadRecord):
                raise entry
            split = split_of(entry, name) if split_of else None
            record, empty_captions = _located(read(entry, name), name, root, max_words)
            self._check(record, name)
        except BadRecord as error:
            self.skip(error, split)
            return
        self._append(record, split)
        for empty_caption in empty_captions:
            self.skip(empty_caption, split)

    def join(self, other: SourceListing, path: str) -> None:
        """Adds the records of another listing, read from `path`. Skips records of another task and repeated ids."""
        for record in other.records:
            split = other.splits.get(record.id)
            try:
                self._check(record, f"{path}, {record.id}")
            except BadRecord as error:
                self.skip(error, split)
            else:
                self._append(record, split)
        for skipped in other.skipped:
            self.skip(skipped, other.splits.get(skipped.record))
        self.notes += other.notes
        self.passed_over.join(other.passed_over)

    def skip(self, error: BadRecord, split: Split | None = None) -> None:
        """Notes an entry that cannot be used, and its split if the layout says it."""
        self.skipped.append(error)
        if split is not None:
            self.splits[error.record] = split

    def of_split(self, split: Split) -> SourceListing:
        """Returns the part that the layout assigns to a split. Skipped entries without a split count as training data.

        A layout without its own splits belongs to the split as a whole.
        """
        if not self.splits:
            return self
        return SourceListing(
            [record for record in self.records if self.splits.get(record.id) == split],
            [error for error in self.skipped if self.splits.get(error.record, "train") == split],
            notes=self.notes if split == "train" else [],
            passed_over=self.passed_over if split == "train" else PassedOver(),
        )

    def _append(self, record: AnyRecord, split: Split | None) -> None:
        assert isinstance(self.records, list)
        self.ids.add(record.id)
        self.records.append(record)
        if split is not None:
            self.splits[record.id] = split

    def _check(self, record: AnyRecord, name: str) -> None:
        """Raises BadRecord for a repeated id and for a record of another task than the records so far."""
        if record.id in self.ids:
            raise BadRecord(name, "id repeated", record.id)
        if self.records and type(record) is not type(self.records[0]):
            raise BadRecord(
                name, "another task", f"{TASK_NAMES[type(record)]} among {TASK_NAMES[type(self.records[0])]}"
            )


def _located(record: AnyRecord, name: str, root: Path, max_words: int) -> tuple[AnyRecord, list[BadRecord]]:
    """Puts `root` before the record's picture paths and removes its empty captions, which are returned as errors.

    Raises BadRecord if a picture is missing, no text is left, or none of a question's answers holds a word.
    """
    record, paths = paths_below(record, root)
    record, empty_captions = without_empty(with_images(record, paths), name, max_words)
    for path in paths:
        if "\0" in path or not os.path.isfile(file_of(path)):  # noqa: PTH113 — a million Path.is_file take seconds
            raise BadRecord(name, "picture missing", path)
    return record, empty_captions


def without_empty(record: AnyRecord, name: str, max_words: int) -> tuple[AnyRecord, list[BadRecord]]:
    """Removes the captions of a record that hold no word. They are returned as errors.

    Raises BadRecord if no text is left, or none of a question's answers holds a word.
    """
    place = record.images[0] if record.images else ""
    usable = [number for number, text in enumerate(record.texts) if has_word(clean_text(text, record, max_words))]
    if not usable and not isinstance(record, Picture):
        raise BadRecord(name, f"{record.text_name} empty", place)
    if isinstance(record, Question) and record.answers and not record.targets:
        raise BadRecord(name, "answer empty", place)
    if not isinstance(record, Record) or len(usable) == len(record.captions):
        return record, []
    empty = [
        BadRecord(f"{name}, caption {number + 1}", "caption empty", place)
        for number in range(len(record.captions))
        if number not in usable
    ]
    captions = tuple(record.captions[number] for number in usable)
    clean = tuple(record.clean[number] for number in usable) if record.clean else ()
    return replace(record, captions=captions, clean=clean), empty


def paths_below(record: AnyRecord, root: Path) -> tuple[AnyRecord, list[str]]:
    """Returns the record with the paths of its pictures below `root`.

    Lists written on Windows separate folders by backslashes, which are also letters of a name elsewhere. They are
    replaced where only that leads to a file.
    """
    paths = [spelled_on_disk(str(root / os.path.expanduser(image))) for image in record.images]  # noqa: PTH111
    for number, image in enumerate(record.images):
        slashed = str(root / image.replace("\\", "/"))
        if "\\" in image and not os.path.isfile(paths[number]) and os.path.isfile(slashed):  # noqa: PTH113
            paths[number] = slashed
            record = with_image_ids(record, {plain_path(image): plain_path(image.replace("\\", "/"))})
    return record, paths


def tell_apart(listings: Iterable[SourceListing]) -> None:
    """Gives different pictures of one name identities of their own: their paths from the folder that holds them all.

    Lists in several folders name pictures from there, so that `0001.jpg` may stand for several.
    """
    listings = list(listings)
    places: defaultdict[str, set[str]] = defaultdict(set)
    for record in (record for listing in listings for record in listing.records):
        for image, image_id in zip(record.images, record.image_ids, strict=True):
            places[image_id].add(image)
    ids: dict[str, str] = {}
    for image_id, files in places.items():
        if len(files) > 1 and all(file.endswith(f"/{image_id}") for file in files):
            common = os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120
            ids |= {file: Path(os.path.relpath(file, common)).as_posix() for file in files}
    for listing in listings if ids else ():
        for number, record in enumerate(listing.records):
            pairs = zip(record.images, record.image_ids, strict=True)
            if names := {image_id: ids[image] for image, image_id in pairs if image in ids}:
                assert isinstance(listing.records, list)
                listing.records[number] = with_image_ids(record, names)


def each(read: Callable[[str, DataConfig], SourceListing]) -> Callable[[str, DataConfig], SourceListing]:
    """Makes a reader of one path into a reader of several, separated by commas. It joins their records in order."""

    def read_each(paths: str, config: DataConfig) -> SourceListing:
        listing = SourceListing()
        for path in split_paths(paths):
            listing.join(read(path, config), path)
        if len(split_paths(paths)) > 1:
            tell_apart([listing])
        return listing

    return read_each
