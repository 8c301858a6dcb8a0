"""Sprite sets: named cut-out pictures, drawn once, kept on disk and in memory.

N sprites, S pixels on a sprite's longer side.
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
"""Raise when the drawing changes, so that kept pixels are drawn anew."""

Drawn = dict[str, np.ndarray]
"""What is kept on disk: `keys` [N], `extents` [N, 2] (width, height), `pixels` [N, S, S, 4]."""


@dataclass(frozen=True)
class Sprite:
    key: str
    """The same in every language: the character, or the shape's name."""
    noun: Noun
    group: str


@dataclass(frozen=True, eq=False)
class SpriteSet:
    """Named RGBA pictures, each in the top left corner of its S×S square, touching its far side."""

    sprites: tuple[Sprite, ...]
    pixels: np.ndarray
    """uint8 [N, S, S, 4], colours not multiplied by alpha."""
    extents: tuple[tuple[int, int], ...]
    """Width and height of each in pixels of `pixels`; the longer one is S."""
    _scaled: dict[tuple[int, int], tuple[Image.Image, Image.Image]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.sprites)

    def box(self, sprite: int, side: int) -> tuple[int, int]:
        """Width and height of the sprite when its longer side is `side` pixels."""
        width, height = self.extents[sprite]
        longest = self.pixels.shape[1]
        return max(1, round(width * side / longest)), max(1, round(height * side / longest))

    def scaled(self, sprite: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        """The sprite's RGB picture and its mask (L), both of `size` pixels. Kept in memory."""
        found = self._scaled.get((sprite, max(size)))
        if found is None or found[1].size != size:
            width, height = self.extents[sprite]
            picture = Image.fromarray(self.pixels[sprite, :height, :width]).convert("RGBa")
            picture = picture.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
            found = picture.convert("RGB"), picture.getchannel("A")
            self._scaled[sprite, max(size)] = found
        return found


def sprite_set(config: ScenesConfig) -> SpriteSet:
    """The sprites that the configuration names, large enough for its picture size. Raises ValueError."""
    side = -(-config.size // 16) * 16
    return _sprite_set(config.sprites, config.names == "curated", config.language, side)


@lru_cache(maxsize=8)
def _sprite_set(kind: str, curated: bool, language: str, side: int) -> SpriteSet:
    if kind == "shapes" and language != "en":
        raise ValueError(f"scenes.language={language!r}: shapes are named in English only; use scenes.sprites=openmoji")
    entries = shape_entries(curated) if kind == "shapes" else openmoji.entries(curated, language)
    versions = "pillow" + Image.__version__ if kind == "shapes" else openmoji.versions()
    wanted = [key for key, _, _ in entries]
    digest = zlib.crc32("|".join(wanted).encode())
    path = cache_folder() / f"sprites{_FORMAT}-{kind}-{versions}-{side}-{digest:08x}.npz"
    drawn = _load(path)
    if drawn is None:
        drawn = _draw(kind, wanted, side)
        _keep(path, drawn)
    by_key = {key: Sprite(key, english(name), group) for key, name, group in entries}
    extents = tuple((width, height) for width, height in drawn["extents"].tolist())
    return SpriteSet(tuple(by_key[key] for key in drawn["keys"].tolist()), drawn["pixels"], extents)


def _load(path: Path) -> Drawn | None:
    """What was kept, or None when there is nothing readable."""
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in ("keys", "extents", "pixels")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _draw(kind: str, wanted: list[str], side: int) -> Drawn:
    if kind == "shapes":
        drawn = [(key, openmoji.fit(_cut(draw_shape(key, 2 * side)), side)) for key in wanted]
    else:
        drawn = list(openmoji.draw(wanted, side))
    pixels = np.zeros((len(drawn), side, side, 4), dtype=np.uint8)
    for row, (_, picture) in zip(pixels, drawn, strict=True):
        row[: picture.height, : picture.width] = np.asarray(picture)
    keys, pictures = zip(*drawn, strict=True)
    return {"keys": np.array(keys), "extents": np.array([picture.size for picture in pictures]), "pixels": pixels}


def _cut(picture: Image.Image) -> Image.Image:
    return picture.crop(picture.getbbox())


def _keep(path: Path, drawn: Drawn) -> None:
    """Write atomically. A cache that cannot be written only costs the next start its time."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, keys=drawn["keys"], extents=drawn["extents"], pixels=drawn["pixels"])
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
