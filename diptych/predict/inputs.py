"""The inputs of users: pictures of any kind, texts and boxes, one or many.

A single input goes with each of many. Lists are paired item by item and so have equal lengths. The result is a single
one only if all inputs are.
"""

from __future__ import annotations

import binascii
import math
import operator
import os
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.picture_sizes import Stream
from diptych.data.pictures import LARGEST_PIXELS, open_picture, open_small, spelled_on_disk, upright_within
from diptych.data.record import BadRecord, Box
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig
from diptych.types import Texts

Picture = str | Path | bytes | bytearray | memoryview | Stream | Image.Image | np.ndarray | torch.Tensor
"""A file's path, its bytes, a file object, a data URL, a Pillow image, or an array or tensor of bytes: [H, W, 3],
[H, W, 4], [H, W] or, for tensors as torchvision reads them, [3, H, W], [4, H, W] or [1, H, W]."""
Pictures = Picture | Sequence[Picture]
Strings = str | Sequence[str]
Boxes = Sequence[Sequence[float | int]] | np.ndarray
"""Boxes as x, y, width, height in pixels of the picture."""
Item = TypeVar("Item")
TAKEN = (
    "give a file's path, its bytes, a file object, a data URL, a Pillow image, or an array or tensor of uint8, "
    "[H, W, 3] or [H, W]"
)
DATA_URL = "data:"
LONGEST_NAME = 255
"""Characters of a file's name. A longer text is shown by its beginning."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}\s*")
LIMIT = "largest_pixels"
"""The argument of `diptych.load`, and as `--largest-pixels` the option of commands, that admits larger pictures."""
_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Inputs(Generic[Item]):
    """One or many inputs of a kind."""

    name: str
    """The name of the kind in messages, in the plural."""
    items: Sequence[Item]
    single: bool
    """Whether it was one input, not a list."""

    @cached_property
    def _first(self) -> dict[int, int]:
        """The first place of each object, which a list may name often."""
        places: dict[int, int] = {}
        for place, item in enumerate(self.items):
            places.setdefault(id(item), place)
        return places

    def place(self, row: int) -> int:
        """Returns the place of the item that belongs to a row of the results: the first one, if it stands there often.

        So a picture that is named with each of its texts is opened and encoded once.
        """
        return 0 if self.single else self._first[id(self.items[row])]

    def at(self, row: int) -> Item:
        return self.items[self.place(row)]


def count_results(*inputs: Inputs[Any]) -> int:
    """Counts the results. Raises ValueError for lists of different lengths."""
    lists = [each for each in inputs if not each.single]
    if len({len(each.items) for each in lists}) > 1:
        counts = " and ".join(f"{len(each.items)} {each.name}" for each in lists)
        raise ValueError(f"{counts} do not go together: give as many of each, or a single one for all")
    return len(lists[0].items) if lists else 1


def as_pictures(pictures: Any) -> Inputs[Picture]:
    """Takes one or many pictures. File objects are read at once, because a result may open its picture again.

    An array or tensor of four dimensions is a list of pictures, and so is an array of paths. Raises ValueError for an
    empty list, and for a value that is no picture, with its place.
    """
    batch = isinstance(pictures, np.ndarray | torch.Tensor) and pictures.ndim == 4
    paths = isinstance(pictures, np.ndarray) and pictures.ndim == 1 and pictures.dtype.kind in "OU"
    if not (batch or paths) and (isinstance(pictures, _SINGLE) or hasattr(pictures, "read")):
        return Inputs("pictures", [_taken(pictures, "the picture")], single=True)
    if pictures is None or isinstance(pictures, int | float | dict):
        raise ValueError(_no_picture(pictures, "the picture"))
    listed = _listed("pictures", pictures)
    return Inputs(
        "pictures", [_taken(item, picture_name(item, place)) for place, item in enumerate(listed.items)], single=False
    )


def as_list(pictures: Any) -> list[Any]:
    """Takes many pictures without a look at them, or a single one. Raises ValueError for anything else."""
    if isinstance(pictures, _SINGLE):
        return [pictures]
    try:
        return list(pictures)
    except TypeError:
        raise ValueError(_no_picture(pictures, "the picture")) from None


def _taken(picture: Any, name: str) -> Picture:
    """Returns a picture that can be opened as often as needed. Raises ValueError for a value that is no picture."""
    if hasattr(picture, "read") and not isinstance(picture, os.PathLike):
        try:
            if picture.seekable():
                picture.seek(0)
            content = picture.read()
        except (AttributeError, OSError, ValueError) as error:
            raise ValueError(f"{name}: the file object cannot be read: {error}") from None
        if not isinstance(content, bytes):
            raise ValueError(f"{name}: a file object of text is no picture: open the file with mode 'rb'")
        return content
    if not isinstance(picture, _SINGLE):
        raise ValueError(_no_picture(picture, name))
    return picture  # type: ignore[return-value]


def _no_picture(value: Any, name: str) -> str:
    if isinstance(value, dict):
        keys = ", ".join(map(repr, list(value)[:4]))
        return f"{name} is a dict with {keys}, no picture: give the value of one of them"
    return f"{name} is {_what(value)}, no picture: {TAKEN}"


def _what(value: Any) -> str:
    """Says what a value is that is missing, as pandas marks it, or of a wrong type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "None" if value is None else "NaN"
    return f"of type {type(value).__name__}"


