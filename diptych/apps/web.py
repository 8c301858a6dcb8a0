"""What `serve` and `app` share: under which names a server answers, a proxy's prefix, and the event loop's log."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

LONGEST_LOG = 4_000
"""Characters of one entry in the log, which may quote what a client sent."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Says whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_hosts(host: str, names: Sequence[str]) -> list[str] | None:
    """Returns the names that a Host header may give; None accepts any.

    A server on loopback accepts its own names only. Otherwise a foreign web page could point its domain at this machine
    (DNS rebinding), and a browser would let it read the answers.
    """
    if not is_loopback(host) and not names:
        return None
    loopback = [*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host] if is_loopback(host) else []
    return [name.lower() for name in (*loopback, *names)]


def host_name(header: str) -> str:
    """Returns the name in a Host header without its port.

    >>> host_name("LocalHost:8080"), host_name("[::1]:80"), host_name("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    name, _, port = header.rpartition(":")
    return (name if name and port.isdecimal() else header).lower()


def host_is_allowed(header: str | None, hosts: Collection[str] | None, http_version: str) -> bool:
    """Checks a Host header, or its absence, which HTTP/1.0 allows and no browser makes use of."""
    if header is None:
        return hosts is None or http_version == "1.0"
    return hosts is None or host_name(header) in hosts


def root_path_of(prefix: str) -> tuple[str, list[str]]:
    """Splits a proxy's prefix, a path or a whole address, into the path and the host names that it gives.

    Raises ValueError for something else.

    >>> root_path_of("/ai/"), root_path_of("https://photos.example.org/ai"), root_path_of("")
    (('/ai', []), ('/ai', ['photos.example.org']), ('', []))
    """
    names = []
    path = prefix
    if prefix.startswith(("http://", "https://")):
        authority, slash, path = prefix.partition("://")[2].partition("/")
        names, path = [host_name(authority)], slash + path
    path = path.rstrip("/")
    if (path and not path.startswith("/")) or set(path) & set("?# \\\"'<>") or not path.isascii() or names == [""]:
        raise ValueError(f"--root-path {prefix}: give a path that begins with /, as in /ai, or the whole address")
    return path, names


def origin_of(text: str) -> str:
    """Returns an origin of web pages in lower case, or `*` for all of them. Raises ValueError for something else.

    >>> origin_of("https://Photos.example.org/"), origin_of("http://localhost:3000"), origin_of("*")
    ('https://photos.example.org', 'http://localhost:3000', '*')
    """
    origin = text.strip().rstrip("/").lower()
    scheme, _, authority = origin.partition("://")
    if origin != "*" and (scheme not in ("http", "https") or not authority or set(authority) & set("/?#@* ")):
        raise ValueError(
            f"--allow-origin {text}: give what a page's address begins with, as in https://photos.example.org or"
            " http://localhost:3000, or * for all pages"
        )
    return origin


def without_prefix(path: str, root_path: str) -> str:
    """Takes a proxy's prefix off a path, if the proxy has left it there.

    >>> without_prefix("/ai/healthz", "/ai"), without_prefix("/healthz", "/ai"), without_prefix("/ai", "/ai")
    ('/healthz', '/healthz', '/')
    """
    if root_path and (path + "/").startswith(root_path + "/"):
        return path[len(root_path) :] or "/"
    return path


class OncePerSecond:
    """Logs what goes wrong in the event loop, as when no file can be opened for a connection: once a second at most."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._last, self._since = log, float("-inf"), 0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last < 1:
            self._since += 1
            return
        more = f" (and {self._since:,} more problems before)" if self._since else ""
        self._log.error("%s: %r%s", context.get("message"), context.get("exception"), more)
        self._last, self._since = now, 0


def cut(text: str) -> str:
    """Cuts the middle of a long entry of the log.

    >>> len(cut("a" * 10_000_000)) < 5_000
    True
    """
    half = LONGEST_LOG // 2
    return text if len(text) <= LONGEST_LOG else f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
