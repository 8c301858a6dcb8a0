"""Opens picture files of any kind as RGB. An unreadable file raises BadRecord with a fixed reason.

Pictures are turned upright as their EXIF data says, transparent parts are put on white, 16-bit pictures are scaled to
8 bits, and of animations the first frame is used. Only the formats below are tried, because others would pass the file
to external programs. HEIC is read if pillow-heif is installed.

One rule bounds memory at every door (training, search, app, server): a picture of more than `most_pixels` is refused
before anything is decoded, and so is a file whose pieces are larger than its header says (picture_sizes.py). Decoded,
Pillow holds at most four bytes for each pixel. Pictures are converted in blocks, so that a conversion adds only its
result.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from diptych.data.picture_headers import (
    MOST_COMMENTS,
    MOST_SCANS,
    SLOW_DECODERS,
    CountedStream,
    TooManyParts,
    guard_directories,
    jpeg_scans,
)
from diptych.data.picture_kinds import reads_heif, told_by_content
from diptych.data.picture_sizes import Stream, piece_sizes
from diptych.data.record import BadRecord
from diptych.printable import brief
from diptych.reading import HEAD, open_regular

LARGEST_PART = 1 << 28
"""Largest picture, in bytes, of a shard, as of a whole sample."""
LARGEST_PIXELS = 100_000_000
"""The default of the limit on pixels. Larger pictures are refused before they are decoded, because a small file can ask
for any amount of memory."""
LARGEST_SIDE = 65_535
"""Pixels of a side, as in JPEG. To scale a side down takes memory for each of its pixels and each of the result, and a
run-length coded BMP of a kilobyte may ask Pillow for 255 rows of any width."""
LIMIT = "data.largest_pixels"
"""The setting that a message names beside the limit."""
LARGEST_PIECE = 4096 * 4096
"""Pixels of a tile or coded frame that a smaller picture may have. Usual tiles have at most a million."""
BLOCK = 1 << 20
"""Pixels that are converted at once."""
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")

SLOW = "SLOW"
"""Stands among refused formats for those that Pillow decodes in Python (SLOW_DECODERS)."""

_OpenFile = io.BytesIO | io.BufferedReader
_PART = re.compile(r"(.*\.tar)@(\d+)\+(\d+)", re.DOTALL)


def part_of(shard: str | Path, start: int, size: int) -> str:
    """Returns the path of a picture inside a tar shard, which has `size` bytes from `start` on.

    >>> part_of("00000.tar", 512, 2048)
    '00000.tar@512+2048'
    """
    return f"{shard}@{start}+{size}"


def place_of(part: str) -> tuple[str, int, int]:
    """Returns the shard, start and size from which `part_of` made a path.

    >>> place_of("00000.tar@512+2048")
    ('00000.tar', 512, 2048)
    """
    name, _, place = part.rpartition("@")
    start, _, size = place.partition("+")
    return name, int(start), int(size)


def file_of(path: str) -> str:
    """Returns the file that holds a picture: the path itself, or the shard of a part.

    >>> file_of("a.jpg"), file_of("00000.tar@512+2048")
    ('a.jpg', '00000.tar')
    """
    part = _PART.fullmatch(path) if ".tar@" in path else None
    return part[1] if part else path


def spelled_on_disk(path: str) -> str:
    """Returns the path of an existing file or folder whose name is the same in Unicode, or else the path itself.

    The é of a name may be one character (NFC) or a letter and an accent (NFD). macOS and archives made there write the
    second, lists mostly hold the first.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name:
        return path
    folder = spelled_on_disk(folder)
    names = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    forms = (os.path.join(folder, form) for form in names)  # noqa: PTH118
    return next((form for form in forms if os.path.lexists(form)), path)


@contextmanager
def _stream(path: str | bytes) -> Iterator[_OpenFile]:
    """Opens a picture's bytes: a file, a part of a shard, or bytes that are there. Raises OSError."""
    part = _PART.fullmatch(path) if isinstance(path, str) else None
    if isinstance(path, bytes):
        yield io.BytesIO(path)
    elif part is None:
        with open_regular(path) as stream:
            yield stream
    else:
        with open_regular(part[1]) as stream:
            size = stream.seek(0, os.SEEK_END)
            if len(part[2] + part[3]) > 40 or int(part[2]) + int(part[3]) > size or int(part[3]) > LARGEST_PART:
                raise OSError(f"truncated: {part[1]} has no {brief(part[3])} bytes from {brief(part[2])} on")
            stream.seek(int(part[2]))
            yield io.BytesIO(stream.read(int(part[3])))


