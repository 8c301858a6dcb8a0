"""Defines what every storage backend of an index offers: a folder, a Milvus server or a PostgreSQL server.

E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import Portion
from diptych.apps.index.items import Item, Kind
from diptych.apps.index.neighbours import METHOD_CHOICES, MethodChoice
from diptych.data.record import BadRecord
from diptych.nn.lowered import PRECISIONS, Precision
from diptych.predict.identity import ModelIdentity
from diptych.printable import brief


@dataclass(frozen=True)
class SourceRoot:
    """Names one source of an index."""

    folder: str
    """Absolute folder at which the source's relative paths start."""
    prefix: str
    """Precedes the source's ids, except ids that a JSONL file gives itself. The first source has none, others have
    `NAME/`."""


@dataclass(frozen=True)
class IndexDescription:
    """Describes an index: its model, vector width, search method and sources."""

    model: ModelIdentity
    width: int
    method: MethodChoice
    roots: tuple[SourceRoot, ...]
    complete: bool = False
    """False while the index is built for the first time and cannot be searched yet."""
    precision: Precision = "fp32"
    """The precision in which the model computed the first vectors. Queries and additions may have another."""

    def file(self, item: Item) -> Path:
        return Path(self.roots[item.source].folder) / item.content

    def with_root(self, folder: Path) -> tuple[IndexDescription, int]:
        """Adds a source with that folder unless it is known. Returns the description and the source's number."""
        for number, root in enumerate(self.roots):
            if root.folder == str(folder):
                return self, number
        prefixes = {root.prefix for root in self.roots}
        prefix, number = "", 1
        while self.roots and (not prefix or prefix in prefixes):
            prefix = f"{folder.name or 'root'}{'' if number == 1 else f'-{number}'}/"
            number += 1
        return replace(self, roots=(*self.roots, SourceRoot(str(folder), prefix))), len(self.roots)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values. Their keys are part of the stored format."""
        return {
            "maker": asdict(self.model), "width": self.width, "wanted": self.method,
            "roots": [asdict(root) for root in self.roots], "complete": self.complete,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], place: str) -> IndexDescription:
        """Reads what `to_json` returned. Raises ValueError for anything else."""
        try:
            maker, listed = {**stored["maker"]}, [{**root} for root in stored["roots"]]
            width, method, complete = stored["width"], stored["wanted"], stored["complete"]
            texts = [value for part in (maker, *listed) for value in part.values()]
            if not all(isinstance(text, str) for text in texts) or (type(width), type(complete)) != (int, bool):
                raise ValueError(f"{place} is damaged: its description says something else than an index does")
            model, roots = ModelIdentity(**maker), tuple(SourceRoot(**root) for root in listed)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place} is damaged: its description lacks something ({error})") from error
        if not Path(model.name).is_absolute():  # such a name could be fetched from the Hub
            raise ValueError(f"{place} is damaged: its model {brief(model.name)} is no path from the root")
        if method not in METHOD_CHOICES:
            raise ValueError(f"{place} was written by a newer version: it is searched by '{method}'")
        if (precision := stored.get("precision", "fp32")) not in PRECISIONS:
            raise ValueError(f"{place} was written by a newer version: its precision is {brief(str(precision))}")
        return cls(model, width, method, roots, complete, precision)


def no_index(place: str) -> ValueError:
    return ValueError(f"no index in {place}: make one with `diptych index build`")


def unfinished_index(place: str) -> ValueError:
    return ValueError(f"the index in {place} is not finished: run `diptych index build` again to complete it")


@runtime_checkable
class Store(Protocol):
    """Searches a complete index. Threads may share it."""

    place: str
    description: IndexDescription

    def count(self, kind: Kind) -> int: ...

    def search_method(self, kind: Kind) -> str:
        """Describes how a kind is searched, as in "exact, 1,000 vectors"."""
        ...

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        """Finds the ids and cosines of the k nearest vectors, best first.

        The order of equal cosines is undefined, and so is which of them are returned where k cuts through them.
        """
        ...

    def items(self, ids: Sequence[str]) -> list[Item]:
        """Returns the items with these ids, in the same order."""
        ...

    def skipped(self) -> tuple[str, ...]:
        """Lists what the last build or addition could not read, if the backend stores that."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Writer(Protocol):
    """Changes an index. There is only one writer at a time."""

    def description(self) -> IndexDescription | None:
        """Describes the stored index, complete or not. None if there is none."""
        ...

    def begin(self, description: IndexDescription, anew: bool) -> None:
        """Prepares additions to the stored index or, with `anew`, to an empty one."""
        ...

    def drop_unwanted(self, wanted: Mapping[str, Item]) -> None:
        """Drops the embeddings of an interrupted call that are no longer needed."""
        ...

    def stored(self, ids: Sequence[str]) -> dict[str, Item]:
        """Returns those of the items that the index, or an interrupted call, has already stored, by id."""
        ...

    def all_items(self) -> Iterable[Item]:
        """Returns all items that the index holds, without those of an interrupted call."""
        ...

    def add(self, portion: Portion) -> None:
        """Stores items durably, replacing those with the same ids. Searches may not see them before `commit`."""
        ...

    def remove(self, ids: Iterable[str]) -> None:
        """Marks items for removal by `commit`."""
        ...

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        """Makes all changes visible to searches. `skipped` lists unreadable items; None if no source was read."""
        ...


@runtime_checkable
class Place(Protocol):
    """Locates an index, which may not exist yet."""

    @property
    def name(self) -> str: ...

    def open(self) -> Store:
        """Raises ValueError if there is no complete index, or if it is damaged."""
        ...

    def writing(self, begin: bool) -> AbstractContextManager[Writer]:
        """Opens the index for changes. `begin` creates a missing place.

        Raises ValueError if another writer is active, and if the place is missing.
        """
        ...
