"""The inputs of users: pictures of any kind, texts and boxes, one or many.

A single input goes with each of many. Lists are paired item by item and so have equal lengths. The result is a single
one only if all inputs are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.pictures import open_picture, spelled_on_disk, to_rgb
from diptych.data.record import Box
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig
from diptych.types import Texts

Picture = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or an array of bytes [H, W, 3] or [H, W]."""
Pictures = Picture | Sequence[Picture]
Strings = str | Sequence[str]
Boxes = Sequence[Sequence[float | int]] | np.ndarray
"""Boxes as x, y, width, height in pixels of the picture."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Inputs(Generic[Item]):
    """One or many inputs of a kind."""

    name: str
    """The name of the kind in messages, in the plural."""
    items: Sequence[Item]
    single: bool
    """Whether it was one input, not a list."""

    def place(self, row: int) -> int:
        """Returns the place of the item that belongs to a row of the results."""
        return 0 if self.single else row

    def at(self, row: int) -> Item:
        return self.items[self.place(row)]


def count_results(*inputs: Inputs[Any]) -> int:
    """Counts the results. Raises ValueError for lists of different lengths."""
    lists = [each for each in inputs if not each.single]
    if len({len(each.items) for each in lists}) > 1:
        counts = " and ".join(f"{len(each.items)} {each.name}" for each in lists)
        raise ValueError(f"{counts} do not go together: give as many of each, or a single one for all")
    return len(lists[0].items) if lists else 1


def as_pictures(pictures: Pictures) -> Inputs[Picture]:
    """Takes one or many pictures. Raises ValueError for an empty list."""
    if isinstance(pictures, str | Path | Image.Image | np.ndarray):
        return Inputs("pictures", [pictures], single=True)
    return _listed("pictures", pictures)


def as_strings(texts: Strings, name: str = "texts") -> Inputs[str]:
    """Takes one or many texts. Raises ValueError for an empty list, and for half of a surrogate pair."""
    inputs = Inputs(name, [texts], single=True) if isinstance(texts, str) else _listed(name, texts)
    for text in inputs.items:
        if not is_whole(text):
            raise ValueError(f"{text!r} holds half of a surrogate pair, which is no character")
    return inputs


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
    try:
        listed = list(items)
    except TypeError:
        raise ValueError(f"{items!r} are no {name}") from None
    if not listed:
        raise ValueError(f"no {name} given")
    return Inputs(name, listed, single=False)


def _depth(value: Any) -> int:
    """Counts the levels of lists around a number: a box has one, proposals have two."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, Sequence | np.ndarray) else 0


def _box(values: Any) -> Box:
    try:
        x, y, width, height = map(float, values)
    except (TypeError, ValueError):
        raise ValueError(f"{values!r} is no box: proposals are a list of [x, y, width, height] in pixels") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"the box {values!r} holds a number that is not finite")
    return x, y, width, height


def open_any(picture: Picture) -> Image.Image:
    """Opens an RGB picture. Raises BadRecord for a file that is no picture, ValueError for any other such value."""
    if isinstance(picture, str | Path):
        return open_picture(spelled_on_disk(os.path.expanduser(picture)), str(picture))  # noqa: PTH111
    if isinstance(picture, np.ndarray):
        colours = picture.ndim == 3 and picture.shape[2] in (3, 4)
        if picture.dtype != np.uint8 or not (colours or picture.ndim == 2) or not picture.size:
            raise ValueError(
                f"an array of {picture.dtype} {list(picture.shape)} is no picture: give uint8, [H, W, 3] or [H, W]"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a {type(picture).__name__} is no picture: give a file's path, a Pillow image or an array")
    try:
        return to_rgb(picture)
    except Exception as error:  # Pillow decodes late, and raises whatever broken bytes lead it to
        raise ValueError(f"the picture that was given cannot be read: {error}") from error


def picture_name(picture: Picture, place: int) -> str:
    """Names a picture by its path or, if it is no file, by its place in the list."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {place}"


def prepare_texts(texts: Sequence[str], tokenizer: Tokenizer, config: DataConfig) -> Texts:
    """Encodes texts as evaluation reads them. Raises ValueError for a text without words."""
    cleaned = [clean_caption(text, config.max_words) for text in texts]
    for text, clean in zip(texts, cleaned, strict=True):
        if not clean:
            raise ValueError(f"{text!r} holds no words")
    return pad_texts(tokenizer.encode(cleaned, config.max_tokens_evaluation), tokenizer.pad_id)


def unknown_words(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Finds the words that the tokenizer can only read as [UNK]."""
    words = clean_caption(text, max_words=len(text)).split()
    return tuple(word for word in words if tokenizer.unk_id in tokenizer.encode([word])[0])
