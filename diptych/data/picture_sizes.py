"""Reads the sizes that the content of a picture file makes its decoder allocate.

The header of a TIFF, JPEG 2000, AVIF or HEIC file says how large the picture is, and another part of the file says how
large the pieces are that the decoder has to unpack. Nothing makes the two agree: a TIFF of 16 × 16 pixels may consist
of one tile of two gigabytes. The functions here read these other parts without decoding anything. A coded frame whose
size they cannot find is refused. What else they cannot follow is left to the decoder, which then fails on its own.

Sources: TIFF 6.0 §15; ISO/IEC 15444-1 annexes A.5 and I; ISO/IEC 14496-12 §8; the AV1 bitstream specification §5.5;
ITU-T H.265 §7.3.2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

MOST_BOXES = 10_000
"""Boxes, items and coded units of one file that are looked at. No encoder writes so many, so a file with more is
refused rather than trusted."""
MOST_PARTS = 100
"""Parts of one item."""
CODED_HEAD = 1 << 20
"""At most this many bytes are read of a unit that holds settings, and looked at of a chunk of a track."""
SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
"""Types of AV1's units (§6.2.2)."""
TILE_WIDTH, TILE_LENGTH = 322, 323


@runtime_checkable
class Stream(Protocol):
    """What is asked of an open file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class PieceSize:
    """Holds the width and height in pixels of a piece that a decoder unpacks as a whole."""

    name: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.name} of {self.width} × {self.height}"


def piece_sizes(image: Image.Image, stream: Stream) -> Iterator[PieceSize]:
    """Yields the sizes of the pieces of an opened picture, whose file is `stream`. The stream is left anywhere."""
    if image.format == "TIFF":
        yield from _tiles(image)
    elif image.format == "JPEG2000":
        yield from _jpeg2000(stream)
    elif image.format in ("AVIF", "HEIF"):
        yield from _coded_frames(stream)


def _tiles(image: Image.Image) -> Iterator[PieceSize]:
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TILE_WIDTH), tags.get(TILE_LENGTH)
    if width is not None and height is not None:
        yield PieceSize("a tile", int(width), int(height))


# --------------------------------------------------------------------------- boxes, which JP2, AVIF and HEIC share


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    """Position of its content in the stream."""
    stop: int


def _length(stream: Stream) -> int:
    return stream.seek(0, 2)


def _read(stream: Stream, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _boxes(stream: Stream, start: int, stop: int) -> Iterator[_Box]:
    """Yields the boxes of a part of a file. A box whose length is nonsense ends them.

    Raises ValueError for more than MOST_BOXES.
    """
    for _ in range(MOST_BOXES):
        head = _read(stream, start, 16)
        if len(head) < 8 or start + 8 > stop:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        content = start + 8
        if size == 1 and len(head) == 16:
            size, content = struct.unpack(">Q", head[8:])[0], start + 16
        end = stop if size == 0 else start + size
        if end < content or end > stop:
            return
        yield _Box(kind, content, end)
        start = end
    raise ValueError(f"more than {MOST_BOXES:,} boxes")


def _find(stream: Stream, parent: _Box, *kinds: bytes, skip: int = 0) -> list[_Box]:
    """Returns all boxes below `parent` along a path of kinds. `skip` bytes precede the parent's own boxes."""
    found = [parent]
    for kind in kinds:
        found = [box for outer in found for box in _boxes(stream, outer.start + skip, outer.stop) if box.kind == kind]
        skip = 0
    return found


# --------------------------------------------------------------------------- JPEG 2000


