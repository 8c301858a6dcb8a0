"""Which records a step shows: a pure function of (seed, step), cut among any number of processes.

Most sources are shuffled as a whole (`Shuffled`). What cannot be (shards, of which few are open at once) is read in
*lanes*: an epoch is dealt to a fixed number of them, each gives its rows of every global batch, and a process reads
whole lanes. So a process meets only its own lanes' shards, and batches do not depend on how many processes there are.

B pairs in a global batch, L lanes, M records of an epoch in a lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

Key = tuple[int, int]
"""(epoch, index in the source)."""


@runtime_checkable
class Order(Protocol):
    """The records of each step, without end. Picklable."""

    @property
    def steps_per_epoch(self) -> int: ...

    def keys(self, step: int, rank: int) -> list[Key]:
        """Those of the global batch of `step` that process `rank` reads, in the batch's order."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A source that has an order of its own."""

    def order(self, batch_size: int, seed: int, size: int) -> Order:
        """Of global batches that `size` processes share. Raises ValueError where they cannot."""
        ...


@runtime_checkable
class Laned(Protocol):
    """A source that is read in lanes, of which each has the same number of records an epoch."""

    def __len__(self) -> int: ...

    def lane_rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """Indices of the rows `start` to `stop` (at most M) of a lane, which are a function of these numbers alone."""
        ...


def epoch_order(count: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """A permutation of range(count), a function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


_kept_order = lru_cache(maxsize=4)(epoch_order)
"""The epochs that are being read: a whole permutation for a batch at a time would cost more than the batch."""


def check_processes(batch_size: int, size: int) -> None:
    """Raises ValueError where a batch cannot be cut into `size` equal parts."""
    if batch_size % size:
        raise ValueError(
            f"run.batch_size is {batch_size}: it must be a multiple of the number of processes, which is {size}"
        )


@dataclass(frozen=True)
class Shuffled:
    """All records of an epoch in one permutation; what it has beyond whole batches is left out of that epoch."""

    count: int
    batch_size: int
    seed: int
    size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def keys(self, step: int, rank: int) -> list[Key]:
        epoch, within = divmod(step, self.steps_per_epoch)
        own = self.batch_size // self.size
        first = within * self.batch_size + rank * own
        order = _kept_order(self.count, self.seed, epoch)
        return [(epoch, index) for index in order[first : first + own].tolist()]


# --------------------------------------------------------------------------- lanes


def check_lanes(batch_size: int, lanes: int, size: int) -> None:
    """Raises ValueError where a batch cannot be cut into lanes, or these cannot be shared out."""
    if lanes < 1:
        raise ValueError(f"data.lanes is {lanes}: it must be at least 1")
    if batch_size % lanes:
        raise ValueError(
            f"run.batch_size is {batch_size}: it must be a multiple of data.lanes={lanes}, since each lane gives equal"
            " parts of every batch. Change either"
        )
    if lanes % size:
        raise ValueError(
            f"data.lanes is {lanes}: it must be a multiple of the number of processes, which is {size}, since each"
            " reads whole lanes"
        )


def own_lanes(lanes: int, rank: int, size: int) -> range:
    """The lanes that a process reads."""
    return range(rank * lanes // size, (rank + 1) * lanes // size)


def rows_of(
    source: Laned | int, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int
) -> Int[np.ndarray, "n"]:
    """Rows of a lane of a source that is read so, or of so many records in one permutation cut into equal lanes."""
    if isinstance(source, Laned):
        return source.lane_rows(seed, epoch, lane, lanes, start, stop)
    first = lane * (source // lanes)
    return _kept_order(source, seed, epoch)[first + start : first + stop]


@dataclass(frozen=True)
class Lanes:
    """A source read in lanes: row r of a global batch belongs to lane r // (B / L)."""

    source: Laned
    lanes: int
    batch_size: int
    seed: int
    size: int = 1

    def __post_init__(self) -> None:
        check_lanes(self.batch_size, self.lanes, self.size)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.lanes // (self.batch_size // self.lanes)

    def keys(self, step: int, rank: int) -> list[Key]:
        epoch, within = divmod(step, self.steps_per_epoch)
        each = self.batch_size // self.lanes
        rows = [
            self.source.lane_rows(self.seed, epoch, lane, self.lanes, within * each, (within + 1) * each)
            for lane in own_lanes(self.lanes, rank, self.size)
        ]
        return [(epoch, index) for index in np.concatenate(rows).tolist()]


# --------------------------------------------------------------------------- several sources


@dataclass(frozen=True)
class MixedLanes:
    """Sources mixed within every lane, by weight; each goes through its own epochs.

    How many of a lane's first n rows come from a source is a closed formula, so that any step can be computed by
    itself: the share of n by the weights, rounded, within one row of the exact share for each source. `sources` has
    what is read in lanes, or the number of records of what is not.
    """

    sources: tuple[Laned | int, ...]
    weights: tuple[float, ...]
    lanes: int
    batch_size: int
    seed: int
    size: int = 1

    def __post_init__(self) -> None:
        check_lanes(self.batch_size, self.lanes, self.size)

    @property
    def steps_per_epoch(self) -> int:
        """As many as show as many records as there are, whichever they are."""
        return sum(self._counts) // self.batch_size

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(source if isinstance(source, int) else len(source) for source in self.sources)

    def keys(self, step: int, rank: int) -> list[Key]:
        each = self.batch_size // self.lanes
        lanes = own_lanes(self.lanes, rank, self.size)
        return [key for lane in lanes for key in self._lane_keys(lane, step * each, (step + 1) * each)]

    def _lane_keys(self, lane: int, start: int, stop: int) -> list[Key]:
        """Rows `start` to `stop` of a lane."""
        taken = self._taken(lane, np.arange(start, stop + 1))
        owners = np.diff(taken, axis=1).argmax(axis=0)
        keys: dict[int, list[Key]] = {
            number: self._own_keys(number, lane, int(upto[0]), int(upto[-1])) for number, upto in enumerate(taken)
        }
        turns = [iter(keys[number]) for number in range(len(self.sources))]
        return [next(turns[owner]) for owner in owners.tolist()]

    def _taken(self, lane: int, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "S n"]:
        """How many of a lane's first rows each source has given. What one leaves, the next ones share.

        Lanes begin at different phases: else all of them would turn to a rare source in the same step.
        """
        phases = np.random.default_rng([self.seed, lane]).random(len(self.sources))
        left, weight, taken = rows, sum(self.weights), []
        for number, phase in enumerate(phases):
            share = self.weights[number] / weight if number < len(self.sources) - 1 else 1.0
            given = np.floor(left * share + phase).astype(np.int64) if share < 1 else left
            taken.append(given)
            left, weight = left - given, weight - self.weights[number]
        return np.stack(taken)

    def _own_keys(self, number: int, lane: int, start: int, stop: int) -> list[Key]:
        """Records `start` to `stop` of what a source gives to a lane, over its epochs."""
        source, before = self.sources[number], sum(self._counts[:number])
        length = self._counts[number] // self.lanes
        keys: list[Key] = []
        while start < stop:
            epoch, first = divmod(start, length)
            last = min(length, first + stop - start)
            rows = rows_of(source, self.seed, epoch, lane, self.lanes, first, last)
            keys += [(epoch, before + index) for index in rows.tolist()]
            start += last - first
        return keys
