"""Reads how large the pages of a Parquet file are when they are unpacked, without unpacking any.

A page is unpacked as a whole, and 50 kB of one may hold a text of a gigabyte. What the file's end says of sizes is not
checked by anybody, so the headers of the pages themselves are read. They are Thrift's compact protocol.

Sources: the Parquet format, parquet.thrift (`PageHeader`); Thrift's compact protocol specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diptych.reading import open_regular

LARGEST_PAGE = 1 << 29
"""Bytes of an unpacked page. Writers begin another after one megabyte, but some look only after each 1,024 pictures."""
MOST_PAGES = 1_000_000
"""Pages of one file that are looked at. A file of a terabyte has so many."""
HEADER = 1 << 14
"""Bytes that the header of a page has at most. It may hold the least and the greatest value."""
UNPACKED_SIZE, PACKED_SIZE = 2, 3
"""Fields of `PageHeader`."""
DEEPEST = 8


def largest_page(file: Path, metadata: Any) -> int:
    """Returns the bytes of the largest page of a file when it is unpacked. `metadata` is what pyarrow read of it.

    Raises ValueError for a page of more than LARGEST_PAGE bytes, and for so many bytes of a column of lists in a row
    group: a row may hold them all.
    """
    largest, count = 0, 0
    with open_regular(file) as stream:
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                whole = 0
                lists = metadata.schema.column(number).max_repetition_level > 0
                for size in _page_sizes(stream, metadata.row_group(group).column(number)):
                    largest, count, whole = max(largest, size), count + 1, whole + size
                    if (whole if lists else size) > LARGEST_PAGE:
                        raise ValueError(
                            f"{file} holds {size:,} bytes in one page, or more in lists, and at most {LARGEST_PAGE:,}"
                            " are unpacked at once: write it with smaller row groups, as in row_group_size=100"
                        )
                    if count > MOST_PAGES:
                        raise ValueError(f"{file} has more than {MOST_PAGES:,} pages: write it with larger ones")
    return largest


def _page_sizes(stream: BinaryIO, column: Any) -> Iterator[int]:
    """Yields the unpacked sizes of the pages of a column in a row group."""
    place = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    end = place + column.total_compressed_size
    while 0 <= place < end:
        stream.seek(place, os.SEEK_SET)
        header = _Compact(stream.read(HEADER))
        try:
            fields = header.fields()
        except (IndexError, ValueError):  # no header, where Arrow's reader ends as well
            return
        yield max(0, fields.get(UNPACKED_SIZE, 0))
        place += header.place + max(0, fields.get(PACKED_SIZE, 0))


class _Compact:
    """Reads whole numbers of a structure, and passes over everything else in it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Reads a structure: its whole numbers by the number of their field. Raises IndexError, or ValueError."""
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        found: dict[int, int] = {}
        field = 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._number()
            value = self._value(kind & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (4, 5, 6):
            return self._number()
        if kind == 3:
            self.place += 1
        elif kind == 7:
            self.place += 8
        elif kind == 8:
            self.place += self._unsigned()
        elif kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(min(count, len(self.content))):
                if head & 15 in (1, 2):
                    self.place += 1
                else:
                    self._value(head & 15, depth + 1)
        elif kind == 12:
            self.fields(depth + 1)
        elif kind not in (1, 2):
            raise ValueError("a field of an unknown kind")
        return None

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _unsigned(self) -> int:
        value, shift = 0, 0
        while (byte := self._byte()) & 128 and shift < 70:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _number(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
