"""An index in a folder that is whole at any moment.

    PLACE/index.json            what the index is, and the size and sha256 of every file of its generation
          generation-00000003/
              picture.npy       vectors [N, E], fp32, a row an item (text.npy likewise)
              picture.jsonl     [id, path, stamp, source] of each row
              picture.faiss     lists or a graph, where it is not searched exactly
          skipped.jsonl         what the last build or addition could not read
          staged/               what a call has embedded that is not over, or was broken off
          begun.json            what the index will be, while it is built for the first time

A change writes another generation beside the one in use, flushes it, and then replaces index.json.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from diptych.apps.index.embedding import Portion
from diptych.apps.index.files import UNFINISHED, sole_writer, write_json, write_lines, write_whole
from diptych.apps.index.items import KINDS, Item, Kind
from diptych.apps.index.neighbours import How, Searcher, require_faiss
from diptych.apps.index.store import About
from diptych.checkpoints.files import fingerprint, flush
from diptych.data.record import BadRecord

FORMAT = 1
MANIFEST, BEGUN, SKIPPED, STAGED = "index.json", "begun.json", "skipped.jsonl", "staged"
GENERATION = "generation-"
ANEW = "build it anew in another folder, or bring it back from a copy"
TRIES = 5
"""How often a reader looks again where a writer replaces what it reads."""


@dataclass
class Table:
    """The items of a kind, with their vectors on disk."""

    items: list[Item]
    place_of: dict[str, int]
    file: Path | None
    """Of the vectors; None for no items."""
    searcher: Searcher | None

    @property
    def vectors(self) -> Float32[np.ndarray, "N E"]:
        assert self.file is not None
        return np.load(self.file, mmap_mode="r", allow_pickle=False)


EMPTY = Table([], {}, None, None)


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
        require_faiss()  # now, and not after hours of embedding
        if not begin and not self.folder.exists():
            raise ValueError(f"no index in {self.folder}: make one with `diptych index build`")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: an index is a folder")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not _ours(self.folder):
            raise ValueError(f"{self.folder} holds other things: an index needs a folder of its own")
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.folder):
            yield FolderWriter(self.folder)


class FolderStore:
    """The generation that was in use when it was opened, in memory: later changes do not reach it."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where there is no complete index, or a damaged one."""
        self.place, self.folder = str(folder), folder
        manifest = _manifest(folder)
        if manifest is None:
            if (folder / BEGUN).exists() or (folder / STAGED).exists():
                raise ValueError(f"the index in {folder} is not finished: `diptych index build` goes on with it")
            raise ValueError(f"no index in {folder}: make one with `diptych index build`")
        for turn in range(TRIES):
            try:
                self.about, self.tables = _load(folder, manifest)
                return
            except _Gone:
                newer = _manifest(folder)
                if newer is None or newer["generation"] == manifest["generation"] or turn == TRIES - 1:
                    raise
                manifest = newer

    def count(self, kind: Kind) -> int:
        return len(self.tables[kind].items)

    def how(self, kind: Kind) -> str:
        searcher = self.tables[kind].searcher
        return (searcher.how if searcher else How("exact")).say(self.count(kind))

    def nearest(self, kind: Kind, query: Float32[np.ndarray, "E"], k: int) -> list[tuple[str, float]]:
        table = self.tables[kind]
        if table.searcher is None:
            return []
        places, scores = table.searcher.search(query, k)
        return [(table.items[place].id, score) for place, score in zip(places.tolist(), scores.tolist(), strict=True)]

    def items(self, ids: Sequence[str]) -> list[Item]:
        tables = [next(table for table in self.tables.values() if id in table.place_of) for id in ids]
        return [table.items[table.place_of[id]] for table, id in zip(tables, ids, strict=True)]

    def skipped(self) -> tuple[str, ...]:
        file = self.folder / SKIPPED
        if not file.exists():
            return ()
        return tuple(json.loads(line)["message"] for line in file.read_text(encoding="utf-8").splitlines())

    def close(self) -> None:
        """Nothing is held open."""


