"""What users hand in: pictures of any kind, texts and boxes, one or many.

A single one goes with each of many; lists go together one by one, and so are equally long. Only where all is single is
the result a single one too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.pictures import open_picture, to_rgb
from diptych.data.record import Box
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig
from diptych.types import Texts

Picture = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or an array of bytes [H, W, 3] or [H, W]."""
Pictures = Picture | Sequence[Picture]
Strings = str | Sequence[str]
Boxes = Sequence[Sequence[float | int]] | np.ndarray
"""Each x, y, width, height in pixels of the picture."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Given(Generic[Item]):
    """One or many of a kind."""

    name: str
    """What they are, in the plural."""
    items: Sequence[Item]
    one: bool

    def place(self, row: int) -> int:
        """Which item belongs to a row of the results."""
        return 0 if self.one else row

    def at(self, row: int) -> Item:
        return self.items[self.place(row)]


def count_rows(*given: Given[Any]) -> int:
    """How many results there are. Raises ValueError for lists of different lengths."""
    lists = [one for one in given if not one.one]
    if len({len(one.items) for one in lists}) > 1:
        counts = " and ".join(f"{len(one.items)} {one.name}" for one in lists)
        raise ValueError(f"{counts} do not go together: give as many of each, or a single one for all")
    return len(lists[0].items) if lists else 1


def given_pictures(pictures: Pictures) -> Given[Picture]:
    """Raises ValueError for an empty list."""
    if isinstance(pictures, str | Path | Image.Image | np.ndarray):
        return Given("pictures", [pictures], one=True)
    return _listed("pictures", pictures)


def given_strings(texts: Strings, name: str = "texts") -> Given[str]:
    """Raises ValueError for an empty list, and for a text with what is no character."""
    found = Given(name, [texts], one=True) if isinstance(texts, str) else _listed(name, texts)
    for text in found.items:
        if not is_whole(text):
            raise ValueError(f"{text!r} holds half of a surrogate pair, which is no character")
    return found


def is_whole(text: str) -> bool:
    """Whether a text is made of characters: JSON can write half of a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def given_boxes(boxes: Boxes | Sequence[Boxes] | None) -> Given[tuple[Box, ...]]:
    """Proposals, or a list of them for each row; None for no proposals. Raises ValueError for what is no box."""
    if boxes is None:
        return Given("lists of proposals", [()], one=True)
    if _depth(boxes) > 2:
        return _listed("lists of proposals", [tuple(map(_box, part)) for part in boxes])
    return Given("lists of proposals", [tuple(map(_box, boxes))], one=True)


def _listed(name: str, items: Any) -> Given[Any]:
    try:
        found = list(items)
    except TypeError:
        raise ValueError(f"{items!r} are no {name}") from None
    if not found:
        raise ValueError(f"no {name} given")
    return Given(name, found, one=False)


def _depth(value: Any) -> int:
    """Levels of lists around a number: a box has one, proposals two."""
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
    """An RGB picture. Raises BadRecord for a file that is none, ValueError for what else is none."""
    if isinstance(picture, str | Path):
        return open_picture(picture, str(picture))
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
    """Its path, or else its place among those given."""
    return str(picture) if isinstance(picture, str | Path) else f"picture {place}"


def prepare_texts(texts: Sequence[str], tokenizer: Tokenizer, config: DataConfig) -> Texts:
    """Texts as evaluation reads them. Raises ValueError for one without words."""
    cleaned = [clean_caption(text, config.max_words) for text in texts]
    for text, clean in zip(texts, cleaned, strict=True):
        if not clean:
            raise ValueError(f"{text!r} holds no words")
    return pad_texts(tokenizer.encode(cleaned, config.max_tokens_evaluation), tokenizer.pad_id)


def unknown_words(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words that the tokenizer can only read as [UNK]."""
    words = clean_caption(text, max_words=len(text)).split()
    return tuple(word for word in words if tokenizer.unk_id in tokenizer.encode([word])[0])
