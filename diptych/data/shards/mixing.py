"""Computes the order in which shards are read: nearly sequential within a shard, mixed among a few shards.

The order is a function of (seed, epoch), so it is the same in every process. An epoch puts the shards one after the
other in random order, and each of L lanes takes an equal part of that line: whole shards, except at its ends. A lane
opens `window` shards of its part at once and takes samples from them in turn. Each shard is read from a random position
to its end and then from its beginning, and its samples are shuffled over a tenth of the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

BAND = 0.1
"""Samples are shuffled over this share of their shard."""
LEAST_BAND = 1_000
"""In small shards, samples are shuffled over at least this many."""
KEPT_WINDOWS = 64
"""The order of this many windows is kept in memory, with 8 bytes per sample: those of all lanes of a process."""


@dataclass(frozen=True)
class Line:
    """Holds the shards of an epoch, one after the other."""

    shards: Int[np.ndarray, "S"]
    """The numbers of the shards, in random order."""
    ends: Int[np.ndarray, "S"]
    """The number of records up to the end of each shard."""

    def begin(self, place: int) -> int:
        """Returns the number of records before a shard of the line."""
        return int(self.ends[place - 1]) if place else 0


class ShardOrder:
    """Computes the order of the records of shards. A record's index counts through the shards in their given order."""

    def __init__(self, counts: Int[np.ndarray, "S"], window: int) -> None:
        """`counts` holds the number of records of each shard; each lane has `window` shards open at once."""
        self.counts = counts
        self.window = window
        self.starts = np.cumsum(counts) - counts
        self.line = lru_cache(maxsize=2)(self._line)
        self._window_rows = lru_cache(maxsize=KEPT_WINDOWS)(self._mixed)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.counts, self.window)

    def rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """Returns the indices of rows `start` to `stop` of a lane, which has an equal share of all records."""
        length = int(self.counts.sum()) // lanes
        assert 0 <= start <= stop <= length
        line, first = self.line(seed, epoch), lane * length
        parts = [np.empty(0, np.int64)]
        while start < stop:
            place = int(np.searchsorted(line.ends, first + start, side="right"))
            lane_head = int(np.searchsorted(line.ends, first, side="right"))  # the first shard of the lane
            head = lane_head + (place - lane_head) // self.window * self.window  # the first shard of the window
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
        """Returns the records from `begin` to `end` of an epoch's line, in the order in which they are read.

        Each record gets a time: its place within its shard, from 0 to 1, plus noise. Sorting by time mixes the shards.
        """
        line = self.line(seed, epoch)
        random = np.random.default_rng([seed, epoch, begin])
        indices, times = [], []
        place = int(np.searchsorted(line.ends, begin, side="right"))
        while begin < end:
            shard = int(line.shards[place])
            count, within = int(self.counts[shard]), begin - line.begin(place)
            length = min(end, int(line.ends[place])) - begin
            offset = int(np.random.default_rng([seed, epoch, shard]).integers(count))
            indices.append(self.starts[shard] + (np.arange(within, within + length) + offset) % count)
            band = max(BAND, LEAST_BAND / length)
            times.append(np.arange(length) / length + band * random.random(length))
            begin, place = begin + length, place + 1
        return np.concatenate(indices)[np.argsort(np.concatenate(times), kind="stable")]