@dataclass
class FolderWriter:
    """Holds the folder's lock."""

    folder: Path
    _now: FolderStore | None = None
    _staged: dict[str, tuple[Item, Path, int]] = field(default_factory=dict)
    """By id: the item, its file, its row in there."""
    _removed: set[str] = field(default_factory=set)
    _next: About | None = None

    def __post_init__(self) -> None:
        self._tidy()
        if (self.folder / MANIFEST).exists():
            self._now = FolderStore(self.folder)

    def about(self) -> About | None:
        if self._now is not None:
            return self._now.about
        begun = self.folder / BEGUN
        return About.of(_json(begun), str(begun)) if begun.exists() else None

    def begin(self, about: About, anew: bool) -> None:
        if anew:
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)
        self._next = about
        if self._now is None:
            write_json(self.folder / BEGUN, about.plain())
        (self.folder / STAGED).mkdir(exist_ok=True)
        for file in sorted((self.folder / STAGED).glob("*.npz")):
            maker, items, _ = _read_portion(file)
            if maker == about.maker.digest:
                self._staged |= {item.id: (item, file, row) for row, item in enumerate(items)}

    def forget(self, wanted: Mapping[str, Item]) -> None:
        self._staged = {id: found for id, found in self._staged.items() if wanted.get(id) == found[0]}

    def held(self, ids: Sequence[str]) -> dict[str, Item]:
        found = {id: self._staged[id][0] for id in ids if id in self._staged}
        if self._now is not None:
            for table in self._now.tables.values():
                found = {id: table.items[table.place_of[id]] for id in ids if id in table.place_of} | found
        return found

    def add(self, portion: Portion) -> None:
        assert self._next is not None
        taken = [int(file.stem) for file in (self.folder / STAGED).glob("*.npz")]
        file = self.folder / STAGED / f"{max(taken, default=-1) + 1:08d}.npz"
        _write_portion(file, self._next.maker.digest, portion)
        self._staged |= {item.id: (item, file, row) for row, item in enumerate(portion.items)}

    def remove(self, ids: Iterable[str]) -> None:
        self._removed.update(ids)

    def commit(self, skipped: Sequence[BadRecord] | None) -> None:
        about = self._next or self.about()
        assert about is not None
        number = _generation(self.folder) + 1
        folder = self.folder / f"{GENERATION}{number:08d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tables = _Merger(self._now, self._staged, self._removed, about, folder).write()
        files = {file.name: fingerprint(file) for file in sorted(folder.iterdir())}
        flush(folder)
        content = {
            "format": FORMAT, "generation": number, "about": replace(about, complete=True).plain(),
            "tables": tables, "files": files,
        }  # fmt: skip
        if skipped is not None:
            write_lines(self.folder / SKIPPED, [_skip_entry(error) for error in skipped])
        write_json(self.folder / MANIFEST, content)
        self._tidy()
        (self.folder / BEGUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes what is not in use, or was never finished."""
        current = f"{GENERATION}{_generation(self.folder):08d}"
        for path in self.folder.glob(f"{GENERATION}*"):
            if path.name != current:
                shutil.rmtree(path, ignore_errors=True)
        for path in (*self.folder.glob(f"*{UNFINISHED}"), *(self.folder / STAGED).glob(f"*{UNFINISHED}")):
            path.unlink(missing_ok=True)


@dataclass
class _Merger:
    """Writes the files of a generation: what is there, less what is replaced or removed, and what is staged."""

    now: FolderStore | None
    staged: dict[str, tuple[Item, Path, int]]
    removed: set[str]
    about: About
    folder: Path

    def write(self) -> dict[Kind, dict[str, Any]]:
        tables: dict[Kind, dict[str, Any]] = {}
        changed = [kind for kind in KINDS if self._write_rows(kind, tables)]
        for kind in changed:
            if tables[kind]["count"]:
                tables[kind]["how"] = asdict(self._write_searcher(kind))
        return tables

    def _old(self, kind: Kind) -> Table:
        return self.now.tables[kind] if self.now else EMPTY

    def _write_rows(self, kind: Kind, tables: dict[Kind, dict[str, Any]]) -> bool:
        """The items and vectors of a kind. Returns whether they are other ones than before."""
        old = self._old(kind)
        gone = self.removed | self.staged.keys()
        kept = [row for row, item in enumerate(old.items) if item.id not in gone]
        new = [found for found in self.staged.values() if found[0].kind == kind and found[0].id not in self.removed]
        if not new and len(kept) == len(old.items):
            tables[kind] = self._same(kind, old)
            return False
        items = [*(old.items[row] for row in kept), *(item for item, _, _ in new)]
        tables[kind] = {"count": len(items), "how": asdict(How("exact"))}
        if items:
            rows = (_row_of(item) for item in items)
            write_lines(self.folder / f"{kind}.jsonl", rows)
            self._write_vectors(kind, old, kept, new)
        return True

    def _same(self, kind: Kind, old: Table) -> dict[str, Any]:
        """The files of the generation before, under the names of this one."""
        if old.file is not None:
            for file in old.file.parent.glob(f"{kind}.*"):
                _link(file, self.folder / file.name)
        how = old.searcher.how if old.searcher else How("exact")
        return {"count": len(old.items), "how": asdict(how)}

    def _write_vectors(self, kind: Kind, old: Table, kept: list[int], new: list[tuple[Item, Path, int]]) -> None:
        shape = (len(kept) + len(new), self.about.width)
        path = self.folder / f"{kind}.npy"
        table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        if kept:
            vectors = old.vectors
            for start in range(0, len(kept), 1 << 16):
                table[start : min(start + (1 << 16), len(kept))] = vectors[kept[start : start + (1 << 16)]]
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for place, (_, file, row) in enumerate(new, start=len(kept)):
            by_file.setdefault(file, []).append((place, row))
        for file, rows in by_file.items():
            table[[place for place, _ in rows]] = _read_portion(file)[2][[row for _, row in rows]]
        table.flush()
        del table
        flush(path)

    def _write_searcher(self, kind: Kind) -> How:
        """Lists or a graph, with the other kind's vectors as what will be asked."""
        vectors = np.load(self.folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False)
        other = self.folder / f"{KINDS[1 - KINDS.index(kind)]}.npy"
        queries = np.load(other, mmap_mode="r", allow_pickle=False) if other.exists() else None
        old = self._old(kind)
        grown = not any(item.id in self.removed or item.id in self.staged for item in old.items)
        before = (old.searcher, len(old.items)) if old.searcher and grown else None
        searcher = Searcher.build(vectors, self.about.wanted, queries, before)
        if searcher.how.way != "exact":
            searcher.save(self.folder / f"{kind}.faiss")
            flush(self.folder / f"{kind}.faiss")
        return searcher.how


# --------------------------------------------------------------------------- reading


class _Gone(ValueError):
    """A file is not what the manifest says."""


def _manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / MANIFEST
    if not file.exists():
        return None
    content = _json(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} has format {content.get('format')!r}, and this version reads {FORMAT}: {ANEW}")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {ANEW}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no object): {ANEW}")
    return content


