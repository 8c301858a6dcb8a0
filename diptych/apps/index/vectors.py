"""The vectors of a folder or a JSONL file as one file, by one process or many.

    vectors.npy             [N, E], fp32, a row an item        or: vectors.parquet with columns id, kind, vector, text
    vectors.ids.jsonl       {"id", "kind", "text"} of each row
    vectors.skipped.jsonl   what could not be read, and why
    vectors.done.json       what the files are of
    vectors.parts/DIGEST/   while it goes on: a file a thousand items

Items are cut into parts whatever the number of processes is; each process takes every so many-th. A part is either
whole or not there, and of one source and one model, whose digest names the folder. So a process that was killed goes on
with the parts that are missing, and whoever ends last joins them in their order.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import PORTION, Portion, embed
from diptych.apps.index.files import write_json, write_lines, write_whole
from diptych.apps.index.identity import Maker
from diptych.apps.index.items import Item, Items, read_items
from diptych.data.record import BadRecord
from diptych.predict import Predictor

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class Embedded:
    """What a process has done of the vectors of a source."""

    to: Path
    parts: int
    """In all."""
    waiting: int
    """Parts that other processes still have to do; 0: the file is there."""
    vectors: int
    skipped: int
    notes: tuple[str, ...] = ()
    """What a person should know: what was there already, why something was begun anew."""


def embed_source(
    source: str | Path, to: str | Path, predictor: Predictor, rank: int = 0, processes: int = 1,
    part_size: int = PORTION, said: Callable[[int, int], None] | None = None,
) -> Embedded:  # fmt: skip
    """This process's share of the vectors of a folder or a JSONL file, and the joined file once all are there.

    `said` is told how many of its parts are done. Raises ValueError for a source without anything to embed, a model
    without vectors, and a name that ends in neither .npy nor .parquet.
    """
    to = Path(to)
    check_target(to)
    if why := predictor.missing("embed"):
        raise ValueError(why)
    items = read_items(source)
    maker = Maker.of(predictor)
    work = _Work(to, items, maker, part_size)
    if work.done():
        return work.told(waiting=0, notes=(f"{to} is of this source and model already",))
    notes = work.begin()
    own = range(rank, work.parts, processes)
    for count, number in enumerate(own, start=1):
        if not work.part(number).exists() and not work.done():  # whoever joins takes the parts away
            work.write(number, embed(work.items_of(number), items.root, predictor))
        if said:
            said(count, len(own))
    with work.joining():
        if work.done():  # another process was faster
            shutil.rmtree(work.beside("parts"), ignore_errors=True)
            return work.told(waiting=0, notes=notes)
        if waiting := work.missing():
            return work.told(waiting, notes)
        work.join()
    return work.told(0, notes)


def finished(to: Path) -> Embedded:
    """What is said of a file that is there."""
    done = json.loads(to.with_name(f"{to.stem}.done.json").read_bytes())
    return Embedded(to, done["parts"], 0, done["vectors"], done["skipped"])


def check_target(to: Path) -> None:
    """Raises ValueError for a name that says no format, a folder that is not there, and for a missing extra."""
    if to.suffix not in SUFFIXES:
        raise ValueError(f"{to} says no format: end it with {' or '.join(SUFFIXES)}")
    if not to.parent.is_dir():
        raise ValueError(f"no folder {to.parent}: make it first")
    if to.suffix == ".parquet":
        _parquet()


@dataclass(frozen=True)
class _Work:
    """The files of one call, whoever makes it."""

    to: Path
    source: Items
    maker: Maker
    part_size: int

    @property
    def parts(self) -> int:
        return -(-len(self.source.items) // self.part_size)

    @cached_property
    def digest(self) -> str:
        """Of all that the file depends on."""
        first = [self.maker.digest, self.part_size, str(self.source.root), self.to.suffix]
        found = hashlib.blake2b(json.dumps(first).encode(), digest_size=16)
        for item in self.source.items:
            found.update(json.dumps([item.id, item.kind, item.content, item.stamp]).encode())
        return found.hexdigest()

    @property
    def folder(self) -> Path:
        return self.beside("parts") / self.digest

    def beside(self, what: str) -> Path:
        return self.to.with_name(f"{self.to.stem}.{what}")

    def part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def items_of(self, number: int) -> list[Item]:
        return self.source.items[number * self.part_size : (number + 1) * self.part_size]

    def missing(self) -> int:
        return sum(not self.part(number).exists() for number in range(self.parts))

    def done(self) -> bool:
        file = self.beside("done.json")
        return self.to.exists() and file.exists() and json.loads(file.read_bytes()).get("digest") == self.digest

    def begin(self) -> tuple[str, ...]:
        folder = self.folder
        others = [path for path in folder.parent.glob("*") if path.is_dir() and path != folder]
        folder.mkdir(parents=True, exist_ok=True)
        if others or (self.to.exists() and self.beside("done.json").exists()):
            return (f"{self.to} was begun for another model, or the source has changed since: beginning anew",)
        return ()

    def write(self, number: int, portion: Portion) -> None:
        start = number * self.part_size
        of = {item.id: place for place, item in enumerate(self.items_of(number), start)}
        skipped = [[error.record, error.reason, error.detail] for error in portion.skipped]
        rows = np.array([of[item.id] for item in portion.items], np.int64)
        content = io.BytesIO()
        lost = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        np.savez(content, vectors=portion.vectors, rows=rows, skipped=lost)
        write_whole(self.part(number), lambda file: file.write(content.getbuffer()))

    def read(self, number: int) -> Portion:
        with np.load(self.part(number), allow_pickle=False) as content:
            items = [self.source.items[row] for row in content["rows"].tolist()]
            skipped = [BadRecord(*entry) for entry in json.loads(content["skipped"].tobytes())]
            return Portion(items, content["vectors"], skipped)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """One process at a time; the others wait."""
        with self.to.with_name(f".{self.to.stem}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def join(self) -> None:
        """The parts in their order; the note that all is there comes last."""
        self.beside("done.json").unlink(missing_ok=True)
        skipped = [*self.source.skipped, *(error for portion in self._all() for error in portion.skipped)]
        vectors = sum(len(portion.items) for portion in self._all())
        if not vectors:
            raise ValueError(f"nothing in {self.source.root} can be read; the first: {skipped[0]}")
        entries = [{"record": one.record, "reason": one.reason, "message": str(one)} for one in skipped]
        write_lines(self.beside("skipped.jsonl"), [_plain(entry) for entry in entries])
        width = self.read(0).vectors.shape[1]
        if self.to.suffix == ".npy":
            write_lines(self.beside("ids.jsonl"), (_row(item) for portion in self._all() for item in portion.items))
            write_whole(self.to, lambda file: _write_npy(file, (vectors, width), self._all()))
        else:
            write_whole(self.to, lambda file: _write_parquet(file, width, self._all()))
        done = {"digest": self.digest, "model": str(self.maker), "vectors": vectors, "skipped": len(skipped)}
        done |= {"parts": self.parts}
        write_json(self.beside("done.json"), done)
        shutil.rmtree(self.beside("parts"), ignore_errors=True)

    def _all(self) -> Iterator[Portion]:
        return (self.read(number) for number in range(self.parts))

    def told(self, waiting: int, notes: tuple[str, ...]) -> Embedded:
        return (
            Embedded(self.to, self.parts, waiting, 0, 0, notes) if waiting else replace(finished(self.to), notes=notes)
        )


def _row(item: Item) -> dict[str, Any]:
    return {"id": item.id, "kind": item.kind} | ({"text": item.content} if item.kind == "text" else {})


def _plain(entry: dict[str, str]) -> dict[str, str]:
    return {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}


def _write_npy(file: IO[bytes], shape: tuple[int, int], portions: Iterator[Portion]) -> None:
    """A part at a time, so that all need not fit into memory."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for portion in portions:
        file.write(portion.vectors.astype("<f4").tobytes())


def _write_parquet(file: IO[bytes], width: int, portions: Iterator[Portion]) -> None:
    pa, parquet = _parquet()
    schema = pa.schema(
        {"id": pa.string(), "kind": pa.string(), "vector": pa.list_(pa.float32(), width), "text": pa.string()}
    )
    with parquet.ParquetWriter(file, schema) as writer:
        for portion in portions:
            items, flat = portion.items, pa.array(_flat(portion.vectors), pa.float32())
            columns = {
                "id": [item.id for item in items],
                "kind": [item.kind for item in items],
                "vector": pa.FixedSizeListArray.from_arrays(flat, width),
                "text": [item.content if item.kind == "text" else None for item in items],
            }
            writer.write_table(pa.table(columns, schema))


def _flat(vectors: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, "n"]:
    return np.ascontiguousarray(vectors).reshape(-1)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("writing Parquet needs pyarrow: pip install 'diptych[search]'; or name a .npy file") from error
    return pyarrow, pyarrow.parquet
