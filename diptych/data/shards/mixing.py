"""The order in which shards are read: nearly sequential in each, mixed among a few, the same for every process.

An epoch lays the shards one behind the other, shuffled; each of L lanes takes an equal part of that line, whole shards
but for its ends. Of its part it opens `window` shards at once, and takes their samples by turns: each shard is begun
anywhere, read forward to its end and on from its beginning, but for a shuffle over a tenth of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

BAND = 0.1
"""Of a shard: how far samples are moved, so that at any time a tenth of each open shard is read at random."""
LEAST_BAND = 1_000
"""Samples that are shuffled at least, in small shards."""
KEPT_WINDOWS = 64
"""Windows whose order is kept: those of all lanes of a process, 8 bytes a sample."""


@dataclass(frozen=True)
class Line:
    """An epoch's shards, one behind the other."""

    shards: Int[np.ndarray, "S"]
    """Their numbers, shuffled."""
    ends: Int[np.ndarray, "S"]
    """Records up to the end of each."""

    def begin(self, place: int) -> int:
        return int(self.ends[place - 1]) if place else 0


class Mixing:
    """Orders of shards that hold so many records each. A record's index counts through the shards as they are given."""

    def __init__(self, counts: Int[np.ndarray, "S"], window: int) -> None:
        """`window`: shards of a lane that are open at once."""
        self.counts = counts
        self.window = window
        self.starts = np.cumsum(counts) - counts
        self.line = lru_cache(maxsize=2)(self._line)
        self._window_rows = lru_cache(maxsize=KEPT_WINDOWS)(self._mixed)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.counts, self.window)

    def rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """Indices of rows `start` to `stop` of a lane, of which it has as many as the whole divided by `lanes`."""
        length = int(self.counts.sum()) // lanes
        assert 0 <= start <= stop <= length
        line, first = self.line(seed, epoch), lane * length
        parts = [np.empty(0, np.int64)]
        while start < stop:
            place = int(np.searchsorted(line.ends, first + start, side="right"))
            own = int(np.searchsorted(line.ends, first, side="right"))  # the first of the lane's shards
            head = own + (place - own) // self.window * self.window
            begin = max(first, line.begin(head))
            end = min(first + length, int(line.ends[min(head + self.window, len(line.ends)) - 1]))
            rows = self._window_rows(seed, epoch, begin, end)
            part = rows[first + start - begin : first + stop - begin]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _line(self, seed: int, epoch: int) -> Line:
        filled = np.flatnonzero(self.counts)
        shards = np.random.default_rng([seed, epoch]).permutation(filled)
        return Line(shards, np.cumsum(self.counts[shards]))

    def _mixed(self, seed: int, epoch: int, begin: int, end: int) -> Int[np.ndarray, "n"]:
        """The records that stand from `begin` to `end` of an epoch's line, in the order in which they are shown."""
        line = self.line(seed, epoch)
        random = np.random.default_rng([seed, epoch, begin])
        indices, times = [], []
        place = int(np.searchsorted(line.ends, begin, side="right"))
        while begin < end:
            shard = int(line.shards[place])
            count, within = int(self.counts[shard]), begin - line.begin(place)
            here = min(end, int(line.ends[place])) - begin
            turned = int(np.random.default_rng([seed, epoch, shard]).integers(count))
            indices.append(self.starts[shard] + (np.arange(within, within + here) + turned) % count)
            band = max(BAND, LEAST_BAND / here)
            times.append(np.arange(here) / here + band * random.random(here))
            begin, place = begin + here, place + 1
        return np.concatenate(indices)[np.argsort(np.concatenate(times), kind="stable")]
