"""Bounds what a picture's header can make Pillow do before its size is known.

Pillow reads headers in Python, one part after another, and some parts again and again: a GIF whose comments consist of
a million blocks takes minutes, and a TIFF or EXIF directory of 5 MB whose hundreds of entries all name the same bytes
takes gigabytes. No encoder writes such files. The limits here are far above what encoders write.

Sources: TIFF 6.0 §2; ISO/IEC 10918-1 annex B.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from PIL import TiffImagePlugin

MOST_READS = 20_000
"""Parts that a header is read in. A JPEG with a colour profile and maps of depth has about a thousand."""
BYTES_PER_READ = 256
"""After the header, a file may be read in one more part for each so many bytes. Encoders write parts of some kB."""
MOST_NUMBERS, MOST_RATIONALS = 1 << 20, 1 << 10
"""Numbers, and fractions, in a directory. A picture of 100 million pixels in tiles of 16 × 16 has 800,000. Pillow takes
about 20 µs for each fraction."""
MOST_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; thousands, each over all pixels, are an attack on the decoder's time."""
MOST_SEGMENTS = 20_000
"""Segments of a JPEG that are looked at to count its scans."""
MOST_COMMENTS = 1_000
"""Comments among the numbers of a plain PPM, each of which makes Pillow copy the rest."""
SLOW_DECODERS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
"""Decoders that Pillow has in Python: a megabyte takes them a second. `ppm` is for unusual depths."""
_RATIONALS, _NUMBERS = (5, 10), (3, 4, 6, 8, 9, 11, 12, 13, 16)
"""Types of entries that are fractions, and that are other numbers (TIFF 6.0 §2 and BigTIFF)."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""A JPEG marker. Restarts, and the zero that follows an FF of coded data, are none."""


class TooManyParts(Exception):
    """Says that a file consists of more parts than any encoder writes."""


class CountedStream:
    """A stream that may be read in a limited number of parts. Raises TooManyParts."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, MOST_READS

    def read(self, size: int = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyParts(f"it consists of more than {MOST_READS:,} parts, which no encoder writes")
        content: bytes = self._stream.read(size)
        return content

    def allow_content(self, length: int) -> None:
        """Lets the content of a file of `length` bytes be read, too."""
        self._left = MOST_READS + length // BYTES_PER_READ

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@lru_cache(maxsize=1)
def guard_directories() -> None:
    """Lets Pillow refuse directories of TIFF and EXIF whose entries claim more than the file holds.

    Such a directory raises ValueError: a TIFF cannot be opened then, and the EXIF data of others is passed over.
    """
    kind = TiffImagePlugin.ImageFileDirectory_v2
    load = kind.load

    def checked(directory: Any, stream: Any) -> None:
        place = stream.tell()
        _check_directory(directory, stream)
        stream.seek(place)
        load(directory, stream)

    setattr(kind, "load", checked)  # noqa: B010 — a method, which mypy keeps from being assigned


def _check_directory(directory: Any, stream: Any) -> None:
    """Raises ValueError for a directory (TIFF 6.0 §2) whose values overlap, or are too many numbers."""
    start = stream.tell()
    length = stream.seek(0, 2)
    stream.seek(start)
    big = directory._bigtiff
    count_form, form, width, inline = ("Q", "HHQ8s", 20, 8) if big else ("H", "HHL4s", 12, 4)
    head = stream.read(8 if big else 2)
    if len(head) < (8 if big else 2):
        return
    entries = stream.read(min(directory._unpack(count_form, head)[0] * width, length))
    claimed = numbers = rationals = 0
    for place in range(0, len(entries) // width * width, width):
        _, kind, count, value = directory._unpack(form, entries[place : place + width])
        size = count * directory._load_dispatch.get(kind, (0,))[0]
        if size <= inline:
            continue
        (offset,) = directory._unpack("Q" if big else "L", value)
        claimed += min(size, max(0, length - offset))
        numbers += count * (kind in _NUMBERS)
        rationals += count * (kind in _RATIONALS)
    if claimed > 2 * length or numbers > MOST_NUMBERS or rationals > MOST_RATIONALS:
        raise ValueError("a directory whose entries claim more than the file can hold")


def jpeg_scans(content: bytes) -> int:
    """Counts the scans of a JPEG, up to MOST_SCANS + 1. What follows its end, as in motion photos, is not looked at.

    >>> jpeg_scans(b"no JPEG")
    0
    """
    if (count := content.count(b"\xff\xda")) <= MOST_SCANS:
        return count
    place, scans = 2, 0
    for _ in range(MOST_SEGMENTS):
        marker = _MARKER.search(content, place)
        if marker is None or marker[1][0] == _END_OF_IMAGE:
            return scans
        scans += marker[1][0] == _START_OF_SCAN
        if scans > MOST_SCANS:
            return scans
        length = int.from_bytes(content[marker.end() : marker.end() + 2])
        place = marker.end() + max(length, 2)
    return MOST_SCANS + 1