def picture_bytes(path: str) -> bytes:
    """Reads a picture as it is stored, in its own file or in a shard. Raises OSError."""
    with _stream(path) as stream:
        return stream.read()


def picture_digest(path: str) -> bytes:
    """Hashes a picture as it is stored, without reading it whole into memory. Raises OSError."""
    with _stream(path) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()


def suffix_of(content: bytes) -> str:
    """Returns the file suffix that fits the format of a picture's bytes. Raises OSError if they are no picture."""
    try:
        with _opened(content) as (image, _):
            kind = (image.format or "").lower()
    except (_Refused, TooManyParts, ValueError) as error:
        raise OSError(str(error)) from None
    return {"jpeg": ".jpg", "mpo": ".jpg", "jpeg2000": ".jp2", "heif": ".heic"}.get(kind, f".{kind}")


class _Refused(Exception):
    """Says why a file cannot be opened as a picture: a fixed reason to count by, and details."""


def open_picture(
    path: str | Path | bytes,
    record_id: str,
    least_side: int | None = None,
    most_pixels: int | None = LARGEST_PIXELS,
    limit: str = LIMIT,
    refused: Collection[str] = (),
) -> Image.Image:
    """Decodes the RGB picture of a file, of a part of a tar shard (`part_of`), or of the bytes of a file.

    A picture of more than `most_pixels` is refused before it is decoded, and the message names `limit`, the setting
    that raises it. None admits any number. `refused` names formats of FORMATS that are not decoded, or SLOW: JPEG 2000
    takes several seconds where others take a tenth.

    With `least_side`, a large JPEG may be decoded at a half, a quarter or an eighth of its size, which is several times
    faster, as long as no side falls below `least_side`. The scaled pixels differ slightly, so evaluation does not use
    it.

    Raises BadRecord, which names `record_id`.
    """
    draft = None if least_side is None else (least_side, least_side)
    with _named(record_id), _checked(path, most_pixels, limit, refused) as (image, stream):
        check_time(image, stream, refused)
        return _decoded(image, draft)


def check_picture(
    content: bytes, record_id: str, most_pixels: int | None, limit: str = LIMIT, refused: Collection[str] = ()
) -> tuple[int, int]:
    """Refuses what `open_picture` refuses before it decodes, and returns the width and height in the header.

    Raises BadRecord, which names `record_id`.
    """
    with _named(record_id), _checked(content, most_pixels, limit, refused) as (image, stream):
        check_time(image, stream, refused)
        return image.size


