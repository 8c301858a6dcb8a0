"""Reads the bytes of samples from shards. Each process has a bounded number of shards open at once."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from diptych.data.record import BadRecord
from diptych.data.shards.cache import CHANGED, ShardCache
from diptych.data.shards.index import LARGEST_SAMPLE, ShardIndex, Stamp, read_index
from diptych.data.shards.listing import ShardLocation
from diptych.data.shards.remote import is_remote
from diptych.schema import MemberNames


@dataclass(frozen=True, eq=False)
class OpenShard:
    """Reads the samples of an open shard that belong to a split.

    Reads do not move the file position, so forked processes may share the descriptor.
    """

    name: str
    descriptor: int
    stamp: Stamp
    index: ShardIndex
    chosen: UInt[np.ndarray, "m"]
    """The numbers of the split's samples."""

    def read(self, start: int, size: int) -> bytes:
        """Reads `size` bytes from a position. Raises BadRecord."""
        try:
            if Stamp.of(os.fstat(self.descriptor)) != self.stamp:
                raise BadRecord(f"{self.name}@{start}", CHANGED, "it was written to while the run reads it")
            if size > LARGEST_SAMPLE or start + size > self.stamp.size:
                raise BadRecord(f"{self.name}@{start}", CHANGED, "its index names a place that it does not have")
            content = os.pread(self.descriptor, size, start)
        except OSError as error:
            raise BadRecord(f"{self.name}@{start}", "shard unreadable", str(error)) from None
        if len(content) != size:
            raise BadRecord(f"{self.name}@{start}", CHANGED, "it is shorter now")
        return content

    @property
    def naming(self) -> MemberNames:
        """The rule by which members form samples."""
        return self.index.naming

    def sample(self, number: int) -> tuple[int, bytes]:
        """Returns the position and the bytes of a sample of the split. Raises BadRecord."""
        place = int(self.chosen[number])
        if place >= len(self.index):
            raise BadRecord(f"{self.name}, sample {place}", CHANGED, "its index names a sample that it does not have")
        start = int(self.index.starts[place])
        return start, self.read(start, int(self.index.sizes[place]))


class OpenShards:
    """Opens shards on demand, and keeps the most recently used ones open, at most `limit` of them.

    A pickled copy opens its own shards.
    """

    def __init__(self, places: Sequence[ShardLocation], low: int, high: int, cache: ShardCache, limit: int) -> None:
        """Only samples with hashes from `low` to below `high` are read."""
        self.places, self.low, self.high, self.cache, self.limit = places, low, high, cache, limit
        self._forget()

    def __getitem__(self, number: int) -> OpenShard:
        """Returns an open shard. Raises BadRecord.

        A shard that could not be opened is not tried again by this process, since fetching one takes minutes.
        """
        if number in self._lost:
            lost = self._lost[number]
            raise BadRecord(lost.record, lost.reason, lost.detail)
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self.limit:
            os.close(self._open.popitem(last=False)[1].descriptor)
        try:
            shard = self._open[number] = self._opened(self.places[number])
        except BadRecord as error:
            self._lost[number] = error
            raise
        return shard

    def _opened(self, place: ShardLocation) -> OpenShard:
        index = read_index(place.index)
        if index is None or index.stamp != place.stamp:
            raise BadRecord(place.name, CHANGED, f"{place.index} was made anew by another run: start again")
        if is_remote(place.name):
            descriptor = self.cache.open(place.name, place.stamp)
            stamp = Stamp.of(os.fstat(descriptor))
        else:
            descriptor, stamp = _open_file(place.name), place.stamp
            if Stamp.of(os.fstat(descriptor)) != stamp:
                os.close(descriptor)
                raise BadRecord(place.name, CHANGED, "its length or time is another than when the run began")
        return OpenShard(place.name, descriptor, stamp, index, index.between(self.low, self.high))

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


def _open_file(name: str) -> int:
    try:
        return os.open(Path(name.removeprefix("file://")), os.O_RDONLY)
    except OSError as error:
        raise BadRecord(name, "shard missing", error.strerror or str(error)) from None
