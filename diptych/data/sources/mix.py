"""Several sources in one run, mixed by weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diptych.data.order import Laned, MixedLanes
from diptych.data.record import AnyRecord, BadRecord, PairStatement, PlainText, TaskSource
from diptych.schema import DataConfig, Split


class Owned(NamedTuple):
    """What a source needs for a picture, and which source."""

    owner: int
    image: Any


@dataclass(frozen=True, eq=False)
class Mixed:
    """Sources of one task, the records of each behind those of the one before. Records and pictures are called by the
    source's name too."""

    names: tuple[str, ...]
    sources: tuple[Any, ...]
    weights: tuple[float, ...]
    lanes: int

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        return tuple(
            BadRecord(f"{name}: {error.record}", error.reason, error.detail, error.count)
            for name, source in zip(self.names, self.sources, strict=True)
            for error in source.skipped
        )

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Any:
        """Raises BadRecord that names the source."""
        owner = int(np.searchsorted(self._ends, index, side="right"))
        source, name = self.sources[owner], self.names[owner]
        try:
            record = source.record(index - int(self._ends[owner]) + len(source))
        except BadRecord as error:
            raise BadRecord(f"{name}: {error.record}", error.reason, error.detail) from None
        return _owned(record, owner, name)

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        """Raises BadRecord that names the source."""
        if not record.images:
            return ()
        source = self.sources[record.images[0].owner]
        images = tuple(owned.image for owned in record.images)
        own = _with_images(record, images)
        return source.pictures(own) if isinstance(source, TaskSource) else (source.picture(own),)

    def picture(self, record: Any) -> Image.Image:
        return self.pictures(record)[0]

    def order(self, batch_size: int, seed: int, size: int) -> MixedLanes:
        """Raises ValueError where a batch cannot be cut into lanes, or these not among `size` processes."""
        streams: list[Laned | int] = []
        for name, source in zip(self.names, self.sources, strict=True):
            if len(source) < self.lanes:
                raise ValueError(f"{name} has {len(source)} records: a mix needs one a lane, data.lanes={self.lanes}")
            streams.append(source if isinstance(source, Laned) else len(source))
        return MixedLanes(tuple(streams), self.weights, self.lanes, batch_size, seed, size)


def open_mix(config: DataConfig, split: Split, open_one: Callable[[DataConfig, Split], Any]) -> Any:
    """A split of the sources in `data.mix`. Raises ValueError that names the source which cannot be opened.

    Training mixes all. The first source alone gives validation and test, as it would by itself; nothing is held out of
    the others.
    """
    if not config.mix:
        raise ValueError("""data.source=mix needs data.mix, as in data.mix='[{"source":"folder","path":"a"}, …]'""")
    if config.path is not None or config.root is not None:
        raise ValueError("data.path and data.root say nothing here: each source of data.mix has its own")
    names = tuple(f"data.mix.{number} ({part.source})" for number, part in enumerate(config.mix))
    for name, part in zip(names, config.mix, strict=True):
        if part.source == "mix":
            raise ValueError(f"{name}: a mix holds no mix")
        if not 0 < part.weight < float("inf"):
            raise ValueError(f"{name}: weight is {part.weight}, and must be above 0")
    parts = [
        replace(
            config, source=part.source, path=part.path, root=part.root, mix=(),
            held_out=config.held_out if number == 0 else 0.0,
        )
        for number, part in enumerate(config.mix)
    ]  # fmt: skip
    if split != "train":
        return _opened(names[0], parts[0], split, open_one)
    sources = tuple(_opened(name, part, split, open_one) for name, part in zip(names, parts, strict=True))
    return Mixed(names, sources, tuple(part.weight for part in config.mix), config.lanes)


def _opened(name: str, part: DataConfig, split: Split, open_one: Callable[[DataConfig, Split], Any]) -> Any:
    try:
        return open_one(part, split)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _owned(record: AnyRecord, owner: int, name: str) -> AnyRecord:
    if isinstance(record, PlainText):
        return replace(record, id=f"{name}: {record.id}")
    called = _with_images(record, tuple(Owned(owner, image) for image in record.images))
    identities = tuple(f"{name}: {identity}" for identity in record.image_ids)
    if isinstance(called, PairStatement):
        return replace(called, id=f"{name}: {record.id}", image_ids=(identities[0], identities[1]))
    return replace(called, id=f"{name}: {record.id}", image_id=identities[0])


def _with_images(record: Any, images: Sequence[Any]) -> Any:
    if isinstance(record, PairStatement):
        return replace(record, images=(images[0], images[1]))
    return replace(record, image=images[0])