def open_small(
    path: str | Path | bytes, record_id: str, side: int, most_pixels: int | None = LARGEST_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Opens a picture to be looked at, scaled down to `side` if it is larger, and returns its full size as well.

    Refuses as `open_picture` does.
    """
    with _named(record_id), _checked(path, most_pixels, LIMIT, ()) as (image, stream):
        check_time(image, stream, ())
        width, height = image.size
        scale = min(1.0, side / max(width, height))
        # Twice the size that is needed, so that a JPEG's coarse scaling does not show.
        picture = _decoded(image, (max(1, round(2 * scale * width)), max(1, round(2 * scale * height))))
        picture.thumbnail((side, side))
        return picture, (height, width) if _turn(image) in _QUARTER_TURNS else (width, height)


def picture_size(path: str) -> tuple[int, int]:
    """Reads the width and height of an upright picture from its header. Raises BadRecord."""
    with _named(path), _checked(path, None, LIMIT, ()) as (image, _):
        return (image.height, image.width) if _turn(image) in _QUARTER_TURNS else image.size


@contextmanager
def _named(record_id: str) -> Iterator[None]:
    """Turns every error of opening a picture into a BadRecord."""
    try:
        yield
    except _Refused as refused:
        raise BadRecord(record_id, *refused.args) from None
    except TooManyParts as error:
        raise BadRecord(record_id, "picture broken", str(error)) from None
    # Decoders can raise any error on broken bytes, and no file may end the training with a traceback.
    except Exception as error:
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = "picture truncated" if truncated else "picture broken"
        raise BadRecord(record_id, reason, f"{type(error).__name__}: {error}") from None


@contextmanager
def _checked(
    path: str | Path | bytes, most_pixels: int | None, limit: str, refused: Collection[str]
) -> Iterator[tuple[Image.Image, _OpenFile]]:
    """Opens a picture whose size is admitted, and its bytes. Raises _Refused."""
    if not isinstance(path, bytes):
        _check_file(str(path))
    elif not path:
        raise _Refused("picture empty")
    with _opened(path if isinstance(path, bytes) else str(path), most_pixels, limit) as (image, stream):
        if image.format in refused:
            raise _Refused("format not accepted", f"{image.format}: send JPEG or PNG")
        check_size(image, most_pixels, limit)
        check_pieces(image, stream, most_pixels)
        yield image, stream


def check_size(image: Image.Image, most_pixels: int | None, limit: str = LIMIT) -> None:
    """Raises _Refused for a picture of more than `most_pixels`, and for a very long one. None admits both."""
    if most_pixels is None:
        return
    if image.width * image.height > most_pixels:
        raise _too_large(f"{image.width} × {image.height}", most_pixels, limit)
    if max(image.size) > LARGEST_SIDE:
        raise _Refused("picture too long", f"{image.width} × {image.height}; a side has at most {LARGEST_SIDE:,}")


def check_pieces(image: Image.Image, stream: Stream, most_pixels: int | None) -> None:
    """Raises _Refused if a piece that must be unpacked as a whole is far larger than the picture. Moves nothing."""
    place = stream.tell()
    most = max(
        LARGEST_PIECE if most_pixels is None else min(LARGEST_PIECE, most_pixels), 2 * image.width * image.height
    )
    try:
        for piece in piece_sizes(image, stream):
            if piece.width * piece.height > most:
                raise _Refused("picture too large", f"{image.width} × {image.height} by its header, and {piece}")
    finally:
        stream.seek(place)


def check_time(image: Image.Image, stream: Stream, refused: Collection[str]) -> None:
    """Raises _Refused for a picture that would keep its decoder busy far longer than others. Moves nothing."""
    decoder = image.tile[0][0] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if decoder in SLOW_DECODERS and SLOW in refused:
        raise _Refused("format not accepted", f"{image.format} in a form that takes too long: send JPEG or PNG")
    if image.format not in ("JPEG", "MPO") and decoder != "ppm_plain":
        return
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    if decoder == "ppm_plain" and content.count(b"#") > MOST_COMMENTS:
        raise _Refused("picture broken", f"more than {MOST_COMMENTS:,} comments among its pixels")
    if decoder == "jpeg" and jpeg_scans(content) > MOST_SCANS:
        raise _Refused("picture broken", f"a JPEG of more than {MOST_SCANS} scans, which no encoder writes")


def _too_large(size: str, most_pixels: int | None, limit: str) -> _Refused:
    allowed = "" if most_pixels is None else f"; {limit} allows {most_pixels:,}"
    return _Refused("picture too large", f"{size} pixels{allowed}")


def upright_within(image: Image.Image, record_id: str, most_pixels: int | None, limit: str) -> Image.Image:
    """Decodes a picture that the user has opened, as `open_picture` decodes its file.

    Raises BadRecord, which names `record_id`.
    """
    with _named(record_id):
        check_size(image, most_pixels, limit)
        stream = getattr(image, "fp", None) if getattr(image, "tile", None) else None  # no tile: it is decoded
        if stream is not None and not stream.closed and stream.seekable():
            check_pieces(image, stream, most_pixels)
            check_time(image, stream, ())
        return upright(image)


def _decoded(image: Image.Image, draft: tuple[int, int] | None) -> Image.Image:
    """Decodes an opened picture as `upright` does, if possible at a smaller scale, but not below the size `draft`."""
    if draft is not None and image.format == "JPEG":
        image.draft(None, draft)
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Decodes a picture of any mode, and turns it as its EXIF data says. Raises _Refused.

    The result has pixels only. Metadata would turn it once more at the next door.
    """
    image.load()
    turn = _turn(image)
    picture = to_rgb(image)
    if turn is not None:
        picture = picture.transpose(turn)
    elif picture is image:
        picture = image._new(image.im)  # without a copy of the pixels
    picture.info = {}
    return picture


def why_missing(path: str, error: OSError | ValueError) -> str:
    """Says why the file of a picture cannot be had, given the error that asking for it raised."""
    if isinstance(error, FileNotFoundError):
        return f"{path}{' is a link to a file that is not there' * Path(file_of(path)).is_symlink()}"
    return str(error)  # the file system does not accept the name, or links lead in a circle


def _check_file(path: str) -> None:
    if not path:
        raise _Refused("picture missing", "its path is empty")
    try:
        state = Path(file_of(path)).stat()
    except (OSError, ValueError) as error:
        raise _Refused("picture missing", why_missing(path, error)) from None
    if not stat.S_ISREG(state.st_mode):
        raise _Refused("not a picture", f"{path}: {'a folder' if stat.S_ISDIR(state.st_mode) else 'no regular file'}")
    if state.st_size == 0:
        raise _Refused("picture empty", path)


@contextmanager
def _opened(
    path: str | bytes, most_pixels: int | None = LARGEST_PIXELS, limit: str = LIMIT
) -> Iterator[tuple[Image.Image, _OpenFile]]:
    """Opens a picture, which reads its header and decodes nothing, and its bytes."""
    with warnings.catch_warnings(), _stream(path) as stream:
        warnings.simplefilter("ignore")  # the limit on pixels is ours, and notes on odd metadata help nobody here
        _raise_pillows_limit(most_pixels)
        counted: Any = CountedStream(stream)
        try:
            image = Image.open(counted, formats=_formats())
        except UnidentifiedImageError:
            name = "" if isinstance(path, bytes) else f"{path}: "
            stream.seek(0)
            head = stream.read(HEAD)
            content = told_by_content(head) or "none of the formats that Pillow reads"
            raise _Refused("not a picture", f"{name}{content}") from None
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_large(f"{int(pixels[0]):,}" if pixels else "far more", most_pixels, limit) from None
        place = stream.tell()
        counted.allow_content(stream.seek(0, os.SEEK_END))
        stream.seek(place)
        with image:
            yield image, stream


def _raise_pillows_limit(most_pixels: int | None) -> None:
    """Lets Pillow open what the user allows: it refuses twice its own limit, for the whole process."""
    if most_pixels is not None and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, most_pixels // 2 + 1)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    guard_directories()
    if reads_heif():
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any mode to RGB. Puts transparency on white and scales more than 8 bits down.

    An RGB picture is returned itself. Raises _Refused.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        page = Image.new("RGB", image.size, (255, 255, 255))
        for box in _blocks(image.size):
            layer = image.crop(box).convert("RGBA")
            page.paste(layer, box, mask=layer.getchannel("A"))
        return page
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        raise _Refused("colours not supported", image.mode) from None


def _blocks(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Cuts a picture into boxes of at most BLOCK pixels."""
    width = min(size[0], BLOCK)
    height = max(1, BLOCK // width)
    for top in range(0, size[1], height):
        for left in range(0, size[0], width):
            yield left, top, min(left + width, size[0]), min(top + height, size[1])


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of 16 or 32 bits or in floating point to bytes.

    White is 1 for floating-point values up to it, 255 for values up to it, and otherwise 65535. Larger values are
    scaled by the largest one, since nothing in the file says what white is.
    """
    boxes = list(_blocks(image.size))
    page = Image.new("L", image.size)
    if image.mode.startswith("I;16"):
        shades = np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)
        for box in boxes:
            page.paste(Image.fromarray(shades[np.asarray(image.crop(box))]), box)
        return page
    top = max(float(_grey(image, box).max(initial=0.0)) for box in boxes)
    if image.mode == "F" and top <= 1:
        white = 1.0
    elif top <= 255:
        white = 255.0
    else:
        white = max(top, 65535.0)
    for box in boxes:
        page.paste(Image.fromarray(np.rint(_grey(image, box) * (255 / white)).astype(np.uint8)), box)
    return page


def _grey(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Returns the values of a part of a picture, from 0 upwards."""
    values: np.ndarray = np.clip(np.nan_to_num(np.asarray(image.crop(box)).astype(np.float64)), 0, None)
    return values


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns the transposition that turns a picture upright, as its EXIF entry says. A broken entry gives None."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ValueError, TypeError, KeyError, SyntaxError, OSError, struct.error):
        return None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
"""Those that exchange width and height."""
