"""Keeps fetched shards in a folder of bounded size, which all processes of the machine share.

A shard has another name until it is complete, so that nobody reads a half-fetched one. A process that reads a shard
holds a lock on it. To make room, shards that nobody reads are removed, the least recently used first. Space is reserved
before a shard is fetched, so that two processes do not overfill the folder together. This works on Linux and macOS
only, where files can be locked.
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
"""Reason for not reading any record of a shard: its index may no longer be right."""
POLL = 0.2
"""Seconds between two attempts to make room."""


@dataclass(frozen=True)
class ShardCache:
    """Keeps remote shards in a folder of at most `limit` bytes."""

    folder: Path
    limit: int
    timeout: float
    """Seconds without any data after which a fetch is tried again."""
    retries: int
    """The number of further attempts after a failed fetch."""

    def open(self, url: str, stamp: Stamp) -> int:
        """Opens a shard in the state `stamp`, which is fetched if the folder does not hold it.

        Returns a file descriptor. The shard cannot be removed until it is closed. Raises BadRecord if the shard is
        missing, unreachable or in another state, and ValueError if there is no room for it.
        """
        file = self.file(url, stamp)
        while True:
            with suppress(FileNotFoundError):
                shard = os.open(file, os.O_RDONLY)
                fcntl.flock(shard, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    os.utime(file, ns=(time.time_ns(),) * 2)  # notes the last use; the system's own clock is coarse
                return shard
            self._fetch(url, stamp, file)

    def file(self, url: str, stamp: Stamp) -> Path:
        """Returns the file that holds a shard while it is open."""
        state = f"{url}\n{stamp.size}\n{stamp.tag}"
        return self.folder / f"{hashlib.blake2b(state.encode(), digest_size=16).hexdigest()}.tar"

    def _fetch(self, url: str, stamp: Stamp, file: Path) -> None:
        """Fetches a shard, unless another process does so. The process that locks the claim file fetches it, and the
        others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = file.with_suffix(".claim")
        with claim.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is(claim, stream.fileno()):
                return
            try:
                if not file.exists():
                    self._download(url, stamp, file)
            finally:
                claim.unlink()

    def _download(self, url: str, stamp: Stamp, file: Path) -> None:
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # so that no other process removes it to make room
            try:
                self._reserve(url, stamp.size, stream.fileno())
                state = persistently(url, partial(self._copy, url, stream), self.retries)
                if state != stamp:
                    raise BadRecord(url, CHANGED, f"{state.size:,} bytes, {state.tag or 'no tag'}")
                with self._folder_lock():
                    part.rename(file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _copy(self, url: str, stream: BinaryIO) -> Stamp:
        """Fetches a shard into a stream from its beginning, also after a failed attempt. Returns the shard's state."""
        stream.seek(0)
        state = fetch(url, stream, self.timeout)
        stream.truncate()
        stream.flush()
        return state

    def _reserve(self, url: str, size: int, part: int) -> None:
        """Makes room for a shard and reserves it, and waits while other shards are in use.

        Raises ValueError if there is no room before the timeout.
        """
        if size > self.limit:
            raise ValueError(f"{url} has {size:,} bytes, more than data.cache_bytes={self.limit:,}: raise it")
        deadline = time.monotonic() + self.timeout
        while not self._make_room(size, part):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no room for {url} ({size:,} bytes) among the fetched shards in {self.folder}: all others are in"
                    f" use. Raise data.cache_bytes ({self.limit:,}), or lower data.window or data.lanes"
                )
            time.sleep(POLL)

    def _make_room(self, size: int, part: int) -> bool:
        """Removes unused shards until `size` bytes are free, and extends the file `part` to them. Returns whether it
        succeeded."""
        with self._folder_lock():
            files = [file for file in self.folder.iterdir() if file.suffix in (".tar", ".part")]
            states = {file: state for file in files if (state := _state(file)) is not None}
            room = self.limit - size - sum(state.st_size for state in states.values())
            for file in sorted(states, key=lambda file: states[file].st_mtime_ns):
                if room >= 0:
                    break
                if _unused(file):
                    room += states[file].st_size
                    file.unlink(missing_ok=True)
            if room >= 0:
                os.ftruncate(part, size)
            return room >= 0

    def _folder_lock(self) -> AbstractContextManager[None]:
        """Keeps other processes from making room and from renaming a fetched shard."""
        return locked(self.folder / "room.lock")


def _state(file: Path) -> os.stat_result | None:
    """Returns the file's state, or None if it has been removed in the meantime."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _is(path: Path, opened: int) -> bool:
    """Returns whether `path` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _unused(file: Path) -> bool:
    """Returns whether no process reads or fetches the file."""
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
    """Lets one process at a time into a block. Others wait, or get a ValueError with the text `refusal`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise ValueError(refusal) from None
        yield
