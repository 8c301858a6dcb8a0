"""Tells whether an Arrow stream is compressed, without unpacking any of it.

A buffer of a compressed stream is unpacked as a whole, and a few kilobytes may state gigabytes.
`datasets.Dataset.save_to_disk` never compresses. Whether a message is compressed stands in its metadata, which are a
FlatBuffer that pyarrow has verified, but of which it does not show this field.

Sources: Arrow's Message.fbs (tables `Message`, `DictionaryBatch`, `RecordBatch`); FlatBuffers' internals.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

HEADER, DATA, COMPRESSION = 2, 1, 3
"""Numbers of the fields `Message.header`, `DictionaryBatch.data` and `RecordBatch.compression`."""


def is_compressed(arrow: Any, file: Path) -> bool:
    """Returns whether any message of a stream is compressed. Raises what pyarrow raises for a broken one."""
    return any(
        _is_compressed(memoryview(message.metadata), message.type == "dictionary")
        for message in arrow.ipc.MessageReader.open_stream(arrow.memory_map(str(file)))
        if message.type in ("dictionary", "record batch")
    )


def _is_compressed(content: memoryview, dictionary: bool) -> bool:
    batch = _followed(content, _field(content, _followed(content, 0), HEADER))
    if dictionary:
        batch = _followed(content, _field(content, batch, DATA))
    return _field(content, batch, COMPRESSION) != 0


def _field(content: memoryview, table: int, number: int) -> int:
    """Returns the place of a table's field, 0 if the table lacks it."""
    fields = table - struct.unpack_from("<i", content, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", content, fields)[0]:
        return 0
    offset: int = struct.unpack_from("<H", content, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _followed(content: memoryview, place: int) -> int:
    return place + int(struct.unpack_from("<I", content, place)[0])
