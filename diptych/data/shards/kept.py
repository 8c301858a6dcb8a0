"""Fetched shards in a folder of bounded size, shared by every process of the machine.

Nobody takes a half-fetched shard for a whole one: it has another name until it is whole. A process that reads one holds
a lock on it; room is made by removing those that nobody reads, the longest unused first. Space is reserved before
fetching, so that two processes do not overfill the folder together. Linux and macOS only, where files can be locked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from diptych.data.record import BadRecord
from diptych.data.shards.index import Stamp
from diptych.data.shards.remote import fetch, persistently

CHANGED = "shard changed under its index"
"""Why no record of a shard is read: what the index says of it may be wrong now."""

POLL = 0.2
"""Seconds between two looks for room."""


@dataclass(frozen=True)
class Kept:
    """Shards of addresses, in a folder of at most `limit` bytes."""

    folder: Path
    limit: int
    timeout: float
    """Seconds without a byte after which a fetch is tried again."""
    retries: int

    def open(self, url: str, stamp: Stamp) -> int:
        """A descriptor of a whole shard in the state `stamp`, fetched if it is not there. Close it to give it free.

        Raises BadRecord where the shard is missing, unreachable or in another state, and ValueError where there is no
        room for it.
        """
        file = self.file(url, stamp)
        while True:
            with suppress(FileNotFoundError):
                shard = os.open(file, os.O_RDONLY)
                fcntl.flock(shard, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    os.utime(file, ns=(time.time_ns(),) * 2)  # of the last use; the system's own clock is coarse
                return shard
            self._fetch(url, stamp, file)

    def file(self, url: str, stamp: Stamp) -> Path:
        """Where a shard is as long as it is open."""
        state = f"{url}\n{stamp.size}\n{stamp.tag}"
        return self.folder / f"{hashlib.blake2b(state.encode(), digest_size=16).hexdigest()}.tar"

    def _fetch(self, url: str, stamp: Stamp, file: Path) -> None:
        """Bring a shard, unless another process does so meanwhile: who holds its claim fetches, the others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = file.with_suffix(".claim")
        with claim.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is(claim, stream.fileno()):
                return
            try:
                if not file.exists():
                    self._bring(url, stamp, file)
            finally:
                claim.unlink()

    def _bring(self, url: str, stamp: Stamp, file: Path) -> None:
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # so that nobody takes its room
            try:
                self._reserve(url, stamp.size, stream.fileno())
                got = persistently(url, partial(self._get, url, stream), self.retries)
                if got != stamp:
                    raise BadRecord(url, CHANGED, f"{got.size:,} bytes, {got.tag or 'no tag'}")
                with self._still():
                    part.rename(file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _get(self, url: str, stream: BinaryIO) -> Stamp:
        stream.seek(0)
        got = fetch(url, stream, self.timeout)
        stream.truncate()
        stream.flush()
        return got

    def _reserve(self, url: str, size: int, part: int) -> None:
        """Make room, and take it; others may be about to give some free. Raises ValueError where there is none."""
        if size > self.limit:
            raise ValueError(f"{url} has {size:,} bytes, more than data.cache_bytes={self.limit:,}: raise it")
        deadline = time.monotonic() + self.timeout
        while not self._room(size, part):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no room for {url} ({size:,} bytes) among the fetched shards in {self.folder}: all others are in"
                    f" use. Raise data.cache_bytes ({self.limit:,}), or lower data.window or data.lanes"
                )
            time.sleep(POLL)

    def _room(self, size: int, part: int) -> bool:
        with self._still():
            files = [file for file in self.folder.iterdir() if file.suffix in (".tar", ".part")]
            states = {file: state for file in files if (state := _state(file)) is not None}
            room = self.limit - size - sum(state.st_size for state in states.values())
            for file in sorted(states, key=lambda file: states[file].st_mtime_ns):
                if room >= 0:
                    break
                if _forgotten(file):
                    room += states[file].st_size
                    file.unlink(missing_ok=True)
            if room >= 0:
                os.ftruncate(part, size)
            return room >= 0

    def _still(self) -> AbstractContextManager[None]:
        """While nobody else makes room or brings a shard to its place."""
        return locked(self.folder / "room.lock")


def _state(file: Path) -> os.stat_result | None:
    """None where it was given up meanwhile."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _is(path: Path, opened: int) -> bool:
    """Whether the file of that name is still the one that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _forgotten(file: Path) -> bool:
    """Whether no process reads or fetches it."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


@contextmanager
def locked(file: Path, refusal: str = "") -> Iterator[None]:
    """One process at a time. Another one waits, or gets a ValueError with the `refusal`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise ValueError(refusal) from None
        yield
