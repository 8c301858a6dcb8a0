"""Mixes several sources in one run, by weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diptych.data.order import Laned, MixedLanes
from diptych.data.picture_kinds import PassedOver
from diptych.data.record import AnyRecord, BadRecord, PairStatement, PlainText, TaskSource, with_images
from diptych.schema import DataConfig, Split


class MixedImage(NamedTuple):
    """Holds the image of a record and the number of the source that can produce its picture."""

    owner: int
    image: Any


@dataclass(frozen=True, eq=False)
class MixedSource:
    """Serves the records of several sources of one task, one source after the other.

    Ids and picture identities begin with the name of their source, so that sources cannot collide.
    """

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

    @property
    def passed_over(self) -> PassedOver:
        """The files of all sources that look like pictures and are not read as such."""
        joined = PassedOver()
        for source in self.sources:
            joined.join(getattr(source, "passed_over", PassedOver()))
        return joined

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Any:
        """Returns the record of an index. Raises BadRecord, which names the source."""
        owner = int(np.searchsorted(self._ends, index, side="right"))
        source, name = self.sources[owner], self.names[owner]
        try:
            record = source.record(index - int(self._ends[owner]) + len(source))
        except BadRecord as error:
            raise BadRecord(f"{name}: {error.record}", error.reason, error.detail) from None
        return _renamed(record, owner, name)

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        """Returns the pictures of a record. Raises BadRecord, which names the source."""
        if not record.images:
            return ()
        source = self.sources[record.images[0].owner]
        original = with_images(record, [mixed.image for mixed in record.images])
        return source.pictures(original) if isinstance(source, TaskSource) else (source.picture(original),)

    def picture(self, record: Any) -> Image.Image:
        return self.pictures(record)[0]

    def order(self, batch_size: int, seed: int, size: int) -> MixedLanes:
        """Returns the order of training. Raises ValueError if a batch cannot be cut into lanes for `size` processes."""
        streams: list[Laned | int] = []
        for name, source in zip(self.names, self.sources, strict=True):
            if len(source) < self.lanes:
                raise ValueError(f"{name} has {len(source)} records: a mix needs one a lane, data.lanes={self.lanes}")
            streams.append(source if isinstance(source, Laned) else len(source))
        return MixedLanes(tuple(streams), self.weights, self.lanes, batch_size, seed, size)


def open_mix(config: DataConfig, split: Split, open_source: Callable[[DataConfig, Split], Any]) -> Any:
    """Opens a split of the sources in `data.mix`. `open_source` opens each.

    Training mixes all sources. Validation and test come from the first source alone, as if it were the only one;
    nothing is held out of the others. Raises ValueError, which names the source that cannot be opened.
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

    def opened(name: str, part: DataConfig) -> Any:
        try:
            return open_source(part, split)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    if split != "train":
        return opened(names[0], parts[0])
    sources = tuple(opened(name, part) for name, part in zip(names, parts, strict=True))
    return MixedSource(names, sources, tuple(part.weight for part in config.mix), config.lanes)


def _renamed(record: AnyRecord, owner: int, name: str) -> AnyRecord:
    """Puts the source's name before the record's id and picture identities, and its number beside each image."""
    record = with_images(record, [MixedImage(owner, image) for image in record.images])
    identities = [f"{name}: {identity}" for identity in record.image_ids]
    if isinstance(record, PlainText):
        return replace(record, id=f"{name}: {record.id}")
    if isinstance(record, PairStatement):
        return replace(record, id=f"{name}: {record.id}", image_ids=(identities[0], identities[1]))
    return replace(record, id=f"{name}: {record.id}", image_id=identities[0])
