"""Provides sprite sets: named cut-out pictures that are drawn once and kept on disk and in memory.

N is the number of sprites, and S the number of pixels of a sprite's longer side.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.cache import cache_folder
from diptych.schema import ScenesConfig
from diptych.synthetic import openmoji
from diptych.synthetic.nouns import Noun, english
from diptych.synthetic.shapes import draw_shape, shape_entries

_FORMAT = 2
"""This number must be raised when the drawing changes, so that cached pixels are drawn anew."""

Drawings = dict[str, np.ndarray]
"""The content of a cache file: `keys` [N], `extents` [N, 2] (width, height), `pixels` [N, S, S, 4]."""


@dataclass(frozen=True)
class Sprite:
    """Names a cut-out picture."""

    key: str
    """The character, or the name of the shape. It is the same in every language."""
    noun: Noun
    group: str


@dataclass(frozen=True, eq=False)
class SpriteSet:
    """Holds named RGBA pictures. Each is in the top left corner of an S×S square and as large as fits."""

    sprites: tuple[Sprite, ...]
    pixels: np.ndarray
    """The pictures as uint8 [N, S, S, 4], with colours not multiplied by alpha."""
    extents: tuple[tuple[int, int], ...]
    """The width and height of each picture in `pixels`. The longer one is S."""
    _scaled: dict[tuple[int, int], tuple[Image.Image, Image.Image]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.sprites)

    def box(self, sprite: int, side: int) -> tuple[int, int]:
        """Returns the width and height of a sprite whose longer side is `side` pixels."""
        width, height = self.extents[sprite]
        longest = self.pixels.shape[1]
        return max(1, round(width * side / longest)), max(1, round(height * side / longest))

    def scaled(self, sprite: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        """Returns a sprite's RGB picture and its mask (L), both of `size` pixels. They are kept in memory."""
        layers = self._scaled.get((sprite, max(size)))
        if layers is None or layers[1].size != size:
            width, height = self.extents[sprite]
            picture = Image.fromarray(self.pixels[sprite, :height, :width]).convert("RGBa")
            picture = picture.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
            layers = picture.convert("RGB"), picture.getchannel("A")
            self._scaled[sprite, max(size)] = layers
        return layers


def sprite_set(config: ScenesConfig) -> SpriteSet:
    """Returns the sprites that the configuration names, large enough for its picture size. Raises ValueError."""
    side = -(-config.size // 16) * 16
    return _sprite_set(config.sprites, config.names == "curated", config.language, side)


@lru_cache(maxsize=8)
def _sprite_set(kind: str, curated: bool, language: str, side: int) -> SpriteSet:
    if kind == "shapes" and language != "en":
        raise ValueError(f"scenes.language={language!r}: shapes are named in English only; use scenes.sprites=openmoji")
    entries = shape_entries(curated) if kind == "shapes" else openmoji.entries(curated, language)
    versions = "pillow" + Image.__version__ if kind == "shapes" else openmoji.versions()
    keys = [key for key, _, _ in entries]
    digest = zlib.crc32("|".join(keys).encode())
    path = cache_folder() / f"sprites{_FORMAT}-{kind}-{versions}-{side}-{digest:08x}.npz"
    drawings = _load(path)
    if drawings is None:
        drawings = _draw(kind, keys, side)
        _save(path, drawings)
    by_key = {key: Sprite(key, english(name), group) for key, name, group in entries}
    extents = tuple((width, height) for width, height in drawings["extents"].tolist())
    return SpriteSet(tuple(by_key[key] for key in drawings["keys"].tolist()), drawings["pixels"], extents)


def _load(path: Path) -> Drawings | None:
    """Reads a cache file. Returns None if there is none that can be read."""
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in ("keys", "extents", "pixels")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _draw(kind: str, wanted: list[str], side: int) -> Drawings:
    if kind == "shapes":
        sprites = [(key, openmoji.fit(_crop(draw_shape(key, 2 * side)), side)) for key in wanted]
    else:
        sprites = list(openmoji.draw(wanted, side))
    pixels = np.zeros((len(sprites), side, side, 4), dtype=np.uint8)
    for square, (_, picture) in zip(pixels, sprites, strict=True):
        square[: picture.height, : picture.width] = np.asarray(picture)
    keys, pictures = zip(*sprites, strict=True)
    return {"keys": np.array(keys), "extents": np.array([picture.size for picture in pictures]), "pixels": pixels}


def _crop(picture: Image.Image) -> Image.Image:
    return picture.crop(picture.getbbox())


def _save(path: Path, drawings: Drawings) -> None:
    """Writes a cache file atomically. If it cannot be written, the next start draws the sprites again."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, keys=drawings["keys"], extents=drawings["extents"], pixels=drawings["pixels"])
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
