"""What an index asks of the place where it is kept: a folder, a Milvus or a PostgreSQL server.

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
from diptych.apps.index.identity import Maker
from diptych.apps.index.items import Item, Kind
from diptych.apps.index.neighbours import WANTED, Wanted
from diptych.data.record import BadRecord


@dataclass(frozen=True)
class Root:
    """A source of an index."""

    folder: str
    """Where its relative paths start: absolute."""
    prefix: str
    """Of its ids, but of those that a JSONL file gives itself: nothing for the first source, `NAME/` for others."""


@dataclass(frozen=True)
class About:
    """What an index is."""

    maker: Maker
    width: int
    wanted: Wanted
    roots: tuple[Root, ...]
    complete: bool = False
    """False while it is built for the first time: it cannot be searched yet."""

    def file(self, item: Item) -> Path:
        return Path(self.roots[item.source].folder) / item.content

    def with_root(self, folder: Path) -> tuple[About, int]:
        """With a source of that folder, and the source's number."""
        for number, root in enumerate(self.roots):
            if root.folder == str(folder):
                return self, number
        names = {root.prefix for root in self.roots}
        prefix, number = "", 1
        while self.roots and (not prefix or prefix in names):
            prefix = f"{folder.name or 'root'}{'' if number == 1 else f'-{number}'}/"
            number += 1
        return replace(self, roots=(*self.roots, Root(str(folder), prefix))), len(self.roots)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any], place: str) -> About:
        """What `plain` wrote. Raises ValueError for anything else."""
        try:
            roots = tuple(Root(**root) for root in plain["roots"])
            about = cls(Maker(**plain["maker"]), plain["width"], plain["wanted"], roots, plain["complete"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place} is damaged: its description lacks something ({error})") from error
        if about.wanted not in WANTED:
            raise ValueError(f"{place} was written by a newer version: it is searched by '{about.wanted}'")
        return about


@runtime_checkable
class Store(Protocol):
    """An index that is there and complete, for searching. Threads may share it."""

    place: str
    about: About

    def count(self, kind: Kind) -> int: ...

    def how(self, kind: Kind) -> str:
        """As in "exact, 1,000 vectors"."""
        ...

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        """Ids and cosines of the k nearest, best first; equal ones in no order, any of them where k cuts through."""
        ...

    def items(self, ids: Sequence[str]) -> list[Item]:
        """Those items, in that order."""
        ...

    def skipped(self) -> tuple[str, ...]:
        """What the last build or addition could not read, where that is kept."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Writer(Protocol):
    """What changes an index; only one at a time."""

    def about(self) -> About | None:
        """Of what is there, complete or not; None for nothing."""
        ...

    def begin(self, about: About, anew: bool) -> None:
        """Makes ready for additions to what is there or, with `anew`, to nothing."""
        ...

    def forget(self, wanted: Mapping[str, Item]) -> None:
        """Of what a call that was broken off has embedded, keeps only what is wanted still."""
        ...

    def held(self, ids: Sequence[str]) -> dict[str, Item]:
        """Those of the items that are there, or that a call that was broken off has embedded, by their ids."""
        ...

    def add(self, portion: Portion) -> None:
        """Writes items down for good, in place of those with the same ids. They need not be found before `commit`."""
        ...

    def remove(self, ids: Iterable[str]) -> None:
        """Takes effect with `commit`."""
        ...

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        """Lets all be found. `skipped`: what could not be read, None where nothing was."""
        ...


@runtime_checkable
class Place(Protocol):
    """Where an index is, or may be."""

    @property
    def name(self) -> str: ...

    def open(self) -> Store:
        """Raises ValueError where there is no complete index, and for a damaged one."""
        ...

    def writing(self, begin: bool) -> AbstractContextManager[Writer]:
        """`begin`: whether the place is made where there is none. Raises ValueError where somebody else writes, and
        where there is no such place."""
        ...


def find_place(place: str | Path) -> Place:
    """The folder, or the server's index, that an address means. Raises ValueError for an address that is none."""
    name = str(place)
    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme == "milvus":
        from diptych.apps.index.milvus import MilvusPlace

        return MilvusPlace.of(name)
    if scheme in ("postgresql", "postgres"):
        from diptych.apps.index.postgres import PostgresPlace

        return PostgresPlace.of(name)
    if scheme:
        raise ValueError(f"an index is a folder, milvus://host:port/name or postgresql://…, not {name}")
    from diptych.apps.index.folder import FolderPlace

    return FolderPlace(Path(place))