def as_strings(texts: Any, name: str = "texts") -> Inputs[str]:
    """Takes one or many texts.

    Raises ValueError for an empty list, for a value that is no text, with its place, and for half of a surrogate pair.
    """
    if isinstance(texts, bytes | bytearray | Mapping):
        raise ValueError(f"the {name} are of type {type(texts).__name__}: give a str, or a list of them")
    inputs = Inputs(name, [texts], single=True) if isinstance(texts, str) else _listed(name, texts)
    for place, text in enumerate(inputs.items):
        if not isinstance(text, str):
            raise ValueError(f"item {place} of the {name} is {_what(text)}, no text")
        if not is_whole(text):
            raise ValueError(f"{text!r} holds half of a surrogate pair, which is no character")
    return inputs


def as_places(pairs: Any) -> list[tuple[int, int]]:
    """Takes pairs of whole numbers. Raises ValueError for anything else."""
    try:
        return [(operator.index(image), operator.index(text)) for image, text in pairs]
    except (TypeError, ValueError):
        raise ValueError("pairs are a list such as [(0, 0), (0, 2)]: the place of a picture and of a text") from None


def is_whole(text: str) -> bool:
    """Tells whether a text consists of characters: JSON can write half of a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_boxes(boxes: Boxes | Sequence[Boxes] | None) -> Inputs[tuple[Box, ...]]:
    """Takes one list of proposals for all results, or a list for each; None stands for no proposals.

    Raises ValueError for values that are no boxes.
    """
    if boxes is None:
        return Inputs("lists of proposals", [()], single=True)
    if _depth(boxes) > 2:
        return _listed("lists of proposals", [tuple(map(_box, part)) for part in boxes])
    return Inputs("lists of proposals", [tuple(map(_box, boxes))], single=True)


def _listed(name: str, items: Any) -> Inputs[Any]:
    if hasattr(items, "columns"):  # its items are the names of its columns
        raise ValueError(f"a table with the columns {', '.join(map(str, items.columns))} is given: name one of them")
    try:
        listed = list(items)
    except TypeError:
        raise ValueError(f"{items!r} are no {name}") from None
    if not listed:
        raise ValueError(f"no {name} given")
    return Inputs(name, listed, single=False)


def _depth(value: Any) -> int:
    """Counts the levels of lists around a number or a text: a box has one, proposals have two."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _box(values: Any) -> Box:
    try:
        x, y, width, height = map(float, values)
    except (TypeError, ValueError):
        raise ValueError(f"{values!r} is no box: proposals are a list of [x, y, width, height] in pixels") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"the box {values!r} holds a number that is not finite")
    return x, y, width, height


def open_any(picture: Any, most_pixels: int | None = LARGEST_PIXELS) -> Image.Image:
    """Opens an upright RGB picture. The same picture gives the same pixels in every form.

    Raises BadRecord for a file that is no picture or has more than `most_pixels`, ValueError for any other such value.
    """
    picture = _taken(picture, "the picture")
    content = _content(picture)
    if content is not None:
        return open_picture(content, picture_name(picture), most_pixels=most_pixels, limit=LIMIT)
    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    try:
        return upright_within(image, "the picture", most_pixels, LIMIT)
    except BadRecord as bad:  # Pillow decodes late, and raises whatever broken bytes lead it to
        raise ValueError(f"the picture that was given cannot be read: {bad.reason} ({bad.detail})") from None


