"""Stores an index in a Milvus server: `milvus://host:port/name`, or `milvus://user:password@host:port/name`.

    NAME            key, id, kind, content, stamp, source, vector: one entity per item
    NAME_about      description of the index

Each added portion is durable at once. Milvus has no locks and no transactions, so two simultaneous writers go
unnoticed. Both write whole items, and the last one with the same id stays.
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
from diptych.apps.index.neighbours import BUILD_BREADTH, LINKS, MethodChoice, count_vectors
from diptych.apps.index.store import IndexDescription, no_index, unfinished_index
from diptych.data.record import BadRecord

NAME = re.compile(r"[A-Za-z_]\w{0,100}", re.ASCII)
LONGEST = 65_535
"""Milvus's limit on the bytes of a text."""
MOST = 16_384
"""Milvus's limit on the neighbours of one search."""
LISTS = 1_024
INDEX_TYPES: dict[MethodChoice, tuple[str, dict[str, int]]] = {
    "auto": ("AUTOINDEX", {}),
    "exact": ("FLAT", {}),
    "ivf": ("IVF_FLAT", {"nlist": LISTS}),
    "hnsw": ("HNSW", {"M": LINKS, "efConstruction": BUILD_BREADTH}),
}
FIELDS = ["id", "kind", "content", "stamp", "source"]
SECONDS = 60.0
"""Timeout of a call."""


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
        """Raises ValueError if no server answers."""
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError("an index in Milvus needs pymilvus: pip install 'diptych[milvus]'") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints tracebacks of errors that it raises anyway
        try:
            return MilvusClient(self.address, token=self.token, timeout=SECONDS)
        except MilvusException as error:
            raise ValueError(f"no Milvus answers at {self.name}: {error.message}") from error

    def open(self) -> MilvusStore:
        client = self.connect()
        with _server_errors(self):
            description = _description(client, self)
        if description is None:
            raise no_index(self.name)
        if not description.complete:
            raise unfinished_index(self.name)
        return MilvusStore(self, description, client)

    @contextmanager
    def writing(self, begin: bool) -> Iterator[MilvusWriter]:
        client = self.connect()
        with _server_errors(self):
            yield MilvusWriter(self, client)