def _jpeg2000(stream: Stream) -> Iterator[PieceSize]:
    """Yields the picture's size by its codestream (SIZ), which the box `ihdr` before it may contradict."""
    starts = [0]
    if _read(stream, 0, 4) != b"\xff\x4f\xff\x51":
        starts = [box.start for box in _boxes(stream, 0, _length(stream)) if box.kind == b"jp2c"]
    for start in starts:
        siz = _read(stream, start, 40)
        if len(siz) == 40 and siz[:4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = struct.unpack(">4I", siz[8:24])
            yield PieceSize("a codestream", max(right - left, 0), max(bottom - top, 0))


# --------------------------------------------------------------------------- AVIF and HEIC


def _coded_frames(stream: Stream) -> Iterator[PieceSize]:
    """Yields the sizes of all coded frames: in the decoders' settings, in the items, and in the samples of tracks."""
    whole = _Box(b"", 0, _length(stream))
    for box in _boxes(stream, 0, whole.stop):
        if box.kind == b"meta":
            yield from _meta(stream, box)
        elif box.kind == b"moov":
            yield from _tracks(stream, box)


def _meta(stream: Stream, meta: _Box) -> Iterator[PieceSize]:
    inside = list(_boxes(stream, meta.start + 4, meta.stop))
    settings = [box for outer in inside if outer.kind == b"iprp" for box in _find(stream, outer, b"ipco")]
    yield from _settings(stream, [box for ipco in settings for box in _boxes(stream, ipco.start, ipco.stop)])
    data = next((box.start for box in inside if box.kind == b"idat"), 0)
    kinds = {item: kind for box in inside if box.kind == b"iinf" for item, kind in _item_kinds(stream, box)}
    for box in inside:
        if box.kind == b"iloc":
            parts: dict[int, list[tuple[int, int]]] = {}
            for item, start, size in _item_places(_read(stream, box.start, box.stop - box.start), data):
                parts.setdefault(item, []).append((start, size))
                if len(parts[item]) > MOST_PARTS:
                    raise ValueError(f"an item in more than {MOST_PARTS} parts")
            for item, places in parts.items():
                sizes = list(_units(kinds.get(item, b""), _Item(stream, places)))
                if not sizes and kinds.get(item) == b"av01":
                    raise ValueError("a coded frame that does not say its size")
                yield from sizes


def _tracks(stream: Stream, moov: _Box) -> Iterator[PieceSize]:
    """Yields the sizes of the coded frames of an image sequence: each chunk begins with one."""
    for table in _find(stream, moov, b"trak", b"mdia", b"minf", b"stbl"):
        entries = [box for stsd in _find(stream, table, b"stsd") for box in _boxes(stream, stsd.start + 8, stsd.stop)]
        kind = entries[0].kind if entries else b""
        for entry in entries:  # 78 bytes of a VisualSampleEntry precede its boxes
            yield from _settings(stream, list(_boxes(stream, entry.start + 78, entry.stop)))
        for name, form in ((b"stco", ">I"), (b"co64", ">Q")):
            for box in _find(stream, table, name):
                places = _read(stream, box.start + 8, min(box.stop - box.start - 8, 8 * MOST_BOXES))
                width = struct.calcsize(form)
                for (start,) in struct.iter_unpack(form, places[: len(places) // width * width]):
                    yield from _units(kind, _Item(stream, [(start, CODED_HEAD)]))


def _settings(stream: Stream, boxes: list[_Box]) -> Iterator[PieceSize]:
    """Yields the sizes in the settings of decoders: AV1's `av1C` and HEVC's `hvcC`."""
    for box in boxes:
        content = _read(stream, box.start, min(box.stop - box.start, CODED_HEAD))
        if box.kind == b"av1C":
            yield from _av1_sizes(_Item(stream, [(box.start + 4, len(content) - 4)]))
        elif box.kind == b"hvcC" and len(content) > 23:
            yield from _hevc_sizes(_parameter_sets(content))


@dataclass(frozen=True)
class _Item:
    """The bytes of an item, which may lie in several parts of the file."""

    stream: Stream
    parts: Sequence[tuple[int, int]]
    """Position in the stream and length of each part."""

    def read(self, place: int, size: int) -> bytes:
        content = b""
        for start, length in self.parts:
            if place < length and len(content) < size:
                content += _read(self.stream, start + place, min(size - len(content), length - place))
            place = max(0, place - length)
        return content


def _units(kind: bytes, item: _Item) -> Iterator[PieceSize]:
    if kind == b"av01":
        yield from _av1_sizes(item)
    elif kind in (b"hvc1", b"hev1"):
        yield from _hevc_sizes(_prefixed(item.read(0, CODED_HEAD)))
    elif kind in (b"grid", b"iovl"):  # a picture that is put together of others
        head = item.read(0, 20)
        start, form = (4 if kind == b"grid" else 10), (">II" if head[1:2] and head[1] & 1 else ">HH")
        if len(head) >= start + struct.calcsize(form):
            yield PieceSize("a canvas", *struct.unpack_from(form, head, start))


def _item_kinds(stream: Stream, box: _Box) -> Iterator[tuple[int, bytes]]:
    """Yields the number and the kind of each item (`infe` of version 2 or 3)."""
    wide = _read(stream, box.start, 1) != b"\0"
    for entry in _boxes(stream, box.start + (8 if wide else 6), box.stop):
        content = _read(stream, entry.start, 20)
        form = {2: ">H2x4s", 3: ">I2x4s"}.get(content[0] if content else 0)
        if entry.kind == b"infe" and form and len(content) >= 4 + struct.calcsize(form):
            item, kind = struct.unpack_from(form, content, 4)
            yield item, kind


def _item_places(content: bytes, data: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number, the position and the length of each part of an item, from an `iloc` box.

    `data` is the position of `idat`, in which an item may lie. An item without a length goes on to the file's end.
    """
    reader = _Bits(content)
    version = reader.take(8)
    reader.take(24)
    offset, length, base, index = (8 * reader.take(4) for _ in range(4))
    wide = 32 if version == 2 else 16
    if (count := reader.take(wide)) > MOST_BOXES:
        raise ValueError(f"{count:,} items")
    for _ in range(count):
        item = reader.take(wide)
        in_idat = version in (1, 2) and reader.take(16) & 15 == 1
        reader.take(16)
        start = reader.take(base) + (data if in_idat else 0)
        for _ in range(reader.take(16)):
            if version in (1, 2):
                reader.take(index)
            place = reader.take(offset)
            size = reader.take(length)
            if reader.ended:
                return
            yield item, start + place, size or CODED_HEAD


# --------------------------------------------------------------------------- coded units


class _Bits:
    """Reads bits from the highest to the lowest. Beyond the end it reads zeros."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    @property
    def ended(self) -> bool:
        return self.place > 8 * len(self.content)

    def take(self, count: int) -> int:
        first, last = self.place // 8, (self.place + count + 7) // 8
        self.place += count
        part = self.content[first:last].ljust(last - first, b"\0")
        return int.from_bytes(part) >> (8 * last - self.place) & ((1 << count) - 1)

    def exponential(self) -> int:
        """Reads an Exp-Golomb number (AV1's uvlc, H.265's ue)."""
        zeros = 0
        while zeros < 32 and not self.ended and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _av1_sizes(item: _Item) -> Iterator[PieceSize]:
    """Yields the largest frame of each sequence header among the units of an AV1 stream.

    Raises ValueError if no frame comes among the first MOST_BOXES units. Padding could hide a sequence header there.
    """
    place, frames = 0, 0
    for _ in range(MOST_BOXES):
        head = item.read(place, 10)
        if not head:
            return
        kind, at = head[0] >> 3 & 15, 2 if head[0] & 4 else 1
        size, shift, sized = 0, 0, bool(head[0] & 2)
        while sized and at < len(head):
            size |= (head[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if head[at - 1] < 128:
                break
        place += at
        if kind == SEQUENCE_HEADER:
            yield _av1_sequence(_Bits(item.read(place, min(size, 500) if sized else 500)))
        frames += kind in (FRAME_HEADER, FRAME)
        if not sized:  # it goes on to the end
            return
        place += size
    if not frames:
        raise ValueError(f"no coded frame among the first {MOST_BOXES:,} units")


def _av1_sequence(bits: _Bits) -> PieceSize:
    """Reads the largest frame's size from a sequence header (AV1 §5.5.1)."""
    bits.take(4)
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        delay = 0
        if bits.take(1):  # timing_info
            bits.take(64)
            if bits.take(1):
                bits.exponential()
            if bits.take(1):  # decoder_model_info
                delay = bits.take(5) + 1
                bits.take(42)
        displayed = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay and bits.take(1):
                bits.take(2 * delay + 1)
            if displayed and bits.take(1):
                bits.take(4)
    width, height = bits.take(4) + 1, bits.take(4) + 1
    return PieceSize("a coded frame", bits.take(width) + 1, bits.take(height) + 1)


def _parameter_sets(content: bytes) -> Iterator[bytes]:
    """Yields the units of an `hvcC` box."""
    place = 23
    for _ in range(content[22]):
        count = int.from_bytes(content[place + 1 : place + 3])
        place += 3
        for _ in range(count):
            size = int.from_bytes(content[place : place + 2])
            yield content[place + 2 : place + 2 + size]
            place += 2 + size


def _prefixed(content: bytes) -> Iterator[bytes]:
    """Yields units that follow their lengths of four bytes."""
    place = 0
    while place + 4 <= len(content):
        size = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 4 + min(size, 1 << 10)]
        place += 4 + size


def _hevc_sizes(units: Iterator[bytes]) -> Iterator[PieceSize]:
    """Yields the picture's size of each sequence parameter set (H.265 §7.3.2.2)."""
    for unit in units:
        if len(unit) < 16 or unit[0] >> 1 & 63 != 33:
            continue
        bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
        bits.take(4)
        layers = bits.take(3)
        bits.take(1 + 96)
        present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
        bits.take(2 * (8 - layers) if layers else 0)
        for profile, level in present:
            bits.take(88 * profile + 8 * level)
        bits.exponential()
        if bits.exponential() == 3:
            bits.take(1)
        yield PieceSize("a coded frame", bits.exponential(), bits.exponential())
