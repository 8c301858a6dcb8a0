"""An index in a Milvus server: `milvus://host:port/name`, or `milvus://user:password@host:port/name`.

    NAME            key, id, kind, content, stamp, source, vector: an entity an item
    NAME_about      what the index is

Additions are there for good a portion at a time. Milvus has no locks and no transactions: two writers at once are not
noticed. Each then writes whole items, the last of the same id stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import PORTION, Portion
from diptych.apps.index.items import Item, Kind, portions
from diptych.apps.index.neighbours import BUILD_BREADTH, LINKS, Wanted
from diptych.apps.index.store import About
from diptych.data.record import BadRecord

NAME = re.compile(r"[A-Za-z_]\w{0,100}", re.ASCII)
LONGEST = 65_535
"""Bytes of a text: Milvus's limit."""
MOST = 16_384
"""Neighbours of one search: Milvus's limit."""
LISTS = 1_024
KINDS_OF_INDEX: dict[Wanted, tuple[str, dict[str, int]]] = {
    "auto": ("AUTOINDEX", {}),
    "exact": ("FLAT", {}),
    "ivf": ("IVF_FLAT", {"nlist": LISTS}),
    "hnsw": ("HNSW", {"M": LINKS, "efConstruction": BUILD_BREADTH}),
}
FIELDS = ["id", "kind", "content", "stamp", "source"]
SECONDS = 60.0
"""Until a call is given up."""


@dataclass(frozen=True)
class MilvusPlace:
    name: str
    """The address without user and password."""
    address: str
    token: str
    index: str

    @classmethod
    def of(cls, address: str) -> MilvusPlace:
        """Raises ValueError for an address without host, port or name."""
        parts = urlsplit(address)
        index = parts.path.strip("/")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not (host and port and NAME.fullmatch(index)):
            raise ValueError("an index in Milvus is milvus://host:port/name, the name of letters, digits and _")
        token = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
        return cls(f"milvus://{host}:{port}/{index}", f"http://{host}:{port}", token, index)

    def connect(self) -> Any:
        """Raises ValueError where nothing answers."""
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError("an index in Milvus needs pymilvus: pip install 'diptych[milvus]'") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints tracebacks of what is raised anyway
        try:
            return MilvusClient(self.address, token=self.token, timeout=SECONDS)
        except MilvusException as error:
            raise ValueError(f"no Milvus answers at {self.name}: {error.message}") from error

    def open(self) -> MilvusStore:
        client = self.connect()
        with _asking(self):
            about = _about(client, self)
            if about is None:
                raise ValueError(f"no index at {self.name}: make one with `diptych index build`")
            if not about.complete:
                raise ValueError(f"the index at {self.name} is not finished: `diptych index build` goes on with it")
        return MilvusStore(self, about, client)

    @contextmanager
    def writing(self, begin: bool) -> Iterator[MilvusWriter]:
        client = self.connect()
        with _asking(self):
            yield MilvusWriter(self, client)


