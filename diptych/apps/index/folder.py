"""Stores an index in a folder that is consistent at any moment.

    PLACE/index.json            description of the index, and size and sha256 of every file of its generation
          generation-00000003/
              picture.npy       vectors [N, E], fp32, one row per item (text.npy likewise)
              picture.jsonl     [id, path, stamp, source] of each row
              picture.faiss     IVF lists or HNSW graph, unless the search is exact
          skipped.jsonl         what the last build or addition could not read
          staged/               embeddings of a call that is running or was interrupted
          begun.json            description of an index that is built for the first time

A change writes a new generation beside the current one, flushes it to the disk, and then replaces index.json.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import Portion
from diptych.apps.index.files import UNFINISHED, sole_writer, write_json, write_lines, write_skipped, write_whole
from diptych.apps.index.items import KINDS, Item, Kind
from diptych.apps.index.neighbours import Searcher, SearchSettings, require_faiss
from diptych.apps.index.store import IndexDescription, no_index, unfinished_index
from diptych.checkpoints.files import fingerprint
from diptych.data.files import json_lines, lines_of
from diptych.data.record import BadRecord
from diptych.printable import brief, printable
from diptych.reading import disguise_of, parse_json, read_object
from diptych.search.vectors_file import packed, unpacked
from diptych.writing import flush, whole_file

FORMAT = 1
MANIFEST, BEGUN, SKIPPED, STAGED = "index.json", "begun.json", "skipped.jsonl", "staged"
GENERATION = "generation-"
REBUILD = "build it again in another folder, or restore it from a copy"
NAME = re.compile(r"\w[\w-]*\.\w+")
"""Names of the files of a generation. None leads to another folder."""
LARGEST_COORDINATE = 1.01
"""Bound on the coordinates of stored vectors, whose length is 1 but for rounding. NaN is not below it."""
TRIES = 5
"""How often a reader starts again because a writer has replaced the generation meanwhile."""


@dataclass
class Table:
    """The items of one kind, with their vectors on disk."""

    items: list[Item]
    row_of: dict[str, int]
    file: Path | None
    """File of the vectors; None if there are no items."""
    searcher: Searcher | None

    @property
    def vectors(self) -> Float32[np.ndarray, "N E"]:
        assert self.file is not None
        return np.load(self.file, mmap_mode="r", allow_pickle=False)


EMPTY = Table([], {}, None, None)
EXACT = SearchSettings("exact")


class Staged(NamedTuple):
    """An embedded item that is not committed yet, with the file and row of its vector."""

    item: Item
    file: Path
    row: int


@dataclass(frozen=True)
class FolderPlace:
    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    def open(self) -> FolderStore:
        return FolderStore(self.folder)

    @contextmanager
    def writing(self, begin: bool) -> Iterator[FolderWriter]:
        require_faiss()  # fails now rather than after hours of embedding
        if not begin and not self.folder.exists():
            raise no_index(self.name)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: an index is a folder")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not _is_index(self.folder):
            raise ValueError(f"{self.folder} holds other things: an index needs a folder of its own")
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.folder):
            yield FolderWriter(self.folder)


class FolderStore:
    """Searches the generation that was current when it was opened. Later changes are not visible."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if there is no complete index, or if it is damaged."""
        self.place, self.folder = str(folder), folder
        manifest = _manifest(folder)
        if manifest is None:
            if (folder / BEGUN).exists() or (folder / STAGED).exists():
                raise unfinished_index(self.place)
            raise no_index(self.place)
        for attempt in range(TRIES):
            try:
                self.description, self.tables = _load(folder, manifest)
                return
            except _FileChanged:
                newer = _manifest(folder)
                if newer is None or newer["generation"] == manifest["generation"] or attempt == TRIES - 1:
                    raise
                manifest = newer

    def count(self, kind: Kind) -> int:
        return len(self.tables[kind].items)

    def search_method(self, kind: Kind) -> str:
        return _settings(self.tables[kind]).describe(self.count(kind))

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        table = self.tables[kind]
        if table.searcher is None:
            return []
        rows, cosines = table.searcher.search(query, k)
        if rows.max(initial=0) >= len(table.items):
            raise ValueError(f"{self.place} is damaged (its {kind}s are searched by other numbers): {REBUILD}")
        return [(table.items[row].id, cosine) for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)]

    def items(self, ids: Sequence[str]) -> list[Item]:
        tables = [next(table for table in self.tables.values() if id in table.row_of) for id in ids]
        return [table.items[table.row_of[id]] for table, id in zip(tables, ids, strict=True)]

    def skipped(self) -> tuple[str, ...]:
        file = self.folder / SKIPPED
        if not file.exists():
            return ()
        entries = (entry for _, entry in json_lines(file) if isinstance(entry, dict))
        return tuple(printable(entry["message"]) for entry in entries if isinstance(entry.get("message"), str))

    def close(self) -> None:
        """Does nothing: no file is held open."""


