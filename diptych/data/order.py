"""Decides which records a step reads: a pure function of (seed, step), divided among any number of processes.

Most sources are shuffled as a whole (`Shuffled`), or in groups of texts about one image (`ByImage`). Sources of shards
are not, because few shards are open at once. They are read in *lanes*: an epoch is dealt to a fixed number of lanes,
each lane gives its rows of every global batch, and a process reads whole lanes. So a process opens only the shards of
its own lanes, and batches do not depend on the number of processes.

B is the size of a global batch, L the number of lanes and M the number of records that a lane has in an epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

Key = tuple[int, int]
"""(epoch, index in the source)."""


@runtime_checkable
class Order(Protocol):
    """Says which records each step reads, without end. Orders can be pickled."""

    @property
    def steps_per_epoch(self) -> int: ...

    def keys(self, step: int, rank: int) -> list[Key]:
        """Returns the records that process `rank` reads of the global batch of `step`, in the batch's order."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """Stands for a source that decides the order of its records itself."""

    def order(self, batch_size: int, seed: int, size: int) -> Order:
        """Returns the order of global batches that `size` processes share. Raises ValueError if they cannot."""
        ...


@runtime_checkable
class Laned(Protocol):
    """Stands for a source that is read in lanes, each of which has the same number of records in an epoch."""

    def __len__(self) -> int: ...

    def lane_rows(self, seed: int, epoch: int, lane: int, lanes: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """Returns the indices of rows `start` to `stop` (at most M) of a lane, a function of these numbers alone."""
        ...


def epoch_order(count: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """Returns a permutation of range(count), a function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


_cached_order = lru_cache(maxsize=4)(epoch_order)
"""Keeps the permutations of the current epochs, because computing one for each batch would cost more than the batch."""


def check_processes(batch_size: int, size: int) -> None:
    """Raises ValueError unless a batch can be divided into `size` equal parts."""
    if batch_size % size:
        raise ValueError(
            f"run.batch_size is {batch_size}: it must be a multiple of the number of processes, which is {size}"
        )


class Permuted(ABC):
    """Orders an epoch by one permutation. The records that it has beyond whole batches are left out of that epoch."""

    batch_size: int
    size: int

    @property
    @abstractmethod
    def records(self) -> int:
        """The number of records of an epoch."""

    @abstractmethod
    def permutation(self, epoch: int) -> Int[np.ndarray, "n"]:
        """Returns the records of an epoch in their order."""

    @property
    def steps_per_epoch(self) -> int:
        return self.records // self.batch_size

    def keys(self, step: int, rank: int) -> list[Key]:
        epoch, within = divmod(step, self.steps_per_epoch)
        share = self.batch_size // self.size
        first = within * self.batch_size + rank * share
        return [(epoch, index) for index in self.permutation(epoch)[first : first + share].tolist()]


@dataclass(frozen=True)
class Shuffled(Permuted):
    """Shuffles the records as a whole."""

    count: int
    batch_size: int
    seed: int
    size: int = 1

    @property
    def records(self) -> int:
        return self.count

    def permutation(self, epoch: int) -> Int[np.ndarray, "n"]:
        return _cached_order(self.count, self.seed, epoch)


@dataclass(frozen=True, eq=False)
class ByImage(Permuted):
    """Orders texts about images: up to `together` texts about one image follow each other.

    Each epoch cuts the texts about an image into such groups anew and shuffles the groups. A group at the end of a
    batch, or of a process's share of one, continues in the next.
    """

    images: Int[np.ndarray, "n"]
    """The number of each record's image."""
    together: int
    batch_size: int
    seed: int
    size: int = 1

    @property
    def records(self) -> int:
        return len(self.images)

    def permutation(self, epoch: int) -> Int[np.ndarray, "n"]:
        return _cached_groups(self, epoch)


def grouped_order(order: ByImage, epoch: int) -> Int[np.ndarray, "n"]:
    """Returns the permutation of an epoch of `ByImage`."""
    rng = np.random.default_rng([order.seed, epoch])
    shuffled = rng.permutation(order.records)
    by_image = shuffled[np.argsort(order.images[shuffled], kind="stable")]  # the texts about an image, shuffled
    images = order.images[by_image]
    starts = np.r_[True, images[1:] != images[:-1]]
    within = np.arange(len(images)) - np.maximum.accumulate(np.where(starts, np.arange(len(images)), 0))
    groups = np.cumsum(within % order.together == 0) - 1
    places = rng.permutation(groups[-1] + 1)[groups]
    return by_image[np.argsort(places, kind="stable")]


_cached_groups = lru_cache(maxsize=4)(grouped_order)


# --------------------------------------------------------------------------- lanes


def check_lanes(batch_size: int, lanes: int, size: int) -> None:
    """Raises ValueError unless a batch can be divided into lanes, and the lanes among the processes."""
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


def lanes_of(lanes: int, rank: int, size: int) -> range:
    """Returns the lanes that a process reads."""
    return range(rank * lanes // size, (rank + 1) * lanes // size)


@dataclass(frozen=True)
class Lanes:
    """Orders a source that is read in lanes: row r of a global batch belongs to lane r // (B / L)."""

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
        share = self.batch_size // self.lanes
        rows = [
            self.source.lane_rows(self.seed, epoch, lane, self.lanes, within * share, (within + 1) * share)
            for lane in lanes_of(self.lanes, rank, self.size)
        ]
        return [(epoch, index) for index in np.concatenate(rows).tolist()]


# --------------------------------------------------------------------------- several sources


@dataclass(frozen=True)
class MixedLanes:
    """Orders a mix of sources: every lane mixes them by weight, and each source goes through its own epochs.

    A closed formula says how many of a lane's first n rows come from each source, so that any step can be computed by
    itself. It is the source's share of n by weight, rounded to within one row.
    """

    sources: tuple[Laned | int, ...]
    """A source that is read in lanes, or the number of records of one that is shuffled as a whole."""
    weights: tuple[float, ...]
    lanes: int
    batch_size: int
    seed: int
    size: int = 1

    def __post_init__(self) -> None:
        check_lanes(self.batch_size, self.lanes, self.size)

    @property
    def steps_per_epoch(self) -> int:
        """An epoch reads as many records as the sources have together, but not each of them once."""
        return sum(self._counts) // self.batch_size

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(source if isinstance(source, int) else len(source) for source in self.sources)

    def keys(self, step: int, rank: int) -> list[Key]:
        share = self.batch_size // self.lanes
        lanes = lanes_of(self.lanes, rank, self.size)
        return [key for lane in lanes for key in self._lane_keys(lane, step * share, (step + 1) * share)]

    def _lane_keys(self, lane: int, start: int, stop: int) -> list[Key]:
        """Returns the rows `start` to `stop` of a lane."""
        taken_SN = self._taken(lane, np.arange(start, stop + 1))
        owners = np.diff(taken_SN, axis=1).argmax(axis=0)  # the source whose count grows at a row gives that row
        turns = [
            iter(self._source_keys(number, lane, int(taken[0]), int(taken[-1])))
            for number, taken in enumerate(taken_SN)
        ]
        return [next(turns[owner]) for owner in owners.tolist()]

    def _taken(self, lane: int, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "S n"]:
        """Returns how many of a lane's first rows come from each source. Each source takes its share of the rest.

        Lanes start at different phases. Otherwise all of them would read a rare source in the same step.
        """
        phases = np.random.default_rng([self.seed, lane]).random(len(self.sources))
        rest, weight, taken = rows, sum(self.weights), []
        for number, phase in enumerate(phases):
            share = self.weights[number] / weight if number < len(self.sources) - 1 else 1.0
            count = np.floor(rest * share + phase).astype(np.int64) if share < 1 else rest
            taken.append(count)
            rest, weight = rest - count, weight - self.weights[number]
        return np.stack(taken)

    def _source_keys(self, number: int, lane: int, start: int, stop: int) -> list[Key]:
        """Returns the records `start` to `stop` that a source gives to a lane, counted over its epochs."""
        before = sum(self._counts[:number])
        length = self._counts[number] // self.lanes
        keys: list[Key] = []
        while start < stop:
            epoch, first = divmod(start, length)
            last = min(length, first + stop - start)
            rows = self._source_rows(number, epoch, lane, first, last)
            keys += [(epoch, before + index) for index in rows.tolist()]
            start += last - first
        return keys

    def _source_rows(self, number: int, epoch: int, lane: int, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """Returns rows of a lane of a source. A source that is shuffled as a whole is cut into equal lanes."""
        source = self.sources[number]
        if isinstance(source, Laned):
            return source.lane_rows(self.seed, epoch, lane, self.lanes, start, stop)
        first = lane * (source // self.lanes)
        return _cached_order(source, self.seed, epoch)[first + start : first + stop]