def open_to_draw(picture: Any, side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """Opens a picture that was opened before, at most `side` pixels large, and returns its full size as well."""
    picture = _taken(picture, "the picture")
    content = _content(picture)
    if content is not None and side is not None:
        return open_small(content, picture_name(picture), side, most_pixels=None)
    image = open_any(picture, most_pixels=None)
    size = image.size
    if side is not None and max(size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    return image, size


def _content(picture: Picture) -> str | Path | bytes | None:
    """Returns the path or the bytes of a picture that is a file. Raises BadRecord for a broken data URL."""
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str) and picture.startswith(DATA_URL):
        head, comma, body = picture.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadRecord("data URL", "not a picture", "it does not begin with data:image/…;base64,")
        try:
            return b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRecord("data URL", "not a picture", f"its base64 is broken: {error}") from None
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise BadRecord(picture, "not a picture", "addresses are not fetched: download it, and give the file")
    if isinstance(picture, str) and picture.startswith("file://"):
        raise BadRecord(picture, "not a picture", "give the path itself, without file://")
    if isinstance(picture, str) and len(picture) > LONGEST_NAME and _BASE64.fullmatch(picture):
        detail = f"a text of {len(picture)} characters is no path; before base64 there must be data:image/jpeg;base64,"
        raise BadRecord(picture_name(picture), "not a picture", detail)
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return spelled_on_disk(os.path.expanduser(os.fspath(picture)))  # noqa: PTH111
    return None


def _from_array(picture: Any) -> Image.Image:
    """Makes an image of an array or a tensor of bytes. Raises ValueError for other arrays."""
    if isinstance(picture, torch.Tensor):
        if picture.layout != torch.strided or picture.is_quantized or picture.is_meta:
            raise ValueError("a sparse, quantised or meta tensor is no picture: give a plain one of uint8")
        tensor = picture.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16
    else:
        array = np.asarray(picture)
    channels_first = isinstance(picture, torch.Tensor) and array.ndim == 3 and array.shape[0] in (1, 3, 4)
    if channels_first:
        array = array.transpose(1, 2, 0)
    colours = array.ndim == 3 and array.shape[2] in (1, 3, 4)
    if array.dtype != np.uint8 or not (colours or array.ndim == 2) or not array.size:
        scale = "; scale floating-point values in 0..1 by 255" if array.dtype.kind == "f" else ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and not isinstance(picture, torch.Tensor):
            scale += "; array.transpose(1, 2, 0) puts the channels last"
        kind = "a tensor" if isinstance(picture, torch.Tensor) else "an array"
        given = str(picture.dtype).removeprefix("torch.")
        raise ValueError(
            f"{kind} of {given} {list(picture.shape)} is no picture: give uint8, [H, W, 3] or [H, W]{scale}"
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def picture_name(picture: Any, place: int | None = None) -> str:
    """Names a picture by its path or, if it is no file, by its place in the list."""
    if isinstance(picture, str | os.PathLike) and not str(picture).startswith(DATA_URL):
        name = str(picture)
        return name if len(name) <= LONGEST_NAME else f"{name[:40]}…"
    return "the picture" if place is None else f"picture {place}"


def prepare_texts(texts: Sequence[str], tokenizer: Tokenizer, config: DataConfig) -> Texts:
    """Encodes texts as evaluation reads them. Raises ValueError for a text without words."""
    cleaned = [clean_caption(text, config.max_words) for text in texts]
    for text, clean in zip(texts, cleaned, strict=True):
        if not clean:
            raise ValueError(f"{text!r} holds no words")
    return pad_texts(tokenizer.encode(cleaned, config.max_tokens_evaluation), tokenizer.pad_id)


def unknown_words(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Finds the words that the tokenizer can only read as [UNK], each once, in the order of the text."""
    words = list(dict.fromkeys(clean_caption(text, max_words=len(text)).split()))
    return tuple(word for word, ids in zip(words, tokenizer.encode(words), strict=True) if tokenizer.unk_id in ids)
