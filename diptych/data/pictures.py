"""Picture files to RGB, whatever they hold; what cannot be read becomes a BadRecord with a fixed reason.

Orientation follows EXIF. Transparent parts are shown on white. 16-bit pictures are scaled to 8 bits. Of animations the
first frame counts. Only the formats below are tried: others would hand the file to outside programs.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from diptych.data.record import BadRecord

LARGEST_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded: a small file can ask for any amount of memory."""
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .avif .jp2".split()  # noqa: SIM905
)
"""File names that are taken for pictures, in lower case."""


_PART = re.compile(r"(.*\.tar)@(\d+)\+(\d+)", re.DOTALL)


def part_of(shard: str | Path, start: int, size: int) -> str:
    """The path of a picture inside a tar shard: `size` bytes from `start` on.

    >>> part_of("00000.tar", 512, 2048)
    '00000.tar@512+2048'
    """
    return f"{shard}@{start}+{size}"


def place_of(part: str) -> tuple[str, int, int]:
    """The shard, start and size that `part_of` put together.

    >>> place_of("00000.tar@512+2048")
    ('00000.tar', 512, 2048)
    """
    name, _, place = part.rpartition("@")
    start, _, size = place.partition("+")
    return name, int(start), int(size)


def file_of(path: str) -> str:
    """The file that holds a picture: the path itself, or the shard.

    >>> file_of("a.jpg"), file_of("00000.tar@512+2048")
    ('a.jpg', '00000.tar')
    """
    part = _PART.fullmatch(path) if ".tar@" in path else None
    return part[1] if part else path


def _content(path: str) -> Path | io.BytesIO:
    part = _PART.fullmatch(path)
    if part is None:
        return Path(path)
    with Path(part[1]).open("rb") as stream:
        stream.seek(int(part[2]))
        return io.BytesIO(stream.read(int(part[3])))


def picture_bytes(path: str) -> bytes:
    """A picture as it is stored, in a file of its own or in a shard. Raises OSError."""
    content = _content(path)
    return content.getvalue() if isinstance(content, io.BytesIO) else content.read_bytes()


def suffix_of(content: bytes) -> str:
    """How a file with this picture in it is called, by what it holds. Raises OSError for no picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            kind = (image.format or "").lower()
    return {"jpeg": ".jpg", "mpo": ".jpg", "jpeg2000": ".jp2"}.get(kind, f".{kind}")


class _Refused(Exception):
    """Why a file gives no picture: the reason to count by, and detail."""


def open_picture(
    path: str | Path | bytes, record_id: str, least_side: int | None = None, most_pixels: int = LARGEST_PIXELS
) -> Image.Image:
    """The decoded RGB picture of a file, of a part of a tar shard (`part_of`), or of what such a file holds.

    Raises BadRecord, naming `record_id`. `least_side`: large JPEGs may come at a half, a quarter or an eighth of their
    size, which decodes several times faster, as long as no side falls below this. The scaled pixels differ slightly, so
    evaluation does without. `most_pixels`: more are refused by the header, before anything is decoded.
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
    # Decoders raise whatever broken bytes lead them to; no file may end the training with a traceback.
    except Exception as error:
        raise BadRecord(record_id, _broken(error), f"{type(error).__name__}: {error}") from None


def _check_file(path: str) -> None:
    try:
        file = Path(file_of(path))
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as error:  # a name that the file system does not take
        raise _Refused("picture missing", str(error)) from None
    if size is None:
        raise _Refused("picture missing", path)
    if size == 0:
        raise _Refused("picture empty", path)


@contextmanager
def _opened(path: str | bytes) -> Iterator[Image.Image]:
    """The picture with its header read and nothing decoded."""
    content = io.BytesIO(path) if isinstance(path, bytes) else _content(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ours is the limit; and notes on odd metadata help nobody here
        try:
            image = Image.open(content, formats=_formats())
        except UnidentifiedImageError:
            raise _Refused("not a picture", f"{_told(path)}none of the formats that Pillow reads") from None
        except Image.DecompressionBombError as error:
            raise _Refused("picture too large", str(error)) from None
        with image:
            yield image


def _told(path: str | bytes) -> str:
    return "" if isinstance(path, bytes) else f"{path}: "


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _broken(error: Exception) -> str:
    return "picture truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "picture broken"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB; transparency on white, more than 8 bits scaled down. Raises _Refused."""
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
    """Grey values of 16 or 32 bits or in floating point as bytes. Fractions of 1 aside, full scale is 65535.

    Larger values are scaled by the largest one, since nothing in the file says what white is.
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
    """What turns a decoded picture upright, as the camera's EXIF entry says; nothing where the entry is broken."""
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
