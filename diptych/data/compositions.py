"""Reads published tests of compositions: Winoground, SugarCrepe, ARO and VALSE. The user supplies the pictures.

Each of their items has one picture or two, and two texts, of which the first is true of the first picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.printable import brief

VALID_VOTES = 2
"""Of three annotators of VALSE, so many must have found the caption true, and the foil not (Parcalabescu et al., 2022,
§4.4). The other items are left out."""
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp")
"""Endings with which a named picture is looked for: Winoground's file names have none."""


@dataclass(frozen=True)
class Item:
    """One item of a published test."""

    name: str
    pictures: tuple[Path, ...]
    """One picture, or two, of which each is described by the text in its place."""
    texts: tuple[str, str]
    box: tuple[float, float, float, float] | None = None
    """The part of the picture that counts: x, y, width and height in pixels. None for all of it."""


def read_items(file: Path, images: Path) -> tuple[Item, ...]:
    """Reads the items of a published file, whose kind is told by its fields.

    - Winoground: JSON lines (or a list) with `image_0`, `image_1`, `caption_0` and `caption_1`;
    - SugarCrepe: `{number: {"filename", "caption", "negative_caption"}}`;
    - ARO: a list with `image_path`, `true_caption`, `false_caption`, and `bbox_x` … where a part counts;
    - VALSE: `{name: {"image_file", "caption", "foil" or "foils", "mturk"}}`; only validated foils are read.

    Raises ValueError for another form or a missing field, and FileNotFoundError naming a picture that is not there.
    """
    text = file.read_text(encoding="utf-8")
    try:
        plain = json.loads(text)
    except json.JSONDecodeError:
        plain = [_line(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if isinstance(plain, dict) and not _known(plain):
        named = [(str(name), each) for name, each in plain.items()]
    else:
        named = [(str(number), each) for number, each in enumerate(plain if isinstance(plain, list) else [plain])]
    items = []
    for name, each in named:
        reader = _known(each)
        if reader is None:
            raise ValueError(
                f"{file}, item {name}: {brief(each)} is no item of Winoground, SugarCrepe, ARO or VALSE. Their fields "
                f"are: {'; '.join(', '.join(fields) for fields in READERS)}"
            )
        try:
            if (item := reader(name, each, images)) is not None:
                items.append(item)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{file}, item {name}: {error} is missing or of another kind in {brief(each)}") from None
    if not items:
        raise ValueError(f"{file} holds no item")
    return tuple(items)


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {number} could not be read as JSON: {error}") from None


def _winoground(name: str, plain: Mapping[str, Any], images: Path) -> Item:
    pictures = tuple(_found(images, plain[f"image_{place}"]) for place in range(2))
    return Item(name, pictures, (plain["caption_0"], plain["caption_1"]))


def _sugarcrepe(name: str, plain: Mapping[str, Any], images: Path) -> Item:
    return Item(name, (_found(images, plain["filename"]),), (plain["caption"], plain["negative_caption"]))


def _aro(name: str, plain: Mapping[str, Any], images: Path) -> Item:
    texts = plain["true_caption"], plain["false_caption"]
    item = Item(name, (_found(images, plain["image_path"]),), texts)
    if "bbox_x" not in plain:
        return item
    x, y, width, height = (float(plain[f"bbox_{side}"]) for side in "xywh")
    return replace(item, box=(x, y, width, height))


def _valse(name: str, plain: Mapping[str, Any], images: Path) -> Item | None:
    if plain["mturk"]["caption"] < VALID_VOTES:
        return None
    caption, foil = (
        each if isinstance(each, str) else each[0]
        for each in (plain["caption"], plain["foil"] if "foil" in plain else plain["foils"])
    )
    return Item(name, (_found(images, plain["image_file"]),), (caption, foil))


READERS: Mapping[tuple[str, ...], Callable[[str, Mapping[str, Any], Path], Item | None]] = {
    ("image_0", "image_1", "caption_0", "caption_1"): _winoground,
    ("filename", "caption", "negative_caption"): _sugarcrepe,
    ("image_path", "true_caption", "false_caption"): _aro,
    ("image_file", "caption", "mturk"): _valse,
}
"""Readers by the fields that tell their items."""


def _known(plain: Any) -> Callable[[str, Mapping[str, Any], Path], Item | None] | None:
    if not isinstance(plain, dict):
        return None
    return next((reader for fields, reader in READERS.items() if set(fields) <= set(plain)), None)


def _found(images: Path, name: str) -> Path:
    """Finds a picture by its name, also without ending. Raises FileNotFoundError."""
    places = [images / f"{name}{suffix}" for suffix in SUFFIXES]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no picture {name} in {images}, with or without {', '.join(SUFFIXES[1:])}")
