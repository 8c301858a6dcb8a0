"""An index in a PostgreSQL server with pgvector: `postgresql://user@host/database?index=name`.

    diptych_indexes             name, about: what each index is
    diptych_NAME                id, kind, content, stamp, source, vector: a row an item

Additions are there for good a portion at a time; an advisory lock lets one writer in.
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
from diptych.apps.index.neighbours import EXACT_UP_TO, LISTS_PER_ROOT, Way
from diptych.apps.index.store import About
from diptych.data.record import BadRecord

NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")
TABLE = "diptych_indexes"
BREADTH, LARGEST_BREADTH = 100, 1_000
"""hnsw.ef_search: what is set, for more neighbours more, and pgvector's limit; beyond it the scan goes on by itself."""
LEAST_VERSION = (0, 8)
"""pgvector that goes on scanning until there are as many rows as asked."""
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
                f"{_shown(address)} names no index: end it with ?index=NAME, of small letters, digits and _ (up to 41)"
            )
        return cls(_shown(address), urlunsplit(parts._replace(query=urlencode(query))), index)

    def connect(self) -> Any:
        """Raises ValueError where nothing answers."""
        try:
            import psycopg
        except ImportError as error:
            raise ValueError("an index in PostgreSQL needs psycopg: pip install 'diptych[postgres]'") from error
        try:
            return psycopg.connect(self.address, autocommit=True)
        except psycopg.Error as error:
            raise ValueError(f"no PostgreSQL answers at {self.name}: {_first(error)}") from error

    def open(self) -> PostgresStore:
        connection = self.connect()
        with _asking(self):
            about = _about(connection, self)
        if about is None or not about.complete:
            connection.close()
            raise ValueError(
                f"no index at {self.name}: make one with `diptych index build`"
                if about is None
                else f"the index at {self.name} is not finished: `diptych index build` goes on with it"
            )
        _register(connection)
        return PostgresStore(self, about, connection)

    @contextmanager
    def writing(self, begin: bool) -> Iterator[PostgresWriter]:
        connection = self.connect()
        try:
            if begin:
                _prepare(connection, self)
            locked = "SELECT pg_try_advisory_lock(hashtext('diptych'), hashtext(%s))"
            if not connection.execute(locked, [self.index]).fetchone()[0]:
                raise ValueError(f"another process writes to {self.name}: wait for it, or stop it")
            yield PostgresWriter(self, connection)
        finally:
            with suppress(Exception):  # the server may take a while to see us gone
                connection.execute("SELECT pg_advisory_unlock_all()")
            connection.close()


