"""Reads tar shards in the WebDataset layout as they are, from this machine or from remote addresses.

Of a closed shard, memory holds its name, its state and its number of samples. The index of an open shard is mapped from
its file. So memory does not grow with the number of samples (docs/data.md states the bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Int
from PIL import Image

from diptych.data.order import Lanes
from diptych.data.picture_kinds import PassedOver
from diptych.data.pictures import open_picture, place_of
from diptych.data.record import LOOKED_AT, TASK_NAMES, AnyRecord, BadRecord, Picture, Record, Referring
from diptych.data.shards.cache import CHANGED
from diptych.data.shards.index import DRAWS, read_index
from diptych.data.shards.listing import ShardLocation, ShardStatus, open_shards_of, shard_cache
from diptych.data.shards.mixing import ShardOrder
from diptych.data.shards.reading import OpenShards
from diptych.data.shards.remote import is_remote
from diptych.data.shards.samples import members_of, record_of
from diptych.data.skips import list_errors
from diptych.data.sources.files import TRAINING_SIDE
from diptych.data.sources.listing import SourceListing, without_empty
from diptych.data.splits import check_held_out, own_path
from diptych.schema import SPLITS, DataConfig, Split

MOST_DRAWN = 5_000
"""The size of a drawn evaluation split, which is that of COCO's usual test split. All of its samples are read once when
the split is opened, and broken ones are left out."""


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Serves the samples whose hashes lie in a range, in the order of shards and samples. It holds no sample."""

    shards: OpenShards
    counts: Int[np.ndarray, "S"]
    """The number of samples of each shard."""
    config: DataConfig
    kind: type[AnyRecord] | None
    """The class of the records, or None if each sample decides it."""
    skipped: tuple[BadRecord, ...] = ()
    least_side: int | None = None
    """The side below which a JPEG is not scaled down while it is decoded, as for `open_picture`."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The members that look like pictures and are not read as such."""

    @cached_property
    def _ends(self) -> Int[np.ndarray, "S"]:
        return np.cumsum(self.counts)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {place.name: number for number, place in enumerate(self.shards.places)}

    @cached_property
    def _shard_order(self) -> ShardOrder:
        return ShardOrder(self.counts, self.config.window)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.counts) else 0

    def record(self, index: int) -> Any:
        """Reads the record of an index. Raises BadRecord."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[number]) + int(self.counts[number])
        try:
            shard = self.shards[number]
            start, block = shard.sample(within)
        except BadRecord as error:  # the whole shard is lost: each of its records gets a name, so that each is counted
            raise BadRecord(f"{self.shards.places[number].name}#{within}", error.reason, error.detail) from None
        try:
            record = record_of(members_of(block, shard.name, start, shard.naming), self.kind is Picture)
        except BadRecord as error:
            reason = CHANGED if error.reason == "shard broken" else error.reason
            raise BadRecord(error.record, reason, error.detail) from None
        if self.kind is not None and not isinstance(record, self.kind):
            raise BadRecord(record.id, "another task", f"{TASK_NAMES[type(record)]} among {TASK_NAMES[self.kind]}")
        return without_empty(record, record.id, self.config.max_words)[0]

    def picture(self, record: Any) -> Image.Image:
        """Returns the first picture of a record. Raises BadRecord."""
        return self.pictures(record)[0]

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        """Returns the pictures of a record. Raises BadRecord."""
        most = self.config.largest_pixels
        return tuple(
            open_picture(self._bytes(image, record.id), record.id, self.least_side, most) for image in record.images
        )

    def _bytes(self, image: str, record_id: str) -> bytes:
        name, start, size = place_of(image)
        try:
            return self.shards[self._numbers[name]].read(start, size)
        except BadRecord as error:
            raise BadRecord(record_id, error.reason, error.detail) from None

    def lane_rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        return self._shard_order.rows(seed, epoch, lane, lanes, start, stop)

    def order(self, batch_size: int, seed: int, size: int) -> Lanes:
        """Returns the order of training for `size` processes.

        Raises ValueError if a batch cannot be cut into lanes, if the lanes cannot be shared out among the processes, or
        if the cache cannot hold the remote shards that are open at once.
        """
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
class SelectedSamples(Sequence[Any]):
    """Serves some samples of a source, in its order."""

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


def open_shards(config: DataConfig, split: Split, kind: type[AnyRecord] | None = None) -> ShardSource | SelectedSamples:
    """Opens a split of the shards that `data.path` names. Raises ValueError.

    If `kind` is `Picture`, only pictures are read; otherwise the samples say what task they belong to.
    `data.validation_path` and `data.test_path` decide where they are set, and then no shard may be missing. Otherwise
    `data.held_out` of the samples are kept from training for each of the two splits, by a hash of the picture's
    identity, and the first MOST_DRAWN readable ones make up the split.
    """
    path = own_path(config, split)
    if path is None:
        low, high = _range(config, split)
        source = _source(config, low, high, kind)
        if split != "train":
            return _readable(source, config, split)
    else:
        source = _source(replace(config, path=path), 0, DRAWS, kind)
        if source.skipped:
            raise ValueError(
                f"parts of the {split} split in {path} cannot be used; evaluation tolerates none:\n"
                f"{list_errors(source.skipped)}"
            )
    if not len(source):
        reasons = f"\n{list_errors(source.skipped)}" if source.skipped else ""
        raise ValueError(
            f"the {split} split is empty: {path or config.path} holds no sample with a picture for it"
            f"{source.passed_over.after}{reasons}"
        )
    return source if split == "train" else replace(source, least_side=None)


def read_splits(config: DataConfig) -> dict[Split, SourceListing]:
    """Reads all splits, divided as by `open_shards`, each with its bad samples. Raises ValueError."""
    listings = {}
    for split in SPLITS:
        path = own_path(config, split)
        low, high = (0, DRAWS) if path else _range(config, split)
        source = _source(replace(config, path=path or config.path), low, high, None)
        if any(is_remote(place.name) for place in source.shards.places):
            raise ValueError(f"shards at addresses cannot be gone through as a whole: copy {config.path} first")
        usable: list[int] = []
        lost: list[BadRecord] = []
        for index in range(len(source)):
            try:
                source.record(index)
                usable.append(index)
            except BadRecord as error:
                lost.append(error)
        drawn = path is None and split != "train"
        samples = SelectedSamples(source, np.array(usable, np.int64))
        skipped, seen = (lost, PassedOver()) if drawn else ([*source.skipped, *lost], source.passed_over)
        listings[split] = SourceListing(samples, skipped, drawn=drawn, passed_over=seen)
    return listings


# --------------------------------------------------------------------------- splits


def _range(config: DataConfig, split: Split) -> tuple[int, int]:
    """Returns the range of hashes of a split of `data.path`. Validation has the smallest, then test, then training."""
    check_held_out(config.held_out)
    share = round(config.held_out * DRAWS)
    validation = 0 if config.validation_path else share
    test = validation + (0 if config.test_path else share)
    return {"validation": (0, validation), "test": (validation, test), "train": (test, DRAWS)}[split]


def _source(config: DataConfig, low: int, high: int, kind: type[AnyRecord] | None) -> ShardSource:
    places, counts, lost, seen = _counted(open_shards_of(config), low, high)
    limit = config.window * (config.lanes + 1)
    source = ShardSource(
        OpenShards(places, low, high, shard_cache(config), limit), counts, config, kind, lost, passed_over=seen
    )
    known = kind or (_kind(source) if len(source) else Record)
    return replace(source, kind=known, least_side=None if known is Referring else TRAINING_SIDE)


def _counted(
    shards: Sequence[ShardStatus], low: int, high: int
) -> tuple[tuple[ShardLocation, ...], np.ndarray, tuple[BadRecord, ...], PassedOver]:
    """Returns the usable shards, the number of samples that each has in a range of hashes, what is lost, and what is
    passed over.

    A shard that was never read counts as many lost samples as the other shards have on average.
    """
    places: list[ShardLocation] = []
    counts: list[int] = []
    lost: list[BadRecord] = []
    seen = PassedOver()
    for shard in shards:
        index = read_index(shard.place.index) if shard.place else None
        if shard.place is not None and index is not None:
            places.append(shard.place)
            counts.append(index.count(low, high))
            lost += index.lost
            seen.counts.update(index.passed_over)
    mean = max(1, round(sum(counts) / len(counts))) if counts else 1
    for shard in shards:
        if shard.lost is not None:
            error = shard.lost
            lost.append(BadRecord(error.record, error.reason, f"{error.detail}; as good as {mean} samples", mean))
    return tuple(places), np.array(counts, np.int64), tuple(lost), seen


def _kind(source: ShardSource) -> type[AnyRecord]:
    """Returns the class of the first readable record."""
    for index in range(min(LOOKED_AT, len(source))):
        try:
            return type(source.record(index))
        except BadRecord:
            continue
    return Record


def _readable(source: ShardSource, config: DataConfig, split: Split) -> SelectedSamples:
    """Selects the first readable samples of a drawn split. Raises ValueError if there is none."""
    readable: list[int] = []
    skipped: list[BadRecord] = []
    scaled = replace(source, least_side=64)  # a scaled JPEG is still read to its end, several times faster
    for index in range(len(source)):
        try:
            scaled.pictures(scaled.record(index))
            readable.append(index)
        except BadRecord as error:
            skipped.append(error)
        if len(readable) == MOST_DRAWN:
            break
    if not readable:
        reasons = f"\n{len(skipped)} cannot be read:\n{list_errors(skipped)}" if skipped else ""
        raise ValueError(
            f"the {split} split is empty: of {config.path} data.held_out={config.held_out:g} gives it no sample."
            f" Raise it, or name data.{split}_path{reasons}"
        )
    return SelectedSamples(replace(source, least_side=None), np.array(readable, np.int64), tuple(skipped))
