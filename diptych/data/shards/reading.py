"""Bytes of samples from shards, of which a bounded number is open at once in each process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from diptych.data.record import BadRecord
from diptych.data.shards.index import ShardIndex, Stamp, read_index
from diptych.data.shards.kept import CHANGED, Kept
from diptych.data.shards.listing import Place
from diptych.data.shards.remote import is_remote


@dataclass(frozen=True, eq=False)
class OpenShard:
    """A shard that is being read, and the samples of it that belong to a split. Reads need no position, so that a
    forked process may read through the same descriptor."""

    name: str
    descriptor: int
    stamp: Stamp
    index: ShardIndex
    chosen: UInt[np.ndarray, "m"]
    """Numbers of the split's samples."""

    def read(self, start: int, size: int) -> bytes:
        """Raises BadRecord."""
        try:
            if Stamp.of(os.fstat(self.descriptor)) != self.stamp:
                raise BadRecord(f"{self.name}@{start}", CHANGED, "it was written to while the run reads it")
            content = os.pread(self.descriptor, size, start)
        except OSError as error:
            raise BadRecord(f"{self.name}@{start}", "shard unreadable", str(error)) from None
        if len(content) != size:
            raise BadRecord(f"{self.name}@{start}", CHANGED, "it is shorter now")
        return content

    def sample(self, number: int) -> tuple[int, bytes]:
        """Where the split's sample begins, and its bytes. Raises BadRecord."""
        place = int(self.chosen[number])
        start = int(self.index.starts[place])
        return start, self.read(start, int(self.index.sizes[place]))


class OpenShards:
    """The shards of a list that were used last, at most `limit` of them. Picklable: another process opens its own."""

    def __init__(self, places: Sequence[Place], low: int, high: int, kept: Kept, limit: int) -> None:
        """Of each shard, samples with hashes from `low` to below `high` are read."""
        self.places, self.low, self.high, self.kept, self.limit = places, low, high, kept, limit
        self._forget()

    def __getitem__(self, number: int) -> OpenShard:
        """Raises BadRecord; for as long as the process lives, where a shard was lost: fetching it takes minutes."""
        if number in self._lost:
            lost = self._lost[number]
            raise BadRecord(lost.record, lost.reason, lost.detail)
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self.limit:
            os.close(self._open.popitem(last=False)[1].descriptor)
        try:
            opened = self._open[number] = self._opened(self.places[number])
        except BadRecord as error:
            self._lost[number] = error
            raise
        return opened

    def _opened(self, place: Place) -> OpenShard:
        index = read_index(place.index)
        if index is None or index.stamp != place.stamp:
            raise BadRecord(place.name, CHANGED, f"{place.index} was made anew by another run: start again")
        if is_remote(place.name):
            descriptor = self.kept.open(place.name, place.stamp)
            stamp = Stamp.of(os.fstat(descriptor))
        else:
            descriptor, stamp = _file(place.name), place.stamp
            if Stamp.of(os.fstat(descriptor)) != stamp:
                os.close(descriptor)
                raise BadRecord(place.name, CHANGED, "its length or time is another than when the run began")
        return OpenShard(place.name, descriptor, stamp, index, index.chosen(self.low, self.high))

    def _forget(self) -> None:
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lost: dict[int, BadRecord] = {}

    def close(self) -> None:
        for shard in self._open.values():
            os.close(shard.descriptor)
        self._forget()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._forget()


def _file(name: str) -> int:
    try:
        return os.open(Path(name.removeprefix("file://")), os.O_RDONLY)
    except OSError as error:
        raise BadRecord(name, "shard missing", error.strerror or str(error)) from None