class MilvusStore:
    """Searches an index in Milvus. Changes are visible at once."""

    def __init__(self, place: MilvusPlace, description: IndexDescription, client: Any) -> None:
        self.place, self.description = place.name, description
        self._place, self._client = place, client

    def count(self, kind: Kind) -> int:
        with _server_errors(self._place):
            rows = self._client.query(self._place.index, filter=f'kind == "{kind}"', output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def search_method(self, kind: Kind) -> str:
        return f"Milvus, {INDEX_TYPES[self.description.method][0]}, {count_vectors(self.count(kind))}"

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        effort = {"ivf": {"nprobe": LISTS // 16}, "hnsw": {"ef": max(100, 2 * k)}}.get(self.description.method, {})
        with _server_errors(self._place):
            hits = self._client.search(
                self._place.index, [query.tolist()], limit=min(k, MOST), filter=f'kind == "{kind}"',
                output_fields=["id"], search_params={"metric_type": "COSINE", "params": effort},
            )[0]  # fmt: skip
        return [(hit["entity"]["id"], float(hit["distance"])) for hit in hits]

    def items(self, ids: Sequence[str]) -> list[Item]:
        with _server_errors(self._place):
            items = _stored(self._client, self._place, ids)
        return [items[id] for id in ids]

    def skipped(self) -> tuple[str, ...]:
        """Returns nothing: a server does not store it."""
        return ()

    def close(self) -> None:
        self._client.close()


class MilvusWriter:
    """Changes an index in Milvus."""

    def __init__(self, place: MilvusPlace, client: Any) -> None:
        self._place, self._client = place, client
        self._description = _description(client, place)
        self._removed: list[str] = []

    def description(self) -> IndexDescription | None:
        return self._description

    def begin(self, description: IndexDescription, anew: bool) -> None:
        if anew:
            self._client.drop_collection(_about_name(self._place))  # first: rows without a description are no index
            self._client.drop_collection(self._place.index)
            self._create(description)
        self._describe(description)

    def drop_unwanted(self, wanted: Mapping[str, Item]) -> None:
        if self._description is None or self._description.complete:  # a complete index holds committed items only
            return
        self._delete([item.id for item in self.all_items() if wanted.get(item.id) != item])

    def stored(self, ids: Sequence[str]) -> dict[str, Item]:
        return _stored(self._client, self._place, ids)

    def all_items(self) -> Iterable[Item]:
        rows = self._client.query_iterator(self._place.index, batch_size=PORTION, output_fields=FIELDS)
        items: list[Item] = []
        while batch := rows.next():
            items += [_item(row) for row in batch]
        rows.close()
        return items

    def add(self, portion: Portion) -> None:
        rows = []
        for item, vector in zip(portion.items, portion.vectors, strict=True):
            if max(len(item.id.encode()), len(item.content.encode())) > LONGEST:
                raise ValueError(f"{item.id[:80]} is longer than the {LONGEST} bytes that Milvus accepts: leave it out")
            row = {field: getattr(item, field) for field in FIELDS}
            rows.append({"key": _key(item.id), **row, "vector": vector.tolist()})
        self._client.upsert(self._place.index, rows)

    def remove(self, ids: Iterable[str]) -> None:
        self._removed += ids

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        assert self._description is not None
        self._delete(self._removed)
        self._client.flush(self._place.index)
        self._describe(replace(self._description, complete=True))

    def _delete(self, ids: Sequence[str]) -> None:
        for part in portions(ids, PORTION):
            self._client.delete(self._place.index, ids=[_key(id) for id in part])

    def _create(self, description: IndexDescription) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        for name, length in (("id", LONGEST), ("kind", 8), ("content", LONGEST), ("stamp", 64)):
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        schema.add_field("source", DataType.INT64)
        self._create_collection(self._place.index, schema, description.width, description.method)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=8)
        schema.add_field("about", DataType.VARCHAR, max_length=LONGEST)
        self._create_collection(_about_name(self._place), schema, 2, "exact")  # Milvus requires a vector

    def _create_collection(self, name: str, schema: Any, width: int, method: MethodChoice) -> None:
        from pymilvus import DataType, MilvusClient

        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        index_type, settings = INDEX_TYPES[method]
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type=index_type, metric_type="COSINE", params=settings)
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def _describe(self, description: IndexDescription) -> None:
        row = {"key": "about", "about": json.dumps(description.to_json()), "vector": [1.0, 0.0]}
        self._client.upsert(_about_name(self._place), [row])
        self._description = description


@contextmanager
def _server_errors(place: MilvusPlace) -> Iterator[None]:
    """Raises ValueError for an error of the server."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise ValueError(f"{place.name} refuses: {error.message}") from error


def _description(client: Any, place: MilvusPlace) -> IndexDescription | None:
    """Returns None if there is no such index."""
    name = _about_name(place)
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    client.load_collection(place.index)
    rows = client.query(name, filter='key == "about"', output_fields=["about"])
    return IndexDescription.from_json(json.loads(rows[0]["about"]), place.name) if rows else None


def _about_name(place: MilvusPlace) -> str:
    return f"{place.index}_about"


def _stored(client: Any, place: MilvusPlace, ids: Sequence[str]) -> dict[str, Item]:
    rows: list[Any] = []
    for part in portions(ids, PORTION):
        rows += client.query(
            place.index, filter=f"key in {json.dumps([_key(id) for id in part])}", output_fields=FIELDS
        )
    return {row["id"]: _item(row) for row in rows}


def _key(id: str) -> str:
    """Hashes an id, which may hold characters that Milvus clients cannot quote."""
    return hashlib.blake2b(id.encode(), digest_size=16).hexdigest()


def _item(row: Mapping[str, Any]) -> Item:
    return Item(row["id"], row["kind"], row["content"], row["stamp"], row["source"])