@dataclass
class FolderWriter:
    """Changes an index in a folder, whose lock its caller holds."""

    folder: Path
    _current: FolderStore | None = None
    _staged: dict[str, Staged] = field(default_factory=dict)
    """Uncommitted items by id."""
    _removed: set[str] = field(default_factory=set)
    _description: IndexDescription | None = None

    def __post_init__(self) -> None:
        self._tidy()
        if (self.folder / MANIFEST).exists():
            self._current = FolderStore(self.folder)

    def description(self) -> IndexDescription | None:
        if self._current is not None:
            return self._current.description
        begun = self.folder / BEGUN
        return IndexDescription.from_json(_json(begun), str(begun)) if begun.exists() else None

    def begin(self, description: IndexDescription, anew: bool) -> None:
        if anew:
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)
        self._description = description
        if self._current is None:
            write_json(self.folder / BEGUN, description.to_json())
        (self.folder / STAGED).mkdir(exist_ok=True)
        for file in sorted((self.folder / STAGED).glob("*.npz")):
            model, items, _ = _read_portion(file)
            if model == description.model.digest:
                self._staged |= {item.id: Staged(item, file, row) for row, item in enumerate(items)}

    def drop_unwanted(self, wanted: Mapping[str, Item]) -> None:
        self._staged = {id: staged for id, staged in self._staged.items() if wanted.get(id) == staged.item}

    def stored(self, ids: Sequence[str]) -> dict[str, Item]:
        items = {id: self._staged[id].item for id in ids if id in self._staged}
        if self._current is not None:
            for table in self._current.tables.values():
                items = {id: table.items[table.row_of[id]] for id in ids if id in table.row_of} | items
        return items

    def all_items(self) -> Iterable[Item]:
        return [] if self._current is None else chain.from_iterable(t.items for t in self._current.tables.values())

    def add(self, portion: Portion) -> None:
        assert self._description is not None
        numbers = [int(file.stem) for file in (self.folder / STAGED).glob("*.npz")]
        file = self.folder / STAGED / f"{max(numbers, default=-1) + 1:08d}.npz"
        _write_portion(file, self._description.model.digest, portion)
        self._staged |= {item.id: Staged(item, file, row) for row, item in enumerate(portion.items)}

    def remove(self, ids: Iterable[str]) -> None:
        self._removed.update(ids)

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        description = self._description or self.description()
        assert description is not None
        number = _generation(self.folder) + 1
        folder = self.folder / f"{GENERATION}{number:08d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tables = _GenerationWriter(self._current, self._staged, self._removed, description, folder).write()
        files = {file.name: fingerprint(file) for file in sorted(folder.iterdir())}
        flush(folder)
        content = {
            "format": FORMAT, "generation": number, "about": replace(description, complete=True).to_json(),
            "tables": tables, "files": files,
        }  # fmt: skip
        if skipped is not None:
            write_skipped(self.folder / SKIPPED, skipped)
        write_json(self.folder / MANIFEST, content)
        self._tidy()
        (self.folder / BEGUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes generations that are not current, and unfinished files."""
        current = f"{GENERATION}{_generation(self.folder):08d}"
        for path in self.folder.glob(f"{GENERATION}*"):
            if path.name != current:
                shutil.rmtree(path, ignore_errors=True)
        for path in (*self.folder.glob(f"*{UNFINISHED}"), *(self.folder / STAGED).glob(f"*{UNFINISHED}")):
            path.unlink(missing_ok=True)


@dataclass
class _GenerationWriter:
    """Writes a generation: the current items without those that are replaced or removed, and then the staged ones."""

    current: FolderStore | None
    staged: dict[str, Staged]
    removed: set[str]
    description: IndexDescription
    folder: Path

    def write(self) -> dict[Kind, dict[str, Any]]:
        tables: dict[Kind, dict[str, Any]] = {}
        changed = [kind for kind in KINDS if self._write_rows(kind, tables)]
        for kind in changed:
            if tables[kind]["count"]:
                tables[kind]["how"] = self._write_searcher(kind).to_json()
        return tables

    def _old(self, kind: Kind) -> Table:
        return self.current.tables[kind] if self.current else EMPTY

    def _write_rows(self, kind: Kind, tables: dict[Kind, dict[str, Any]]) -> bool:
        """Writes the items and vectors of a kind. Returns whether they differ from the current generation."""
        old = self._old(kind)
        outdated = self.removed | self.staged.keys()
        kept = [row for row, item in enumerate(old.items) if item.id not in outdated]
        new = [staged for id, staged in self.staged.items() if staged.item.kind == kind and id not in self.removed]
        if not new and len(kept) == len(old.items):
            tables[kind] = self._link_table(kind, old)
            return False
        items = [*(old.items[row] for row in kept), *(staged.item for staged in new)]
        tables[kind] = {"count": len(items), "how": EXACT.to_json()}
        if items:
            entries = ([item.id, item.content, item.stamp, item.source] for item in items)
            write_lines(self.folder / f"{kind}.jsonl", entries)
            self._write_vectors(kind, old, kept, new)
        return True

    def _link_table(self, kind: Kind, old: Table) -> dict[str, Any]:
        """Links the unchanged files of the current generation into this one."""
        if old.file is not None:
            for file in old.file.parent.glob(f"{kind}.*"):
                _link(file, self.folder / file.name)
        return {"count": len(old.items), "how": _settings(old).to_json()}

    def _write_vectors(self, kind: Kind, old: Table, kept: list[int], new: list[Staged]) -> None:
        shape = (len(kept) + len(new), self.description.width)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for target, staged in enumerate(new, start=len(kept)):
            by_file.setdefault(staged.file, []).append((target, staged.row))
        with whole_file(self.folder / f"{kind}.npy") as path:
            table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            _reserve(path)
            if kept:
                vectors = old.vectors
                for start in range(0, len(kept), 1 << 16):
                    table[start : min(start + (1 << 16), len(kept))] = vectors[kept[start : start + (1 << 16)]]
            for file, rows in by_file.items():
                table[[target for target, _ in rows]] = _read_portion(file)[2][[row for _, row in rows]]
            table.flush()
            del table

    def _write_searcher(self, kind: Kind) -> SearchSettings:
        """Writes lists or a graph, tuned with the vectors of the other kind as queries."""
        vectors = np.load(self.folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False)
        other = self.folder / f"{KINDS[1 - KINDS.index(kind)]}.npy"
        queries = np.load(other, mmap_mode="r", allow_pickle=False) if other.exists() else None
        old = self._old(kind)
        only_grown = not any(item.id in self.removed or item.id in self.staged for item in old.items)
        previous = (old.searcher, len(old.items)) if old.searcher and only_grown else None
        searcher = Searcher.build(vectors, self.description.method, queries, previous)
        if searcher.settings.method != "exact":
            searcher.save(self.folder / f"{kind}.faiss")
            flush(self.folder / f"{kind}.faiss")
        return searcher.settings


# --------------------------------------------------------------------------- reading


class _FileChanged(ValueError):
    """Says that a file is missing, or differs from what the manifest states."""


def _manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / MANIFEST
    if not file.exists():
        return None
    content = _json(file)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {brief(content.get('format'))}, and this version reads {FORMAT}: {REBUILD}"
        )
    files = content.get("files")
    whole = (
        type(content.get("generation")) is int
        and 0 <= content["generation"] < 10**8
        and isinstance(content.get("about"), dict)
        and isinstance(files, dict)
        and all(NAME.fullmatch(name) and isinstance(entry, dict) for name, entry in files.items())
    )
    if not whole:
        raise ValueError(f"{file} is damaged (it does not describe an index): {REBUILD}")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        kind = disguise_of(path)
        raise ValueError(f"{path} is damaged ({f'it is {kind}' if kind else error}): {REBUILD}") from error


def _generation(folder: Path) -> int:
    manifest = _manifest(folder)
    return 0 if manifest is None else int(manifest["generation"])


def _load(folder: Path, manifest: dict[str, Any]) -> tuple[IndexDescription, dict[Kind, Table]]:
    """Raises _FileChanged for a file that is missing or differs from what was written, ValueError for other damage."""
    generation = folder / f"{GENERATION}{manifest['generation']:08d}"
    description = IndexDescription.from_json(manifest["about"], str(folder / MANIFEST))
    try:
        for name, expected in manifest["files"].items():
            _check_file(generation / name, expected)
        tables = {kind: _table(generation, kind, manifest["tables"][kind], description.width) for kind in KINDS}
        if any(not 0 <= item.source < len(description.roots) for table in tables.values() for item in table.items):
            raise ValueError(f"{generation} is damaged (an item is of no known source): {REBUILD}")
        return description, tables
    except Exception as error:  # NumPy, FAISS and JSON can raise anything on what was not written by an index
        if isinstance(error, ValueError) and str(error).endswith(REBUILD):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{generation} is damaged ({type(error).__name__}: {reason}): {REBUILD}") from error


def _check_file(file: Path, expected: Mapping[str, Any]) -> None:
    """Raises _FileChanged unless a file is as it was written."""
    try:
        if file.is_file() and file.stat().st_size == expected.get("bytes") and fingerprint(file) == expected:
            return
        reason = "is damaged (not what was written)" if file.is_file() else "cannot be read (no such file)"
    except OSError as error:
        reason = f"cannot be read ({error})"
    raise _FileChanged(f"{file} {reason}: {REBUILD}")


def _table(generation: Path, kind: Kind, entry: dict[str, Any], width: int) -> Table:
    if not entry["count"]:
        return EMPTY
    file, settings = generation / f"{kind}.npy", SearchSettings.from_json(entry["how"])
    try:
        items = [_item(line, kind, number) for _, number, line in lines_of(generation / f"{kind}.jsonl")]
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise _FileChanged(f"{generation} is damaged ({error}): {REBUILD}") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not len(items) == len(vectors) == entry["count"]:
        raise ValueError(f"{generation} is damaged (items and vectors are not equally many): {REBUILD}")
    if vectors.shape[1] != width or not _are_normalised(vectors):
        raise ValueError(f"{generation} is damaged (its {kind}s have vectors of no model): {REBUILD}")
    if settings.method == "exact":
        searcher = Searcher.build(vectors, "exact")
    else:
        try:
            searcher = Searcher.load(generation / f"{kind}.faiss", settings)
        except FileNotFoundError as error:
            raise _FileChanged(f"{generation} is damaged ({error}): {REBUILD}") from error
    if len(searcher) != len(vectors) or searcher.width != width:
        raise ValueError(f"{generation} is damaged (its search finds other vectors): {REBUILD}")
    return Table(items, {item.id: row for row, item in enumerate(items)}, file, searcher)


def _are_normalised(vectors: Float32[np.ndarray, "N E"]) -> bool:
    """Tells whether all coordinates are finite and those of vectors of length 1, from a block at a time."""
    blocks = (vectors[start : start + (1 << 16)] for start in range(0, len(vectors), 1 << 16))
    return all(bool((np.abs(block) < LARGEST_COORDINATE).all()) for block in blocks)


def _item(line: bytes, kind: Kind, number: int) -> Item:
    try:
        id, content, stamp, source = parse_json(line)
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {number} of its {kind}s names none: {error}") from None
    if not all(isinstance(text, str) for text in (id, content, stamp)) or type(source) is not int:
        raise ValueError(f"line {number} of its {kind}s names none")
    return Item(id, kind, content, stamp, source)


def _settings(table: Table) -> SearchSettings:
    return table.searcher.settings if table.searcher else EXACT


def _is_index(folder: Path) -> bool:
    """Whether a folder holds files of an index only."""
    names = rf"\.lock|{MANIFEST}|{BEGUN}|{SKIPPED}|{STAGED}|{GENERATION}\d+|.*{re.escape(UNFINISHED)}"
    return all(re.fullmatch(names, path.name) for path in folder.iterdir())


# --------------------------------------------------------------------------- staged files


def _reserve(path: Path) -> None:
    """Takes room for a whole sparse file. Without it, a disk that becomes full ends the process by SIGBUS."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _write_portion(file: Path, model: str, portion: Portion) -> None:
    content = packed([model, [astuple(item) for item in portion.items]], portion.vectors)
    write_whole(file, lambda stream: stream.write(content))


def _read_portion(file: Path) -> tuple[str, list[Item], Float32[np.ndarray, "N E"]]:
    """Reads the digest of the model, the items and their vectors. Raises ValueError for a damaged file."""
    try:
        (model, rows), vectors = unpacked(file)
        return model, [Item(*row) for row in rows], vectors
    except TypeError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and build again") from error
    except ValueError as error:
        raise ValueError(f"{error}: remove it, and build again") from error


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # the file system has no hard links
        shutil.copyfile(file, name)
        flush(name)