class MilvusStore:
    """Shows changes as they are made."""

    def __init__(self, place: MilvusPlace, about: About, client: Any) -> None:
        self.place, self.about, self._at, self._client = place.name, about, place, client

    def count(self, kind: Kind) -> int:
        with _asking(self._at):
            found = self._client.query(self._at.index, filter=f'kind == "{kind}"', output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def how(self, kind: Kind) -> str:
        count = self.count(kind)
        return f"Milvus, {KINDS_OF_INDEX[self.about.wanted][0]}, {count:,} vector{'' if count == 1 else 's'}"

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        wide = {"ivf": {"nprobe": LISTS // 16}, "hnsw": {"ef": max(100, 2 * k)}}.get(self.about.wanted, {})
        with _asking(self._at):
            found = self._client.search(
                self._at.index, [query.tolist()], limit=min(k, MOST), filter=f'kind == "{kind}"', output_fields=["id"],
                search_params={"metric_type": "COSINE", "params": wide},
            )[0]  # fmt: skip
        return [(hit["entity"]["id"], float(hit["distance"])) for hit in found]

    def items(self, ids: Sequence[str]) -> list[Item]:
        with _asking(self._at):
            found = _held(self._client, self._at, ids)
        return [found[id] for id in ids]

    def skipped(self) -> tuple[str, ...]:
        """Not kept in a server."""
        return ()

    def close(self) -> None:
        self._client.close()


class MilvusWriter:
    def __init__(self, place: MilvusPlace, client: Any) -> None:
        self._place, self._client = place, client
        self._about = _about(client, place)
        self._removed: list[str] = []

    def about(self) -> About | None:
        return self._about

    def begin(self, about: About, anew: bool) -> None:
        if anew:
            for name in (_about_name(self._place), self._place.index):  # rows without a description are no index
                self._client.drop_collection(name)
            self._create(about)
        self._note(about)

    def forget(self, wanted: Mapping[str, Item]) -> None:
        if self._about is None or self._about.complete:  # what is complete was meant to be there
            return
        rows = self._client.query_iterator(self._place.index, batch_size=PORTION, output_fields=FIELDS)
        unwanted: list[str] = []
        while batch := rows.next():
            items = [_item(row) for row in batch]
            unwanted += [item.id for item in items if wanted.get(item.id) != item]
        rows.close()
        self._delete(unwanted)

    def held(self, ids: Sequence[str]) -> dict[str, Item]:
        return _held(self._client, self._place, ids)

    def add(self, portion: Portion) -> None:
        rows = []
        for item, vector in zip(portion.items, portion.vectors, strict=True):
            if max(len(item.id.encode()), len(item.content.encode())) > LONGEST:
                raise ValueError(f"{item.id[:80]} is longer than the {LONGEST} bytes that Milvus takes: leave it out")
            row = {field: getattr(item, field) for field in FIELDS}
            rows.append({"key": _key(item.id), **row, "vector": vector.tolist()})
        self._client.upsert(self._place.index, rows)

    def remove(self, ids: Iterable[str]) -> None:
        self._removed += ids

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        assert self._about is not None
        self._delete(self._removed)
        self._client.flush(self._place.index)
        self._note(replace(self._about, complete=True))

    def _delete(self, ids: Sequence[str]) -> None:
        for part in portions(ids, PORTION):
            self._client.delete(self._place.index, ids=[_key(id) for id in part])

    def _create(self, about: About) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        for name, length in (("id", LONGEST), ("kind", 8), ("content", LONGEST), ("stamp", 64)):
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        schema.add_field("source", DataType.INT64)
        self._collection(self._place.index, schema, about.width, about.wanted)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=8)
        schema.add_field("about", DataType.VARCHAR, max_length=LONGEST)
        self._collection(_about_name(self._place), schema, 2, "exact")  # Milvus asks for a vector in each

    def _collection(self, name: str, schema: Any, width: int, wanted: Wanted) -> None:
        from pymilvus import DataType, MilvusClient

        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        way, settings = KINDS_OF_INDEX[wanted]
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type=way, metric_type="COSINE", params=settings)
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def _note(self, about: About) -> None:
        row = {"key": "about", "about": json.dumps(about.plain()), "vector": [1.0, 0.0]}
        self._client.upsert(_about_name(self._place), [row])
        self._about = about


@contextmanager
def _asking(place: MilvusPlace) -> Iterator[None]:
    """What the server says against it is a ValueError."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise ValueError(f"{place.name} refuses: {error.message}") from error


def _about(client: Any, place: MilvusPlace) -> About | None:
    """None where there is no such index."""
    name = _about_name(place)
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    client.load_collection(place.index)
    rows = client.query(name, filter='key == "about"', output_fields=["about"])
    return About.of(json.loads(rows[0]["about"]), place.name) if rows else None


def _about_name(place: MilvusPlace) -> str:
    return f"{place.index}_about"


def _held(client: Any, place: MilvusPlace, ids: Sequence[str]) -> dict[str, Item]:
    rows: list[Any] = []
    for part in portions(ids, PORTION):
        rows += client.query(
            place.index, filter=f"key in {json.dumps([_key(id) for id in part])}", output_fields=FIELDS
        )
    return {row["id"]: _item(row) for row in rows}


def _key(id: str) -> str:
    """Of any id, what every Milvus client can quote."""
    return hashlib.blake2b(id.encode(), digest_size=16).hexdigest()


def _item(row: Mapping[str, Any]) -> Item:
    return Item(row["id"], row["kind"], row["content"], row["stamp"], row["source"])
