"""Writes the vectors of a folder or a JSONL file into one file, with one process or several.

    vectors.npy             [N, E], fp32, one row per item; or vectors.parquet with columns id, kind, vector, text
    vectors.ids.jsonl       {"id", "kind", "text"} of each row
    vectors.skipped.jsonl   what could not be read, and why
    vectors.done.json       which source and model the finished files come from
    vectors.parts/DIGEST/   finished parts while the work goes on, one file per thousand items

The division of items into parts does not depend on the number of processes; process r of R embeds parts r, r + R, ….
Parts are written atomically into a folder that is named by a digest of source and model. A restarted process therefore
embeds only the missing parts, and the process that finishes last joins all parts in their order.
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

from diptych.apps.index.embedding import PORTION, Portion, embed
from diptych.apps.index.files import write_json, write_lines, write_skipped, write_whole
from diptych.apps.index.items import Item, SourceItems, read_items
from diptych.data.record import BadRecord
from diptych.data.tables import import_pyarrow
from diptych.nn.lowered import Precision
from diptych.predict import Predictor
from diptych.predict.identity import ModelIdentity
from diptych.reading import expand_home

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class EmbeddingReport:
    """Reports what one process contributed to the vectors of a source."""

    to: Path
    parts: int
    """Number of all parts."""
    waiting: int
    """Number of parts that other processes have yet to finish; 0 if the file is complete."""
    vectors: int
    skipped: int
    notes: tuple[str, ...] = ()
    """Remarks for the user: what was finished already, and why work was begun anew."""


def embed_source(
    source: str | Path, to: str | Path, predictor: Predictor, rank: int = 0, processes: int = 1,
    part_size: int = PORTION, progress: Callable[[int, int], None] | None = None,
) -> EmbeddingReport:  # fmt: skip
    """Embeds this process's share of a folder or a JSONL file, and joins the file once all parts are finished.

    `progress` receives the number of this process's finished parts and of all its parts. Raises ValueError if the
    source has nothing to embed, for a model without trained embeddings, and for a name that ends in neither .npy nor
    .parquet.
    """
    to = expand_home(to)
    check_target(to)
    if reason := predictor.missing("embed"):
        raise ValueError(reason)
    job = _EmbeddingJob(to, read_items(source), ModelIdentity.of(predictor), part_size, predictor.precision)
    seen = job.source.notes
    if job.done():
        return job.report(waiting=0, notes=(f"{to} is of this source and model already", *seen))
    notes = (*job.begin(), *seen)
    share = range(rank, job.parts, processes)
    for count, number in enumerate(share, start=1):
        if not job.part(number).exists() and not job.done():  # the process that joins removes the parts
            job.write(number, embed(job.items_of(number), job.source.root, predictor))
        if progress:
            progress(count, len(share))
    with job.joining():
        if job.done():  # another process was faster
            shutil.rmtree(job.beside("parts"), ignore_errors=True)
            return job.report(waiting=0, notes=notes)
        if waiting := job.missing():
            return job.report(waiting, notes)
        job.join()
    return job.report(0, notes)


def finished(to: Path) -> EmbeddingReport:
    """Reports on a file that is complete."""
    done = json.loads(to.with_name(f"{to.stem}.done.json").read_bytes())
    return EmbeddingReport(to, done["parts"], 0, done["vectors"], done["skipped"])


def check_target(to: Path) -> None:
    """Raises ValueError for a file name with another suffix, for a missing folder, and for a missing extra."""
    if to.suffix not in SUFFIXES:
        raise ValueError(f"{to} names no known format: end it with {' or '.join(SUFFIXES)}")
    if not to.parent.is_dir():
        raise ValueError(f"no folder {to.parent}: make it first")
    if to.suffix == ".parquet":
        import_pyarrow(f"{to} is Parquet", "search")


@dataclass(frozen=True)
class _EmbeddingJob:
    """The files of one job, which several processes may share."""

    to: Path
    source: SourceItems
    model: ModelIdentity
    part_size: int
    precision: Precision

    @property
    def parts(self) -> int:
        return -(-len(self.source.items) // self.part_size)

    @cached_property
    def digest(self) -> str:
        """Hashes everything that the file depends on."""
        settings = [self.model.digest, self.part_size, str(self.source.root), self.to.suffix]
        settings += [] if self.precision == "fp32" else [self.precision]
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
        for item in self.source.items:
            digest.update(json.dumps([item.id, item.kind, item.content, item.stamp]).encode())
        return digest.hexdigest()

    @property
    def folder(self) -> Path:
        return self.beside("parts") / self.digest

    def beside(self, suffix: str) -> Path:
        return self.to.with_name(f"{self.to.stem}.{suffix}")

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
        """Makes the folder of the parts, and notes whether work for another source or model is abandoned."""
        folder = self.folder
        others = [path for path in folder.parent.glob("*") if path.is_dir() and path != folder]
        folder.mkdir(parents=True, exist_ok=True)
        if others or (self.to.exists() and self.beside("done.json").exists()):
            return (f"{self.to} was begun with another model, or the source has changed since: beginning anew",)
        return ()

    def write(self, number: int, portion: Portion) -> None:
        start = number * self.part_size
        row_of = {item.id: row for row, item in enumerate(self.items_of(number), start)}
        skipped = [[error.record, error.reason, error.detail] for error in portion.skipped]
        content = io.BytesIO()
        np.savez(
            content,
            vectors=portion.vectors,
            rows=np.array([row_of[item.id] for item in portion.items], np.int64),
            skipped=np.frombuffer(json.dumps(skipped).encode(), np.uint8),
        )
        write_whole(self.part(number), lambda file: file.write(content.getbuffer()))

    def read(self, number: int) -> Portion:
        with np.load(self.part(number), allow_pickle=False) as content:
            items = [self.source.items[row] for row in content["rows"].tolist()]
            skipped = [BadRecord(*entry) for entry in json.loads(content["skipped"].tobytes())]
            return Portion(items, content["vectors"], skipped)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Admits one process at a time; the others wait."""
        with self.to.with_name(f".{self.to.stem}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def join(self) -> None:
        """Joins the parts in their order. The note that the file is complete is written last."""
        self.beside("done.json").unlink(missing_ok=True)
        skipped = [*self.source.skipped, *(error for portion in self._portions() for error in portion.skipped)]
        vectors = sum(len(portion.items) for portion in self._portions())
        if not vectors:
            raise ValueError(f"nothing in {self.source.root} can be read; the first: {skipped[0]}")
        write_skipped(self.beside("skipped.jsonl"), skipped)
        width = self.read(0).vectors.shape[1]
        if self.to.suffix == ".npy":
            ids = (_id_entry(item) for portion in self._portions() for item in portion.items)
            write_lines(self.beside("ids.jsonl"), ids)
            write_whole(self.to, lambda file: _write_npy(file, (vectors, width), self._portions()))
        else:
            write_whole(self.to, lambda file: _write_parquet(file, width, self._portions()))
        done = {
            "digest": self.digest, "model": str(self.model), "vectors": vectors, "skipped": len(skipped),
            "parts": self.parts,
        }  # fmt: skip
        write_json(self.beside("done.json"), done)
        shutil.rmtree(self.beside("parts"), ignore_errors=True)

    def _portions(self) -> Iterator[Portion]:
        return (self.read(number) for number in range(self.parts))

    def report(self, waiting: int, notes: tuple[str, ...]) -> EmbeddingReport:
        if waiting:
            return EmbeddingReport(self.to, self.parts, waiting, 0, 0, notes)
        return replace(finished(self.to), notes=notes)


def _id_entry(item: Item) -> dict[str, Any]:
    return {"id": item.id, "kind": item.kind} | ({"text": item.content} if item.kind == "text" else {})


def _write_npy(file: IO[bytes], shape: tuple[int, int], portions: Iterator[Portion]) -> None:
    """Writes one part after another, so that the vectors need not fit into memory together."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for portion in portions:
        file.write(portion.vectors.astype("<f4").tobytes())


def _write_parquet(file: IO[bytes], width: int, portions: Iterator[Portion]) -> None:
    pa = import_pyarrow("the file is Parquet", "search")
    schema = pa.schema(
        {"id": pa.string(), "kind": pa.string(), "vector": pa.list_(pa.float32(), width), "text": pa.string()}
    )
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for portion in portions:
            items, numbers = portion.items, np.ascontiguousarray(portion.vectors).reshape(-1)
            columns = {
                "id": [item.id for item in items],
                "kind": [item.kind for item in items],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float32()), width),
                "text": [item.content if item.kind == "text" else None for item in items],
            }
            writer.write_table(pa.table(columns, schema))
