"""Opens picture files of any kind as RGB. An unreadable file raises BadRecord with a fixed reason.

Pictures are turned upright as their EXIF data says, transparent parts are put on white, 16-bit pictures are scaled to
8 bits, and of animations the first frame is used. Only the formats below are tried, because others would pass the file
to external programs.
"""

from __future__ import annotations

import io
import os
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from diptych.data.record import BadRecord

LARGEST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded, because a small file can ask for any amount of memory."""
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .avif .jp2".split()  # noqa: SIM905
)
"""Files with these suffixes, in lower case, are taken for pictures."""

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


def _content(path: str) -> Path | io.BytesIO:
    """Returns the path of a file, or the bytes of a part of a shard. Raises OSError."""
    part = _PART.fullmatch(path)
    if part is None:
        return Path(path)
    with Path(part[1]).open("rb") as stream:
        stream.seek(int(part[2]))
        return io.BytesIO(stream.read(int(part[3])))


def picture_bytes(path: str) -> bytes:
    """Reads a picture as it is stored, in its own file or in a shard. Raises OSError."""
    content = _content(path)
    return content.getvalue() if isinstance(content, io.BytesIO) else content.read_bytes()


def suffix_of(content: bytes) -> str:
    """Returns the file suffix that fits the format of a picture's bytes. Raises OSError if they are no picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            kind = (image.format or "").lower()
    return {"jpeg": ".jpg", "mpo": ".jpg", "jpeg2000": ".jp2"}.get(kind, f".{kind}")


class _Refused(Exception):
    """Says why a file cannot be opened as a picture: a fixed reason to count by, and details."""


def open_picture(
    path: str | Path | bytes, record_id: str, least_side: int | None = None, most_pixels: int = LARGEST_PIXELS
) -> Image.Image:
    """Decodes the RGB picture of a file, of a part of a tar shard (`part_of`), or of the bytes of a file.

    Raises BadRecord, which names `record_id`. A picture of more than `most_pixels` is refused before it is decoded.
    With `least_side`, a large JPEG may be decoded at a half, a quarter or an eighth of its size, which is several times
    faster, as long as no side falls below `least_side`. The scaled pixels differ slightly, so evaluation does not use
    it.
    """
    try:
        if not isinstance(path, bytes):
            _check_file(str(path))
        elif not path:
            raise _Refused("picture empty")
        with _opened(path if isinstance(path, bytes) else str(path)) as image:
            if image.width * image.height > most_pixels:
                raise _Refused("picture too large", f"{image.width} × {image.height}")
            if least_side is not None and image.format == "JPEG":
                image.draft(None, (least_side, least_side))
            image.load()
            turn = _turn(image)
            return to_rgb(image) if turn is None else to_rgb(image).transpose(turn)
    except _Refused as refused:
        raise BadRecord(record_id, *refused.args) from None
    # Decoders can raise any error on broken bytes, and no file may end the training with a traceback.
    except Exception as error:
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        reason = "picture truncated" if truncated else "picture broken"
        raise BadRecord(record_id, reason, f"{type(error).__name__}: {error}") from None


def picture_size(path: str) -> tuple[int, int]:
    """Reads the width and height of an upright picture from its header. Raises OSError if it is no picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(_content(path), formats=_formats()) as image:
            turned = _turn(image) in _SIDEWAYS
            return (image.height, image.width) if turned else image.size


def _check_file(path: str) -> None:
    try:
        file = Path(file_of(path))
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as error:  # the file system does not accept the name
        raise _Refused("picture missing", str(error)) from None
    if size is None:
        raise _Refused("picture missing", path)
    if size == 0:
        raise _Refused("picture empty", path)


@contextmanager
def _opened(path: str | bytes) -> Iterator[Image.Image]:
    """Opens a picture, which reads its header and decodes nothing."""
    content = io.BytesIO(path) if isinstance(path, bytes) else _content(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the limit on pixels is ours, and notes on odd metadata help nobody here
        try:
            image = Image.open(content, formats=_formats())
        except UnidentifiedImageError:
            name = "" if isinstance(path, bytes) else f"{path}: "
            raise _Refused("not a picture", f"{name}none of the formats that Pillow reads") from None
        except Image.DecompressionBombError as error:
            raise _Refused("picture too large", str(error)) from None
        with image:
            yield image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any mode to RGB. Puts transparency on white and scales more than 8 bits down.

    Raises _Refused.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGB", image.size, (255, 255, 255))
        page.paste(layer, mask=layer.getchannel("A"))
        return page
    try:
        return image.convert("RGB")
    except ValueError:
        raise _Refused("colours not supported", image.mode) from None


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scales grey values of 16 or 32 bits or in floating point to bytes.

    White is 1 or 255 for floating-point values up to these, and otherwise 65535. Larger values are scaled by the
    largest one, since nothing in the file says what white is.
    """
    grey = np.clip(np.nan_to_num(values.astype(np.float64)), 0, None)
    top = float(grey.max(initial=0.0))
    if values.dtype.kind == "f" and top <= 1:
        white = 1.0
    elif values.dtype.kind == "f" and top <= 255:
        white = 255.0
    else:
        white = max(top, 65535.0)
    return np.rint(grey * (255 / white)).astype(np.uint8)


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
_SIDEWAYS = {_TURNS[turn] for turn in (5, 6, 7, 8)}
"""The transpositions that exchange width and height."""
