"""Finds the storage backend of an index by its address."""

from __future__ import annotations

from pathlib import Path

from diptych.apps.index.folder import FolderPlace
from diptych.apps.index.milvus import MilvusPlace
from diptych.apps.index.postgres import PostgresPlace
from diptych.apps.index.store import Place
from diptych.reading import expand_home


def find_place(place: str | Path) -> Place:
    """Returns the folder, or the index in a server, that an address names. Raises ValueError for any other address."""
    name = str(place)
    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme == "milvus":
        return MilvusPlace.of(name)
    if scheme in ("postgresql", "postgres"):
        return PostgresPlace.of(name)
    if scheme:
        raise ValueError(f"an index is a folder, milvus://host:port/name or postgresql://…, not {name}")
    return FolderPlace(expand_home(place))
