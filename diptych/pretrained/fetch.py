"""Fetches large files over HTTP, and goes on where a broken fetch was.

FILE.part        what has arrived; FILE takes its place once it is whole
FILE.part.json   the address, the size, and the server's mark of this version (ETag or date)
FILE.lock        held by the process that fetches; others wait as long as it makes progress
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych import __version__

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
TRIES = 5
"""Attempts that may bring nothing, one after the other, before an address is given up."""
BACKOFF = 1.0
"""Seconds before the second attempt. Each further attempt waits twice as long."""
STALL = 180.0
"""Seconds without progress after which a process no longer waits for another one's fetch."""
CHUNK = 1 << 18
LEAST, WITHIN = 1 << 16, 60.0
"""Bytes that an attempt brings, and a connection within so many seconds, or else they bring nothing. A file of 3 GB
would take a month."""
PART = ".part"


class Unavailable(Exception):
    """An address does not give the file. The message says what came back."""


def fetch(url: str, file: Path, most: int, label: str = "") -> None:
    """Fetches `url` to FILE.part, which `file` is to be renamed from, and shows its progress on stderr.

    What an earlier call has left is kept if the server still has the same version of the file and can send a part.
    Raises Unavailable for an address that does not give the file, or more than `most` bytes, and ValueError for a disk
    that does not take it.
    """
    part, fruitless = _part(file), 0
    while True:
        before = _size(part)
        try:
            return _fetch_once(url, part, most, Progress(label or file.name))
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 425, 429):
                raise Unavailable(f"the server says {error.code} {error.reason}") from None
            reason = f"the server says {error.code} {error.reason}"
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.gaierror):
                raise Unavailable(f"its host is not found ({error.reason.strerror})") from None
            reason = str(error.reason)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        fruitless = 0 if _size(part) >= before + LEAST else fruitless + 1
        if fruitless >= TRIES:
            raise Unavailable(f"{TRIES} tries brought nothing; the last: {reason}")
        pause = BACKOFF * 2 ** max(fruitless - 1, 0)
        _say(f"{label or file.name}: {reason}; going on at {_size(part):,} bytes in {pause:g} s")
        time.sleep(pause)


def is_partly_here(file: Path) -> int:
    """Returns the bytes of a file that an unfinished fetch has left."""
    return _size(_part(file))


def finish(file: Path) -> None:
    """Gives a fetched file its name."""
    part = _part(file)
    part.replace(file)
    _beside(part).unlink(missing_ok=True)


def set_aside(file: Path) -> Path:
    """Renames a fetched file that is not what was wanted to FILE.refused, so that the next fetch begins anew."""
    part = _part(file)
    refused = file.with_name(f"{file.name}.refused")
    part.replace(refused)
    _beside(part).unlink(missing_ok=True)
    return refused


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds FILE.lock, so that processes make a file one after the other. Raises ValueError for one that hangs."""
    with file.with_name(f"{file.name}.lock").open("a") as lock:
        seen, since, told = -1, time.monotonic(), False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    _say(f"another process is making {file}: waiting for it")
                    told = True
            progress = sum(_size(path) for path in file.parent.glob(f"{file.name}*"))
            if progress != seen:
                seen, since = progress, time.monotonic()
            elif time.monotonic() - since > STALL:
                raise ValueError(
                    f"another process has held {lock.name} for {STALL:.0f} s without progress: end it, and try again"
                )
            time.sleep(0.2)
        yield


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}{PART}")


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    """Returns a file's size; of a folder, that of the files in it; 0 where there is none."""
    with contextlib.suppress(OSError):
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    return 0


def _fetch_once(url: str, part: Path, most: int, progress: Progress) -> None:
    """Fetches what is missing of a file. Raises OSError or HTTPException where the connection breaks."""
    known = _known(url, part)
    start = _size(part) if known else 0
    if known and start == known["bytes"]:
        return
    # If-Range: a server that has another version by now sends all of it, and not the rest of that one.
    ask = {"Range": f"bytes={start}-"} | ({"If-Range": known["tag"]} if known["tag"] else {}) if known and start else {}
    headers = {"User-Agent": f"diptych/{__version__}", "Accept-Encoding": "identity", **ask}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        _restart(part)
        raise ConnectionError("the server has no such part of the file any more: beginning anew") from None
    with answer:
        total = _total(answer, start)
        if total is not None and total > most:
            raise Unavailable(f"the server offers {total:,} bytes, and the file has less than {most:,}")
        if known and start and (answer.status != 206 or total != known["bytes"]):
            if answer.status == 206:
                _restart(part)
                raise ConnectionError(f"the file has {total:,} bytes by now: beginning anew")
            _say(f"{progress.label}: the server sends the whole file again: beginning anew")
            start = 0
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        with _disk(part, total - start if total else None):
            state = {"url": url, "bytes": total, "tag": "" if tag.startswith("W/") else tag}
            _beside(part).write_text(json.dumps(state))
        _copy(answer, part, start, total, most, progress)
    if total is not None and (size := _size(part)) != total:
        raise ConnectionError(f"cut off after {size:,} of {total:,} bytes")


