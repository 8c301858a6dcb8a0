"""Prints whatever a text holds, on any console. A character that the console cannot show is escaped: `\\u7ea2`.

Consoles may know ASCII or cp1252 only, while captions, file names and our own messages hold more.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

LOSSLESS = ("backslashreplace", "xmlcharrefreplace", "namereplace")
"""Ways of writing what an encoding lacks that lose nothing and fail at nothing."""


def escape_output() -> None:
    """Lets standard output and standard error escape from now on what their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in LOSSLESS:
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Prints a line for a caller who may have set up standard output himself, and escapes what that cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def end_of(log: Path, most: int) -> str:
    """Reads the last `most` characters that another process has written to a log, in whatever encoding."""
    return log.read_text(encoding="utf-8", errors="backslashreplace")[-most:].rstrip()