class PostgresStore:
    """Shows changes as they are made."""

    def __init__(self, place: PostgresPlace, about: About, connection: Any) -> None:
        self.place, self.about, self._at, self._connection = place.name, about, place, connection
        self._lock = threading.Lock()

    def count(self, kind: Kind) -> int:
        return int(self._ask("SELECT count(*) FROM {rows} WHERE kind = %s", [kind])[0][0])

    def how(self, kind: Kind) -> str:
        count, way = self.count(kind), self._way(kind)
        said = {"exact": "exact", "ivf": "IVF", "hnsw": "HNSW"}[way]
        return f"PostgreSQL, {said}, {count:,} vector{'' if count == 1 else 's'}"

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        from psycopg import sql

        lists = LISTS_PER_ROOT * math.isqrt(max(1, self.count(kind))) if self._way(kind) == "ivf" else 0
        settings = {
            "hnsw.ef_search": min(max(BREADTH, 2 * k), LARGEST_BREADTH), "hnsw.iterative_scan": "strict_order",
            "ivfflat.probes": max(1, math.isqrt(lists)), "ivfflat.iterative_scan": "relaxed_order",
        }  # fmt: skip
        # The kind is written out, so that the planner sees that the partial index will do.
        text = "SELECT id, 1 - (vector <=> %s) FROM {rows} WHERE kind = {kind} ORDER BY vector <=> %s LIMIT %s"
        found = self._ask(text, [query, query, k], settings, kind=sql.Literal(kind))
        return sorted(((id, float(score)) for id, score in found), key=lambda one: -one[1])

    def items(self, ids: Sequence[str]) -> list[Item]:
        rows = self._ask(f"SELECT {COLUMNS} FROM {{rows}} WHERE id = ANY(%s)", [list(ids)])
        found = {row[0]: Item(*row) for row in rows}
        return [found[id] for id in ids]

    def skipped(self) -> tuple[str, ...]:
        """Not kept in a server."""
        return ()

    def close(self) -> None:
        self._connection.close()

    def _way(self, kind: Kind) -> Way:
        rows = self._ask("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [_index_name(self._at, kind)])
        return "exact" if not rows else "ivf" if "ivfflat" in rows[0][0] else "hnsw"

    def _ask(self, text: str, values: Sequence[Any], settings: Mapping[str, Any] | None = None, **parts: Any) -> Any:
        from psycopg import sql

        with self._lock:
            if self._connection.closed:  # a server that was started anew
                self._connection = self._at.connect()
                _register(self._connection)
            with _asking(self._at), self._connection.transaction():
                for name, value in (settings or {}).items():
                    self._connection.execute("SELECT set_config(%s, %s, true)", [name, str(value)])
                query = sql.SQL(text).format(rows=_rows(self._at), **parts)
                return self._connection.execute(query, values).fetchall()


class PostgresWriter:
    """Holds the lock of its index."""

    def __init__(self, place: PostgresPlace, connection: Any) -> None:
        self._place, self._connection = place, connection
        self._about = _about(connection, place)
        self._removed: list[str] = []

    def about(self) -> About | None:
        return self._about

    def begin(self, about: About, anew: bool) -> None:
        with self._transaction() as execute:
            if anew:
                execute("DROP TABLE IF EXISTS {rows}")
                execute(
                    'CREATE TABLE {rows} (id text COLLATE "C" PRIMARY KEY, kind text NOT NULL, content text NOT NULL, '
                    "stamp text NOT NULL, source integer NOT NULL, vector vector({width}) NOT NULL)",
                    width=about.width,
                )
            self._note(execute, about)

    def forget(self, wanted: Mapping[str, Item]) -> None:
        if self._about is None or self._about.complete:  # what is complete was meant to be there
            return
        with self._transaction() as execute:
            rows = [Item(*row) for row in execute(f"SELECT {COLUMNS} FROM {{rows}}").fetchall()]
            unwanted = [item.id for item in rows if wanted.get(item.id) != item]
            execute("DELETE FROM {rows} WHERE id = ANY(%s)", [unwanted])

    def held(self, ids: Sequence[str]) -> dict[str, Item]:
        with self._transaction() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM {{rows}} WHERE id = ANY(%s)", [list(ids)]).fetchall()
        return {row[0]: Item(*row) for row in rows}

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
        assert self._about is not None
        with self._transaction() as execute:
            execute("DELETE FROM {rows} WHERE id = ANY(%s)", [self._removed])
            for kind in KINDS:
                self._index(execute, kind)
            self._note(execute, replace(self._about, complete=True))

    def _note(self, execute: Any, about: About) -> None:
        text = f"INSERT INTO {TABLE} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET about = excluded.about"
        execute(text, [self._place.index, json.dumps(about.plain())])
        self._about = about

    def _index(self, execute: Any, kind: Kind) -> None:
        """Lists or a graph, once there are so many vectors that they pay. PostgreSQL keeps them up to date."""
        from psycopg import sql

        assert self._about is not None
        count = execute("SELECT count(*) FROM {rows} WHERE kind = %s", [kind]).fetchone()[0]
        way = self._about.wanted
        if way == "exact" or count == 0 or (way == "auto" and count <= EXACT_UP_TO):
            return
        lists = f"WITH (lists = {max(1, LISTS_PER_ROOT * math.isqrt(count))})"
        method = f"ivfflat (vector vector_cosine_ops) {lists}" if way == "ivf" else "hnsw (vector vector_cosine_ops)"
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

        with _asking(self._place), self._connection.transaction():
            yield execute


@contextmanager
def _asking(place: PostgresPlace) -> Iterator[None]:
    """What the server says against it is a ValueError."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise ValueError(f"{place.name} refuses: {_first(error)}") from error


def _prepare(connection: Any, place: PostgresPlace) -> None:
    with _asking(place), connection.transaction():
        # Two that create at once collide in the catalogue, whatever IF NOT EXISTS says.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('diptych'))")
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (name text PRIMARY KEY, about jsonb NOT NULL)")
    version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0]
    if tuple(map(int, version.split(".")[:2])) < LEAST_VERSION:
        raise ValueError(f"{place.name} has pgvector {version}: an index needs {'.'.join(map(str, LEAST_VERSION))}")


def _register(connection: Any) -> None:
    """Arrays go to the server as vectors."""
    try:
        from pgvector.psycopg import register_vector
    except ImportError as error:
        raise ValueError("an index in PostgreSQL needs pgvector: pip install 'diptych[postgres]'") from error
    register_vector(connection)


def _about(connection: Any, place: PostgresPlace) -> About | None:
    """None where there is no such index."""
    if connection.execute("SELECT to_regclass(%s)", [TABLE]).fetchone()[0] is None:
        return None
    row = connection.execute(f"SELECT about FROM {TABLE} WHERE name = %s", [place.index]).fetchone()
    return None if row is None else About.of(row[0], place.name)


def _rows(place: PostgresPlace) -> Any:
    from psycopg import sql

    return sql.Identifier(f"diptych_{place.index}")


def _index_name(place: PostgresPlace, kind: Kind) -> str:
    return f"diptych_{place.index}_{kind}"


def _shown(address: str) -> str:
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}"))


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