def _copy(answer: Any, part: Path, start: int, total: int | None, most: int, progress: Progress) -> None:
    """Appends the body of an answer to what has arrived. Raises ConnectionError if hardly anything comes."""
    with _disk(part):
        stream = part.open("r+b" if start else "wb", buffering=0)  # what a full disk refuses is in no buffer
    with stream:
        done = stream.seek(start)
        progress.begin(start, total)
        since, at = time.monotonic(), done
        try:
            while chunk := memoryview(answer.read1(CHUNK)):
                while chunk:
                    with _disk(part):
                        written = stream.write(chunk)
                    done, chunk = done + written, chunk[written:]
                progress.show(done)
                if done > most:
                    raise Unavailable(f"the server sends more than {most:,} bytes, which the file does not have")
                if (now := time.monotonic()) - since > WITHIN:
                    if done - at < LEAST:
                        raise ConnectionError(f"only {done - at:,} bytes came in {WITHIN:g} s")
                    since, at = now, done
        finally:
            progress.end(done)


def _known(url: str, part: Path) -> dict[str, Any] | None:
    """Returns what is known of a partly fetched file, if it is of this address."""
    try:
        state = json.loads(_beside(part).read_text())
        whole = state["url"] == url and isinstance(state["bytes"], int) and isinstance(state["tag"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if whole and _size(part) <= state["bytes"] else None


def _restart(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _total(answer: Any, start: int) -> int | None:
    """Returns the size of the whole file, of which an answer may send the rest. None: the server does not say it."""
    if answer.status != 206:
        length = answer.headers.get("Content-Length")
        return int(length) if length is not None and re.fullmatch(r"\d{1,18}", length) else None
    match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise ConnectionError(f"the server sends another part than from byte {start:,} on")
    return int(match[2])


@contextlib.contextmanager
def _disk(part: Path, wanted: int | None = None) -> Iterator[None]:
    """Says in words what is wrong with the disk; `wanted` bytes must fit. Nothing that has arrived is lost."""
    try:
        if wanted is not None and wanted > (free := shutil.disk_usage(part.parent).free):
            raise ValueError(
                f"{part.parent} has {free / 1e9:.1f} GB free, and {wanted / 1e9:.1f} GB are to come: "
                "make room, or name another folder by DIPTYCH_WEIGHTS"
            )
        yield
    except OSError as error:
        raise ValueError(f"{part} cannot be written ({error.strerror or error})") from None


# --------------------------------------------------------------------------- in words


class Progress:
    """Shows how much of a file has arrived: a line that changes on a terminal, otherwise a line at each tenth."""

    def __init__(self, label: str) -> None:
        self.label, self.terminal = label, sys.stderr.isatty()
        self.start, self.begun, self.shown = 0, 0.0, 0.0
        self.total: int | None = None

    def begin(self, start: int, total: int | None) -> None:
        self.start, self.total, self.begun = start, total, time.monotonic()
        size = _amount(total) if total is not None else "a size that the server does not say"
        _say(f"{self.label}: fetching {size}" + (f", going on at {start:,} bytes" if start else ""))
        self.shown = time.monotonic() if self.terminal else self._tenth(start)

    def show(self, done: int) -> None:
        if not self.terminal:
            if self._tenth(done) > self.shown:
                self.shown = self._tenth(done)
                _say(self._line(done))
        elif time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            print(f"\r{self._line(done)}\033[K", end="", file=sys.stderr, flush=True)

    def end(self, done: int) -> None:
        if self.terminal:
            print(f"\r{self._line(done)}\033[K", file=sys.stderr, flush=True)

    def _tenth(self, done: int) -> int:
        """Returns the number of tenths that have arrived; of unknown sizes, of GB."""
        return 10 * done // (self.total or 10**10) if self.total != 0 else 0

    def _line(self, done: int) -> str:
        rate = (done - self.start) / max(time.monotonic() - self.begun, 1e-3)
        share = f" ({100 * done // self.total} %)" if self.total else ""
        rest = f", {(self.total - done) / rate:,.0f} s left" if self.total and rate > 0 and done < self.total else ""
        return f"{self.label}: {_amount(done)}{share}, {_amount(rate)}/s{rest}"


def _amount(size: int | float) -> str:
    """Writes a number of bytes in the largest unit that it fills.

    >>> _amount(231_508), _amount(3.3e9)
    ('231.5 kB', '3.3 GB')
    """
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.1f} {name}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