def _generation(folder: Path) -> int:
    manifest = _manifest(folder)
    return 0 if manifest is None else int(manifest["generation"])


def _load(folder: Path, manifest: dict[str, Any]) -> tuple[About, dict[Kind, Table]]:
    """Raises _Gone for a file that is not there, or not as it was written."""
    about = About.of(manifest["about"], str(folder / MANIFEST))
    place = folder / f"{GENERATION}{manifest['generation']:08d}"
    for name, expected in manifest["files"].items():
        try:
            found = fingerprint(place / name)
        except OSError as error:
            raise _Gone(f"{place / name} cannot be read ({error}): {ANEW}") from error
        if found != expected:
            raise _Gone(f"{place / name} is damaged (not what was written): {ANEW}")
    return about, {kind: _table(place, kind, manifest["tables"][kind], about) for kind in KINDS}


def _table(place: Path, kind: Kind, entry: dict[str, Any], about: About) -> Table:
    if not entry["count"]:
        return EMPTY
    file, how = place / f"{kind}.npy", How(**entry["how"])
    try:
        with (place / f"{kind}.jsonl").open(encoding="utf-8") as lines:
            items = [_item_of(kind, json.loads(line)) for line in lines]
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        exact = how.way == "exact"
        searcher = Searcher.build(vectors, "exact") if exact else Searcher.load(place / f"{kind}.faiss", how)
    except FileNotFoundError as error:
        raise _Gone(f"{place} is damaged ({error}): {ANEW}") from error
    assert len(items) == len(vectors) == len(searcher) == entry["count"], f"{place}: rows do not go together"
    return Table(items, {item.id: row for row, item in enumerate(items)}, file, searcher)


def _ours(folder: Path) -> bool:
    own = rf"\.lock|{MANIFEST}|{BEGUN}|{SKIPPED}|{STAGED}|{GENERATION}\d+|.*{re.escape(UNFINISHED)}"
    return all(re.fullmatch(own, path.name) for path in folder.iterdir())


# --------------------------------------------------------------------------- rows


def _row_of(item: Item) -> list[Any]:
    return [item.id, item.content, item.stamp, item.source]


def _item_of(kind: Kind, row: list[Any]) -> Item:
    id, content, stamp, source = row
    return Item(id, kind, content, stamp, source)


def _write_portion(file: Path, maker: str, portion: Portion) -> None:
    rows = json.dumps([maker, [astuple(item) for item in portion.items]]).encode()
    content = io.BytesIO()
    np.savez(content, vectors=portion.vectors, rows=np.frombuffer(rows, np.uint8))
    write_whole(file, lambda stream: stream.write(content.getbuffer()))


def _read_portion(file: Path) -> tuple[str, list[Item], Float32[np.ndarray, "N E"]]:
    """The digest of its model, the items, their vectors."""
    with np.load(file, allow_pickle=False) as content:
        maker, rows = json.loads(content["rows"].tobytes())
        return maker, [Item(*row) for row in rows], content["vectors"]


def _skip_entry(error: BadRecord) -> dict[str, str]:
    plain = {"record": error.record, "reason": error.reason, "message": str(error)}
    return {key: text.encode(errors="backslashreplace").decode() for key, text in plain.items()}


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without links
        shutil.copyfile(file, name)
        flush(name)
