"""Keeps the vectors of the pictures of searched folders, so that a second search embeds only what is new or changed.

    CACHE/vectors/<model>-<folder>.npz    the vectors of a folder's pictures by a model, with their names and stamps
                  .lock                   held while a file is written

N pictures, E embedding width.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from diptych.cache import cache_folder
from diptych.data.record import BadRecord
from diptych.data.shards.cache import locked
from diptych.predict.identity import ModelIdentity
from diptych.predict.predictor import Predictor
from diptych.reading import open_regular
from diptych.search.vectors_file import packed, unpacked
from diptych.writing import UNFINISHED, whole_file

FORMAT = 1
LARGEST = 2 << 30
"""Bytes of all files together. Those that were unused for the longest time are removed first."""
PORTION, GROWTH = 1_000, 1.5
"""A file is written when it has grown by this many pictures and by this factor, so that a killed process loses at most
a third of its work and writing takes a small share of the time. One that is interrupted loses nothing."""
SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a file shows in its time. Some file systems count in steps of two seconds."""
UNSETTLED = -1
"""Stands for the time of a file that had only just changed. The next search compares its content."""


class Stamp(NamedTuple):
    """Size in bytes and modification time in nanoseconds of a file, which reveal a changed one."""

    size: int
    time: int


NEVER = Stamp(0, UNSETTLED)
"""Of a file that changed while it was embedded: neither its time nor its size is found."""


class Row(NamedTuple):
    """A picture whose vector is kept."""

    stamp: Stamp
    content: str
    """A digest of its file, which reveals a renamed one."""
    vector: Float32[np.ndarray, "E"]


