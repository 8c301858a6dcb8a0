"""Augments PIL pictures by RandAugment without colour operations, because captions name colours (ALBEF §3.5).

Each operation takes and returns an RGB picture of the same size. The results are those of the released operations
(OpenCV) to within 1 grey level at a few pixels (tests/parity/test_images.py), except for two overflows there:
AutoContrast turns every picture white whose darkest value is above 0, and Sharpness wraps around beyond black and
white. `Released` reproduces them (docs/released_code.md, defects 23 and 24).
A `sign` of -1 reverses the geometric operations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import cast

import numpy as np
from PIL import Image, ImageFilter

from diptych.schema import Released

FILL = (128, 128, 128)
"""The colour of pixels from outside the picture."""
LARGEST = 10
"""Magnitudes go up to this."""
Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): output pixel (x, y) is input pixel (ax + by + c, dx + ey + f), counted at pixel centres."""

# --------------------------------------------------------------------------- grey values


def autocontrast(image: Image.Image, *, overflow: bool = False) -> Image.Image:
    """Stretches each channel to 0..255. A channel of a single value stays as it is."""
    table: list[int] = []
    for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema()):
        if high <= low:
            table += range(256)
            continue
        scale = 255 / (high - low)
        # The released code negates `low` as an unsigned byte, which gives 256 - low where -low is meant.
        offset = (256 - low if low else 0) if overflow else -low
        table += _table(scale, scale * offset)
    return image.point(table)


def equalize(image: Image.Image) -> Image.Image:
    """Flattens each channel's histogram. A channel with too few values to spread stays as it is."""
    counts = image.histogram()
    table: list[int] = []
    for channel in range(3):
        histogram = counts[256 * channel : 256 * (channel + 1)]
        present = [count for count in histogram if count]
        step = sum(present[:-1]) // 255
        if step == 0:
            table += range(256)
            continue
        below = accumulate(histogram[:-1], initial=step // 2)
        table += [min(count // step, 255) for count in below]
    return image.point(table)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all values by a factor."""
    return image.point(_table(factor, 0.0) * 3)


def sharpness(image: Image.Image, factor: float, *, overflow: bool = False) -> Image.Image:
    """Moves a picture away from its smoothed version (factor above 1) or towards it. The outermost pixels stay."""
    smooth = image.filter(_SMOOTH)
    if not overflow:
        return Image.blend(smooth, image, factor)  # clips at 0 and 255
    base = np.asarray(smooth, np.float32)
    values = base + np.float32(factor) * (np.asarray(image, np.float32) - base)
    return Image.fromarray((values.astype(np.int32) & 255).astype(np.uint8))


_SMOOTH = ImageFilter.Kernel((3, 3), [1, 1, 1, 1, 5, 1, 1, 1, 1], scale=13)


@lru_cache(maxsize=256)
def _table(scale: float, offset: float) -> list[int]:
    """Returns scale · value + offset for each of the 256 values, clipped and with fractions cut off."""
    return np.clip(np.arange(256) * scale + offset, 0, 255).astype(int).tolist()


# --------------------------------------------------------------------------- geometry


def shear_x(image: Image.Image, factor: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Shifts each row of pixels sideways, in proportion to its distance from the top."""
    return warp(image, (1.0, -factor, 0.0, 0.0, 1.0, 0.0), fill)


def shear_y(image: Image.Image, factor: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Shifts each column of pixels up or down, in proportion to its distance from the left."""
    return warp(image, (1.0, 0.0, 0.0, -factor, 1.0, 0.0), fill)


def translate_x(image: Image.Image, pixels: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Moves a picture to the left by a number of pixels."""
    return _translate(image, pixels, 0.0, fill)


def translate_y(image: Image.Image, pixels: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Moves a picture upwards by a number of pixels."""
    return _translate(image, 0.0, pixels, fill)


def _translate(image: Image.Image, left: float, up: float, fill: tuple[int, int, int]) -> Image.Image:
    if left != int(left) or up != int(up):
        return warp(image, (1.0, 0.0, left, 0.0, 1.0, up), fill)
    moved = Image.new("RGB", image.size, fill)  # whole pixels are the usual case and need no interpolation
    moved.paste(image, (-int(left), -int(up)))
    return moved


def rotate(image: Image.Image, degrees: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Rotates anticlockwise around (W/2, H/2), which as in the released code is half a pixel off the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def warp(image: Image.Image, affine: Affine, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Applies a bilinear affine map that blends into `fill` at the border and rounds to the nearest grey level.

    Pillow alone does neither: it repeats the pixels of the border and cuts fractions off. Therefore the picture gets a
    frame of one pixel, and channels are transformed in floating point.
    """
    a, b, c, d, e, f = affine
    # Pillow's coordinates count from pixel corners and ours from centres; the frame moves the input by one pixel.
    corners = (a, b, c + 1.5 - (a + b) / 2, d, e, f + 1.5 - (d + e) / 2)
    framed = Image.new("RGB", (image.width + 2, image.height + 2), fill)
    framed.paste(image, (1, 1))
    channels = [
        band.convert("F").transform(
            image.size, Image.Transform.AFFINE, corners, Image.Resampling.BILINEAR, fillcolor=value
        )
        for band, value in zip(framed.split(), fill, strict=True)
    ]
    return Image.fromarray(np.rint(np.dstack([np.asarray(channel) for channel in channels])).astype(np.uint8))


# --------------------------------------------------------------------------- the random sequence


def operations(magnitude: int, released: Released = Released()) -> dict[str, Callable[[Image.Image, int], Image.Image]]:
    """Returns the ten operations at a magnitude from 0 to 10, each as `operation(image, sign)`."""
    level = magnitude / LARGEST
    factor = 0.1 + 1.8 * level
    return {
        "Identity": lambda image, sign: image,
        "AutoContrast": lambda image, sign: autocontrast(image, overflow=released.autocontrast_overflow),
        "Equalize": lambda image, sign: equalize(image),
        "Brightness": lambda image, sign: brightness(image, factor),
        "Sharpness": lambda image, sign: sharpness(image, factor, overflow=released.sharpness_overflow),
        "ShearX": lambda image, sign: shear_x(image, sign * 0.3 * level),
        "ShearY": lambda image, sign: shear_y(image, sign * 0.3 * level),
        "TranslateX": lambda image, sign: translate_x(image, sign * 10 * level),
        "TranslateY": lambda image, sign: translate_y(image, sign * 10 * level),
        "Rotate": lambda image, sign: rotate(image, sign * 30 * level),
    }


def draw(names: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, int]]:
    """Draws `count` operations, each of which is applied with probability 0.5. Returns the names and signs of these."""
    drawn = [(rng.choice(names), rng.choice((1, -1)), rng.random() < 0.5) for _ in range(count)]
    return [(name, sign) for name, sign, applied in drawn if applied]


class RandAugment:
    """Applies `count` random operations at a magnitude from 0 to 10 (ALBEF: 2 at 7). It can be pickled."""

    def __init__(self, count: int, magnitude: int, released: Released = Released()) -> None:
        self.count, self.magnitude, self.released = count, magnitude, released
        self._operations = operations(magnitude, released)
        self._names = tuple(self._operations)

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        for name, sign in draw(self._names, self.count, rng):
            image = self._operations[name](image, sign)
        return image

    def __reduce__(self) -> tuple[Callable[..., RandAugment], tuple[int, int, Released]]:
        return RandAugment, (self.count, self.magnitude, self.released)
