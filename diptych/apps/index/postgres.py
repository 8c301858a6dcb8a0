"""Stores an index in a PostgreSQL server with pgvector: `postgresql://user@host/database?index=name`.

    diptych_indexes             name, about: description of each index
    diptych_NAME                id, kind, content, stamp, source, vector: one row per item

Each added portion is durable at once. An advisory lock admits one writer.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import Portion
from diptych.apps.index.items import KINDS, Item, Kind
from diptych.apps.index.neighbours import LISTS_PER_ROOT, Method, choose_method, count_vectors
from diptych.apps.index.store import IndexDescription, no_index, unfinished_index
from diptych.data.record import BadRecord

NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")
TABLE = "diptych_indexes"
BREADTH, LARGEST_BREADTH = 100, 1_000
"""hnsw.ef_search for few neighbours, and pgvector's limit of it. Beyond it pgvector extends the scan by itself."""
LEAST_VERSION = (0, 8)
"""The first pgvector that scans iteratively until it has as many rows as requested."""
COLUMNS = "id, kind, content, stamp, source"


@dataclass(frozen=True)
class PostgresPlace:
    name: str
    """The address without its password."""
    address: str
    index: str

    @classmethod
    def of(cls, address: str) -> PostgresPlace:
        """Raises ValueError for an address without an index's name."""
        parts = urlsplit(address)
        query = dict(parse_qsl(parts.query))
        index = query.pop("index", "")
        if not NAME.fullmatch(index):
            raise ValueError(
                f"{_without_password(address)} names no index: end it with ?index=NAME, of at most 41 lower-case "
                "letters, digits and _"
            )
        return cls(_without_password(address), urlunsplit(parts._replace(query=urlencode(query))), index)

    def connect(self) -> Any:
        """Raises ValueError if no server answers."""
        try:
            import psycopg
        except ImportError as error:
            raise ValueError("an index in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from error
        try:
            return psycopg.connect(self.address, autocommit=True)
        except psycopg.Error as error:
            raise ValueError(f"no PostgreSQL answers at {self.name}: {_first_line(error)}") from error

    def open(self) -> PostgresStore:
        connection = self.connect()
        with _server_errors(self):
            description = _description(connection, self)
        if description is None or not description.complete:
            connection.close()
            raise no_index(self.name) if description is None else unfinished_index(self.name)
        _register(connection)
        return PostgresStore(self, description, connection)

    @contextmanager
    def writing(self, begin: bool) -> Iterator[PostgresWriter]:
        connection = self.connect()
        try:
            if begin:
                _prepare(connection, self)
            lock = "SELECT pg_try_advisory_lock(hashtext('diptych'), hashtext(%s))"
            if not connection.execute(lock, [self.index]).fetchone()[0]:
                raise ValueError(f"another process writes to {self.name}: wait for it, or stop it")
            yield PostgresWriter(self, connection)
        finally:
            with suppress(Exception):  # the server may notice the closed connection late
                connection.execute("SELECT pg_advisory_unlock_all()")
            connection.close()


class PostgresStore:
    """Searches an index in PostgreSQL. Changes are visible at once."""

    def __init__(self, place: PostgresPlace, description: IndexDescription, connection: Any) -> None:
        self.place, self.description = place.name, description
        self._place, self._connection = place, connection
        self._lock = threading.Lock()

    def count(self, kind: Kind) -> int:
        return int(self._query("SELECT count(*) FROM {rows} WHERE kind = %s", [kind])[0][0])

    def search_method(self, kind: Kind) -> str:
        method = {"exact": "exact", "ivf": "IVF", "hnsw": "HNSW"}[self._method(kind)]
        return f"PostgreSQL, {method}, {count_vectors(self.count(kind))}"

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        from psycopg import sql

        lists = LISTS_PER_ROOT * math.isqrt(max(1, self.count(kind))) if self._method(kind) == "ivf" else 0
        settings = {
            "hnsw.ef_search": min(max(BREADTH, 2 * k), LARGEST_BREADTH), "hnsw.iterative_scan": "strict_order",
            "ivfflat.probes": max(1, math.isqrt(lists)), "ivfflat.iterative_scan": "relaxed_order",
        }  # fmt: skip
        # The kind is a literal, so that the planner can use the partial index.
        text = "SELECT id, 1 - (vector <=> %s) FROM {rows} WHERE kind = {kind} ORDER BY vector <=> %s LIMIT %s"
        rows = self._query(text, [query, query, k], settings, kind=sql.Literal(kind))
        return sorted(((id, float(cosine)) for id, cosine in rows), key=lambda hit: -hit[1])

    def items(self, ids: Sequence[str]) -> list[Item]:
        rows = self._query(f"SELECT {COLUMNS} FROM {{rows}} WHERE id = ANY(%s)", [list(ids)])
        items = {row[0]: Item(*row) for row in rows}
        return [items[id] for id in ids]

    def skipped(self) -> tuple[str, ...]:
        """Returns nothing: a server does not store it."""
        return ()

    def close(self) -> None:
        self._connection.close()

    def _method(self, kind: Kind) -> Method:
        rows = self._query("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [_index_name(self._place, kind)])
        return "exact" if not rows else "ivf" if "ivfflat" in rows[0][0] else "hnsw"

    def _query(self, text: str, values: Sequence[Any], settings: Mapping[str, Any] | None = None, **parts: Any) -> Any:
        from psycopg import sql

        with self._lock:
            if self._connection.closed:  # the server was restarted
                self._connection = self._place.connect()
                _register(self._connection)
            with _server_errors(self._place), self._connection.transaction():
                for name, value in (settings or {}).items():
                    self._connection.execute("SELECT set_config(%s, %s, true)", [name, str(value)])
                query = sql.SQL(text).format(rows=_rows(self._place), **parts)
                return self._connection.execute(query, values).fetchall()


class PostgresWriter:
    """Changes an index in PostgreSQL, whose lock its connection holds."""

    def __init__(self, place: PostgresPlace, connection: Any) -> None:
        self._place, self._connection = place, connection
        self._description = _description(connection, place)
        self._removed: list[str] = []

    def description(self) -> IndexDescription | None:
        return self._description

    def begin(self, description: IndexDescription, anew: bool) -> None:
        with self._transaction() as execute:
            if anew:
                execute("DROP TABLE IF EXISTS {rows}")
                execute(
                    'CREATE TABLE {rows} (id text COLLATE "C" PRIMARY KEY, kind text NOT NULL, content text NOT NULL, '
                    "stamp text NOT NULL, source integer NOT NULL, vector vector({width}) NOT NULL)",
                    width=description.width,
                )
            self._describe(execute, description)

    def drop_unwanted(self, wanted: Mapping[str, Item]) -> None:
        if self._description is None or self._description.complete:  # a complete index holds committed items only
            return
        with self._transaction() as execute:
            rows = [Item(*row) for row in execute(f"SELECT {COLUMNS} FROM {{rows}}").fetchall()]
            unwanted = [item.id for item in rows if wanted.get(item.id) != item]
            execute("DELETE FROM {rows} WHERE id = ANY(%s)", [unwanted])

    def stored(self, ids: Sequence[str]) -> dict[str, Item]:
        with self._transaction() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM {{rows}} WHERE id = ANY(%s)", [list(ids)]).fetchall()
        return {row[0]: Item(*row) for row in rows}

    def all_items(self) -> Iterable[Item]:
        with self._transaction() as execute:
            return [Item(*row) for row in execute(f"SELECT {COLUMNS} FROM {{rows}}").fetchall()]

    def add(self, portion: Portion) -> None:
        with self._transaction() as execute:
            execute("DELETE FROM {rows} WHERE id = ANY(%s)", [[item.id for item in portion.items]])
            from psycopg import sql

            copy = sql.SQL(f"COPY {{rows}} ({COLUMNS}, vector) FROM STDIN").format(rows=_rows(self._place))
            with self._connection.cursor() as cursor, cursor.copy(copy) as rows:
                for item, vector in zip(portion.items, portion.vectors, strict=True):
                    row = (item.id, item.kind, item.content, item.stamp, item.source)
                    rows.write_row((*row, str(vector.tolist())))

    def remove(self, ids: Iterable[str]) -> None:
        self._removed += ids

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        assert self._description is not None
        with self._transaction() as execute:
            execute("DELETE FROM {rows} WHERE id = ANY(%s)", [self._removed])
            for kind in KINDS:
                self._create_index(execute, kind)
            self._describe(execute, replace(self._description, complete=True))

    def _describe(self, execute: Any, description: IndexDescription) -> None:
        text = f"INSERT INTO {TABLE} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET about = excluded.about"
        execute(text, [self._place.index, json.dumps(description.to_json())])
        self._description = description

    def _create_index(self, execute: Any, kind: Kind) -> None:
        """Creates an index unless the search is exact; `auto` means HNSW here. PostgreSQL keeps it up to date."""
        from psycopg import sql

        assert self._description is not None
        count = execute("SELECT count(*) FROM {rows} WHERE kind = %s", [kind]).fetchone()[0]
        choice = self._description.method
        if count == 0 or choose_method(count, choice) == "exact":
            return
        lists = f"WITH (lists = {max(1, LISTS_PER_ROOT * math.isqrt(count))})"
        method = f"ivfflat (vector vector_cosine_ops) {lists}" if choice == "ivf" else "hnsw (vector vector_cosine_ops)"
        name = sql.Identifier(_index_name(self._place, kind))
        execute(
            "CREATE INDEX IF NOT EXISTS {name} ON {rows} USING {method} WHERE kind = {kind}",
            name=name, method=sql.SQL(method), kind=sql.Literal(kind),
        )  # fmt: skip

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        from psycopg import sql

        def execute(text: str, values: Sequence[Any] | None = None, **parts: Any) -> Any:
            return self._connection.execute(sql.SQL(text).format(rows=_rows(self._place), **parts), values)

        with _server_errors(self._place), self._connection.transaction():
            yield execute


@contextmanager
def _server_errors(place: PostgresPlace) -> Iterator[None]:
    """Raises ValueError for an error of the server."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise ValueError(f"{place.name} refuses: {_first_line(error)}") from error


def _prepare(connection: Any, place: PostgresPlace) -> None:
    with _server_errors(place), connection.transaction():
        # Simultaneous CREATE statements collide in the catalogue despite IF NOT EXISTS.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('diptych'))")
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (name text PRIMARY KEY, about jsonb NOT NULL)")
    version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0]
    if tuple(map(int, version.split(".")[:2])) < LEAST_VERSION:
        raise ValueError(f"{place.name} has pgvector {version}: an index needs {'.'.join(map(str, LEAST_VERSION))}")


def _register(connection: Any) -> None:
    """Lets the connection send arrays as vectors."""
    try:
        from pgvector.psycopg import register_vector
    except ImportError as error:
        raise ValueError("an index in PostgreSQL needs pgvector: pip install 'diptych[postgres]'") from error
    register_vector(connection)


def _description(connection: Any, place: PostgresPlace) -> IndexDescription | None:
    """Returns None if there is no such index."""
    if connection.execute("SELECT to_regclass(%s)", [TABLE]).fetchone()[0] is None:
        return None
    row = connection.execute(f"SELECT about FROM {TABLE} WHERE name = %s", [place.index]).fetchone()
    return None if row is None else IndexDescription.from_json(row[0], place.name)


def _rows(place: PostgresPlace) -> Any:
    from psycopg import sql

    return sql.Identifier(f"diptych_{place.index}")


def _index_name(place: PostgresPlace, kind: Kind) -> str:
    return f"diptych_{place.index}_{kind}"


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