class KeptVectors:
    """The vectors of one folder's pictures by one model, kept in the cache folder.

    What cannot be read or written there becomes a note, and the pictures are embedded as without it.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        model = ModelIdentity.of(predictor).digest
        # A picture above the limit has no vector, so another limit is another file; so is another precision.
        precision = () if predictor.precision == "fp32" else (predictor.precision,)
        self._heading = [FORMAT, model, str(folder.resolve()), predictor.recipe.data.largest_pixels, *precision]
        key = hashlib.blake2b(repr(self._heading).encode(errors="backslashreplace"), digest_size=16).hexdigest()
        self.file = cache_folder() / "vectors" / f"{model[:16]}-{key}.npz"
        self.predictor, self.folder, self._root = predictor, folder, str(folder)
        self.embedded = 0
        """Number of pictures that were embedded so far, and not found."""
        self.notes: list[str] = []
        """What a user should know, each in a line."""

    def embed(self, names: Sequence[str]) -> tuple[list[int], Float[Tensor, "N E"], list[BadRecord]]:
        """Finds or computes the vectors of pictures, by their names in the folder, and keeps them.

        Returns what `Predictor.embed_readable` returns. Unreadable pictures are tried anew each time.
        """
        stored = self._read()
        stamps = {name: stamp for name in names if (stamp := self._stamp(name)) is not None}
        rows = {name: row for name, row in stored.items() if stamps.get(name) == row.stamp}
        self._find_renamed(names, stamps, stored, rows)
        missing = [name for name in names if name not in rows]
        skipped: list[BadRecord] = []
        written = stored
        try:
            for start in range(0, len(missing), PORTION):
                if len(rows) >= max(GROWTH * len(written), len(written) + PORTION):
                    written = self._write(rows, stamps)
                self._embed(missing[start : start + PORTION], stamps, rows, skipped)
        finally:
            if {name: row.stamp for name, row in rows.items()} != {name: row.stamp for name, row in written.items()}:
                self._write(rows, stamps)
        places = [place for place, name in enumerate(names) if name in rows]
        vectors = [rows[names[place]].vector for place in places]
        return places, torch.from_numpy(np.stack(vectors)) if vectors else torch.empty(0, self._width), skipped

    @property
    def _width(self) -> int:
        return self.predictor.model.embed_dim

    def _find_renamed(
        self, names: Sequence[str], stamps: Mapping[str, Stamp], stored: Mapping[str, Row], rows: dict[str, Row]
    ) -> None:
        """Adds the pictures whose content is stored: renamed, copied or saved again as they were."""
        began = time.time_ns()
        vectors = {row.content: row.vector for row in stored.values()}
        sizes = {row.stamp.size for row in stored.values()}
        for name in names:
            if name not in rows and name in stamps and stamps[name].size in sizes:
                content = _content(self.folder / name)
                if content in vectors and self._stamp(name) == stamps[name]:
                    rows[name] = Row(_settled(stamps[name], began), content, vectors[content])

    def _embed(
        self, names: Sequence[str], stamps: Mapping[str, Stamp], rows: dict[str, Row], skipped: list[BadRecord]
    ) -> None:
        """Embeds pictures and adds their rows. One that changes meanwhile is not found again."""
        began = time.time_ns()
        places, vectors, errors = self.predictor.embed_readable([self.folder / name for name in names])
        self.embedded += len(places)
        skipped += errors
        for place, vector in zip(places, vectors.float().numpy(), strict=True):
            name = names[place]
            content, stamp = _content(self.folder / name), self._stamp(name)
            if stamp is not None and stamp == stamps.get(name):
                rows[name] = Row(_settled(stamp, began), content, vector)
            else:
                rows[name] = Row(NEVER, "", vector)

    def _stamp(self, name: str) -> Stamp | None:
        """Returns the stamp of a picture's file, or None if there is none that can be asked."""
        try:
            state = os.stat(f"{self._root}{os.sep}{name}")  # noqa: PTH116 — Path takes seconds longer for a million files
        except OSError:
            return None
        return Stamp(state.st_size, state.st_mtime_ns)

    # ------------------------------------------------------------------ the file

    def _read(self) -> dict[str, Row]:
        """Reads the stored rows by name. What is damaged, or belongs to something else, counts as nothing."""
        if not self.file.exists():  # nor its folder, perhaps
            return {}
        try:
            heading, vectors = unpacked(self.file)
            rows = self._rows(heading, vectors)
        except (OSError, ValueError, TypeError) as error:
            self.notes.append(f"the vectors of an earlier search cannot be used and are computed anew: {error}")
            return {}
        with suppress(OSError):  # a cache that this user may only read
            os.utime(self.file)
        return rows

    def _rows(self, heading: Any, vectors: Float32[np.ndarray, "N E"]) -> dict[str, Row]:
        """Raises ValueError and TypeError for anything that `_write` does not write."""
        described, listed = heading
        if described != self._heading or vectors.shape != (len(listed), self._width):
            raise ValueError(f"{self.file} is not of this folder and this model")
        rows = {}
        for (name, size, changed, content), vector in zip(listed, vectors, strict=True):
            if (type(name), type(size), type(changed), type(content)) != (str, int, int, str):
                raise ValueError(f"{self.file} is damaged (a line of it names no picture)")
            rows[name] = Row(Stamp(size, changed), content, vector)
        return rows

    def _write(self, rows: dict[str, Row], stamps: Mapping[str, Stamp]) -> dict[str, Row]:
        """Writes the rows, with those that another process has written meanwhile. Returns what need not be written."""
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it tells the names of pictures
            with locked(self.file.parent / ".lock"):
                others = {} if self.notes else self._read()
                kept = {name: row for name, row in others.items() if stamps.get(name) == row.stamp} | rows
                kept = {name: row for name, row in kept.items() if row.content}
                vectors = np.empty((len(kept), self._width), np.float32)
                for place, row in enumerate(kept.values()):
                    vectors[place] = row.vector
                listed = [[name, *row.stamp, row.content] for name, row in kept.items()]
                content = packed([self._heading, listed], vectors)
                if len(content) > LARGEST:
                    raise OSError(f"they take {len(content):,} bytes, and at most {LARGEST:,} are kept")
                _make_room(self.file, len(content))
                with whole_file(self.file) as unfinished:
                    unfinished.write_bytes(content)
        except OSError as error:
            note = f"the vectors of {self.folder} could not be kept, and the next search computes them again: {error}"
            self.notes += [note] if note not in self.notes else []
        return dict(rows)


def _make_room(file: Path, size: int) -> None:
    """Removes the files that were unused for the longest time, so that `file` fits. Its caller holds the lock."""
    states = {}
    for other in file.parent.iterdir():
        if other.name.startswith(UNFINISHED):  # what a killed process has left
            other.unlink(missing_ok=True)
        elif other.suffix == file.suffix and other != file:
            states[other] = other.stat()
    room = LARGEST - size - sum(state.st_size for state in states.values())
    for other in sorted(states, key=lambda other: states[other].st_mtime_ns):
        if room >= 0:
            break
        other.unlink(missing_ok=True)
        room += states[other].st_size


def _settled(stamp: Stamp, read: int) -> Stamp:
    """Returns the stamp of a file that was read at a time, without its time if a later change might not show in it."""
    return stamp if read - stamp.time > SETTLED else Stamp(stamp.size, UNSETTLED)


def _content(file: Path) -> str:
    """Computes the digest of a file's content; empty for one that cannot be read."""
    try:
        with open_regular(file) as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""
