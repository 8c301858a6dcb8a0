"""Fetches shards from remote addresses and asks for their state.

HTTP uses the standard library, because fsspec's HTTP needs a package that nothing else here does. All other protocols
use fsspec.
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from diptych.data.record import BadRecord
from diptych.data.shards.index import Stamp
from diptych.printable import printable

BACKOFF = 1.0
"""Seconds before the second attempt. Each further attempt waits twice as long."""
LEAST_RATE = 100_000
"""A fetch below this rate, in bytes per second, is tried again: at this rate a shard of 1 GB takes hours."""
CHUNK = 1 << 16
GONE = (401, 403, 404, 410)
"""HTTP statuses that another attempt would not change."""

KNOWN = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""Protocols of addresses. fsspec knows more, among them some that read local files, log in elsewhere or open archives
and lists of addresses, and chains of them (`::`). None of them serves shards."""
Result = TypeVar("Result")


def is_remote(name: str) -> bool:
    """Returns whether a name is an address (`https://…`, `s3://…`) and not a path.

    >>> is_remote("s3://bucket/00000.tar"), is_remote("shards/00000.tar")
    (True, False)
    """
    return "://" in name and not name.startswith("file://")


def check_protocol(address: str) -> None:
    """Raises ValueError for an address whose protocol is not one of `KNOWN`, or that chains several."""
    protocol = address.partition("://")[0]
    if "::" in address or protocol.lower() not in KNOWN:
        raise ValueError(f"{address}: shards are read from addresses of {', '.join(f'{name}://' for name in KNOWN)}")


def say(message: str) -> None:
    """Prints a message to standard error, which the user of the run sees, also from a worker process."""
    print(printable(message, lines=True), file=sys.stderr, flush=True)


def persistently(name: str, action: Callable[[], Result], retries: int) -> Result:
    """Returns the result of `action`, which is tried again after temporary failures.

    Raises BadRecord, which names the shard.
    """
    for turn in range(retries + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise BadRecord(name, "shard missing", f"the server says {error.code} {error.reason}") from None
            failure: Exception = error
        except FileNotFoundError as error:
            raise BadRecord(name, "shard missing", str(error)) from None
        except (OSError, http.client.HTTPException) as error:
            failure = error
        reason = str(failure) or type(failure).__name__
        if turn < retries:
            pause = BACKOFF * 2**turn
            say(f"{name}: {reason}; try {turn + 2} of {retries + 1} in {pause:g} s")
            time.sleep(pause)
    raise BadRecord(name, "shard unreachable", f"{retries + 1} tries; the last: {reason}")


def stamp_of(url: str, timeout: float) -> Stamp:
    """Asks for the state of a shard. Raises OSError, or ValueError if a package is missing."""
    if not url.startswith(("http://", "https://")):
        system, path = _file_system(url)
        return _stamp_of_entry(system.info(path))
    try:
        with _answer(url, timeout, "HEAD") as answer:
            return _stamp_of_answer(answer)
    except urllib.error.HTTPError as error:
        if error.code not in (403, 405, 501):  # the address is signed for GET only, or the server does not know HEAD
            raise
    with _answer(url, timeout) as answer:
        return _stamp_of_answer(answer)


def fetch(url: str, target: BinaryIO, timeout: float) -> Stamp:
    """Writes a remote file to `target` and returns the file's state.

    Raises OSError, also if the connection ends early, sends nothing for `timeout` seconds or is slower than
    `LEAST_RATE`. Raises ValueError if a package is missing.
    """
    if not url.startswith(("http://", "https://")):
        system, path = _file_system(url)
        with system.open(path, "rb") as stream:
            return _copied(stream, target, _stamp_of_entry(system.info(path)), timeout)
    with _answer(url, timeout) as answer:
        return _copied(answer, target, _stamp_of_answer(answer), timeout)


def remote_names(pattern: str) -> list[str]:
    """Returns the addresses that match a pattern with `*`, in order. Raises ValueError if the protocol cannot list
    files."""
    if pattern.startswith(("http://", "https://")):
        raise ValueError(f"{pattern}: a web server does not say what it has; write numbers as {{00000..00099}}")
    system, path = _file_system(pattern)
    return sorted(str(system.unstrip_protocol(match)) for match in system.glob(path))


def _answer(url: str, timeout: float, method: str = "GET") -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout)


def _stamp_of_answer(answer: Any) -> Stamp:
    length = answer.headers.get("Content-Length")
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    if length is None:
        raise ConnectionError("the server does not say how long it is")
    return Stamp(int(length), tag)


def _stamp_of_entry(entry: dict[str, Any]) -> Stamp:
    tags = (entry.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created"))
    return Stamp(int(entry["size"]), str(next((tag for tag in tags if tag), "")))


def _copied(stream: Any, target: BinaryIO, stamp: Stamp, timeout: float) -> Stamp:
    """Copies a stream to `target` and returns `stamp`. Raises OSError if it is too slow or ends early."""
    begun, size = time.monotonic(), 0
    while chunk := stream.read(CHUNK):
        target.write(chunk)
        size += len(chunk)
        if (taken := time.monotonic() - begun) > timeout + size / LEAST_RATE:
            raise TimeoutError(f"too slow: {size:,} bytes in {taken:.0f} s")
    if size != stamp.size:
        raise ConnectionError(f"cut off after {size:,} of {stamp.size:,} bytes")
    return stamp


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    check_protocol(url)
    try:
        system_and_path: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return system_and_path
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        protocol = url.partition("://")[0]
        needed = f": pip install {package[protocol]}" if protocol in package else ""
        raise ValueError(f"{url}: addresses of {protocol}:// need another package{needed} ({error})") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None
