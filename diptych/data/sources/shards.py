"""Tar shards in the WebDataset layout, read as they lie there, from this machine or from addresses.

What is kept of a shard that is not open is its name, its state and how many samples it has; an open one's index lies in
a file. So memory does not grow with the number of samples (docs/data.md states the bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Int
from PIL import Image

from diptych.data.order import Lanes
from diptych.data.pictures import open_picture, place_of
from diptych.data.record import TASK_NAMES, AnyRecord, BadRecord, Picture, Record, Referring
from diptych.data.shards.index import DRAWS, read_index
from diptych.data.shards.kept import CHANGED
from diptych.data.shards.listing import Place, Seen, kept_shards, open_shards_of
from diptych.data.shards.mixing import Mixing
from diptych.data.shards.reading import OpenShards
from diptych.data.shards.remote import is_remote
from diptych.data.shards.samples import members_of, record_of
from diptych.data.sources.files import TRAINING_SIDE, Found, listing
from diptych.schema import SPLITS, DataConfig, Split

MOST_DRAWN = 5_000
"""Samples of an evaluation split that is drawn: as many as the usual test of COCO has. All of them are read once when
the split is opened, and what is broken left out."""

LOOKED_AT = 100
"""Samples of which the first that can be read says what all should be."""


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Samples of shards whose hashes lie in a range, in the order of shards and samples. Holds no sample."""

    shards: OpenShards
    counts: Int[np.ndarray, "S"]
    """Samples of each shard."""
    config: DataConfig
    kind: type[AnyRecord] | None
    """What its records are; None for whatever they say."""
    skipped: tuple[BadRecord, ...] = ()
    least_side: int | None = None
    """As `open_picture` takes it."""

    @cached_property
    def _ends(self) -> Int[np.ndarray, "S"]:
        return np.cumsum(self.counts)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {place.name: number for number, place in enumerate(self.shards.places)}

    @cached_property
    def _mixing(self) -> Mixing:
        return Mixing(self.counts, self.config.window)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.counts) else 0

    def record(self, index: int) -> Any:
        """Raises BadRecord."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[number]) + int(self.counts[number])
        try:
            shard = self.shards[number]
            start, block = shard.sample(within)
        except BadRecord as error:  # of a shard: each of its records is counted by a name of its own
            raise BadRecord(f"{self.shards.places[number].name}#{within}", error.reason, error.detail) from None
        try:
            record = record_of(members_of(block, shard.name, start), self.kind is Picture)
        except BadRecord as error:
            reason = CHANGED if error.reason == "shard broken" else error.reason
            raise BadRecord(error.record, reason, error.detail) from None
        if self.kind is not None and not isinstance(record, self.kind):
            raise BadRecord(record.id, "another task", f"{TASK_NAMES[type(record)]} among {TASK_NAMES[self.kind]}")
        return record

    def picture(self, record: Any) -> Image.Image:
        """The first picture of a record. Raises BadRecord."""
        return self.pictures(record)[0]

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        """Raises BadRecord."""
        return tuple(open_picture(self._bytes(image, record.id), record.id, self.least_side) for image in record.images)

    def _bytes(self, image: str, record_id: str) -> bytes:
        name, start, size = place_of(image)
        try:
            return self.shards[self._numbers[name]].read(start, size)
        except BadRecord as error:
            raise BadRecord(record_id, error.reason, error.detail) from None

    def lane_rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        return self._mixing.rows(seed, epoch, lane, lanes, start, stop)

    def order(self, batch_size: int, seed: int, size: int) -> Lanes:
        """Raises ValueError where a batch cannot be cut into lanes, these not among `size` processes, or where what is
        open at once of shards at addresses cannot be kept."""
        order = Lanes(self, self.config.lanes, batch_size, seed, size)
        at_once = self.config.window * (self.config.lanes // size)
        largest = max((place.stamp.size for place in self.shards.places if is_remote(place.name)), default=0)
        if min(at_once, len(self.shards.places)) * largest > self.config.cache_bytes:
            raise ValueError(
                f"data.cache_bytes={self.config.cache_bytes:,} cannot hold the {at_once} shards of up to {largest:,}"
                " bytes that a process has open at once: raise it, or lower data.window or data.lanes"
            )
        self.shards.limit = at_once + self.config.window
        return order


@dataclass(frozen=True, eq=False)
class Selected(Sequence[Any]):
    """Some samples of a source, in its order."""

    source: ShardSource
    indices: Int[np.ndarray, "n"]
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.record(place) for place in range(len(self))[index]]
        return self.record(range(len(self))[index])

    def record(self, index: int) -> Any:
        return self.source.record(int(self.indices[index]))

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        return self.source.pictures(record)

    def picture(self, record: Any) -> Image.Image:
        return self.source.picture(record)


def open_shards(config: DataConfig, split: Split, kind: type[AnyRecord] | None = None) -> ShardSource | Selected:
    """A split of the shards that `data.path` leads to. Raises ValueError.

    `kind`: `Picture` reads pictures alone; otherwise samples say themselves what task they are of.
    `data.validation_path` and `data.test_path` decide where they are given, and then no shard may be missing. Otherwise
    `data.held_out` of the samples are kept from training for each of these splits, by a hash of the picture's identity,
    and the first MOST_DRAWN of them that can be read make up the split.
    """
    own = _own_path(config, split)
    if own is None:
        low, high = _range(config, split)
        source = _source(config, low, high, kind)
        if split != "train":
            return _readable(source, config, split)
    else:
        source = _source(replace(config, path=own), 0, DRAWS, kind)
        if source.skipped:
            raise ValueError(
                f"parts of the {split} split in {own} cannot be used; evaluation tolerates none:\n"
                f"{listing(source.skipped)}"
            )
    if not len(source):
        reasons = f"\n{listing(source.skipped)}" if source.skipped else ""
        raise ValueError(
            f"the {split} split is empty: {own or config.path} holds no sample with a picture for it{reasons}"
        )
    return source if split == "train" else replace(source, least_side=None)


def read_splits(config: DataConfig) -> dict[Split, Found]:
    """All that is there, divided as `open_shards` does, with what is wrong with each part. Raises ValueError."""
    parts = {}
    for split in SPLITS:
        own = _own_path(config, split)
        low, high = (0, DRAWS) if own else _range(config, split)
        source = _source(replace(config, path=own or config.path), low, high, None)
        if any(is_remote(place.name) for place in source.shards.places):
            raise ValueError(f"shards at addresses cannot be gone through as a whole: copy {config.path} first")
        indices, lost = _records(source)
        drawn = own is None and split != "train"
        parts[split] = Found(Selected(source, indices), [*source.skipped, *lost] if not drawn else lost, drawn=drawn)
    return parts


def _records(source: ShardSource) -> tuple[Int[np.ndarray, "n"], list[BadRecord]]:
    """Samples that are records, and why others are none."""
    found, lost = [], []
    for index in range(len(source)):
        try:
            source.record(index)
            found.append(index)
        except BadRecord as error:
            lost.append(error)
    return np.array(found, np.int64), lost


# --------------------------------------------------------------------------- splits


def _own_path(config: DataConfig, split: Split) -> str | None:
    return {"validation": config.validation_path, "test": config.test_path}.get(split)


def _range(config: DataConfig, split: Split) -> tuple[int, int]:
    """The hashes that belong to a split of `data.path`: those of validation, of test, then of training."""
    if not 0 <= config.held_out < 0.5:
        raise ValueError(f"data.held_out is {config.held_out}: it must be at least 0 and below 0.5")
    share = round(config.held_out * DRAWS)
    validation = 0 if config.validation_path else share
    test = validation + (0 if config.test_path else share)
    return {"validation": (0, validation), "test": (validation, test), "train": (test, DRAWS)}[split]


def _source(config: DataConfig, low: int, high: int, kind: type[AnyRecord] | None) -> ShardSource:
    places, counts, lost = _counted(open_shards_of(config), low, high)
    kept = kept_shards(config)
    limit = config.window * (config.lanes + 1)
    source = ShardSource(OpenShards(places, low, high, kept, limit), counts, config, kind, lost)
    known = kind or (_kind(source) if len(source) else Record)
    return replace(source, kind=known, least_side=None if known is Referring else TRAINING_SIDE)


def _counted(seen: Sequence[Seen], low: int, high: int) -> tuple[tuple[Place, ...], np.ndarray, tuple[BadRecord, ...]]:
    """The shards that are there with their samples in a range, and what is lost: a shard of which nothing is known
    counts as many as the others have in the mean."""
    places: list[Place] = []
    counts: list[int] = []
    lost: list[BadRecord] = []
    for one in seen:
        index = read_index(one.place.index) if one.place else None
        if one.place is not None and index is not None:
            places.append(one.place)
            counts.append(index.count(low, high))
            lost += index.lost
    mean = max(1, round(sum(counts) / len(counts))) if counts else 1
    for one in seen:
        if one.lost is not None:
            error = one.lost
            lost.append(BadRecord(error.record, error.reason, f"{error.detail}; as good as {mean} samples", mean))
    return tuple(places), np.array(counts, np.int64), tuple(lost)


def _kind(source: ShardSource) -> type[AnyRecord]:
    """What the first sample that can be read is."""
    for index in range(min(LOOKED_AT, len(source))):
        try:
            return type(source.record(index))
        except BadRecord:
            continue
    return Record


def _readable(source: ShardSource, config: DataConfig, split: Split) -> Selected:
    """The first samples that can be read."""
    kept: list[int] = []
    skipped: list[BadRecord] = []
    quick = replace(source, least_side=64)
    for index in range(len(source)):
        try:
            quick.pictures(quick.record(index))
            kept.append(index)
        except BadRecord as error:
            skipped.append(error)
        if len(kept) == MOST_DRAWN:
            break
    if not kept:
        reasons = f"\n{len(skipped)} cannot be read:\n{listing(skipped)}" if skipped else ""
        raise ValueError(
            f"the {split} split is empty: of {config.path} data.held_out={config.held_out:g} gives it no sample."
            f" Raise it, or name data.{split}_path{reasons}"
        )
    return Selected(replace(source, least_side=None), np.array(kept, np.int64), tuple(skipped))
