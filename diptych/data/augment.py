"""RandAugment without colour operations (ALBEF §3.5: captions name colours), on PIL.

Each operation takes and gives an RGB picture of the same size. They compute what the released operations (OpenCV)
compute, within 1 grey level at a few pixels (tests/parity/test_images.py), but for two overflows of those:
AutoContrast turns every picture white whose darkest value is above 0, and Sharpness wraps around beyond black and
white. `Released` keeps them (docs/released_code.md, defects 23 and 24).
`sign` is +1 or -1 and turns the geometric operations the other way.
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
"""What comes in from outside the picture."""
LARGEST = 10
"""Magnitudes are of 10."""
Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): output pixel (x, y) is input pixel (ax + by + c, dx + ey + f), counted at pixel centres."""
Operation = Callable[[Image.Image, float], Image.Image]

# --------------------------------------------------------------------------- grey values


def autocontrast(image: Image.Image, *, overflow: bool = False) -> Image.Image:
    """Stretch each channel to 0..255; a channel of one value stays."""
    table: list[int] = []
    for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema()):
        if high <= low:
            table += range(256)
            continue
        scale = 255 / (high - low)
        # The released code negates `low` as an unsigned byte: 256 - low, where -low is meant.
        offset = (256 - low if low else 0) if overflow else -low
        table += _table(scale, scale * offset)
    return image.point(table)


def equalize(image: Image.Image) -> Image.Image:
    """Flatten each channel's histogram; a channel with too few values to spread stays."""
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
    return image.point(_table(factor, 0.0) * 3)


def sharpness(image: Image.Image, factor: float, *, overflow: bool = False) -> Image.Image:
    """Away from (above 1) or towards (below 1) a smoothed picture. The outermost pixels stay."""
    smooth = image.filter(_SMOOTH)
    if not overflow:
        return Image.blend(smooth, image, factor)  # clips at 0 and 255
    base = np.asarray(smooth, np.float32)
    values = base + np.float32(factor) * (np.asarray(image, np.float32) - base)
    return Image.fromarray((values.astype(np.int32) & 255).astype(np.uint8))


_SMOOTH = ImageFilter.Kernel((3, 3), [1, 1, 1, 1, 5, 1, 1, 1, 1], scale=13)


@lru_cache(maxsize=256)
def _table(scale: float, offset: float) -> list[int]:
    """scale · value + offset for the 256 values, clipped, fractions cut off."""
    return np.clip(np.arange(256) * scale + offset, 0, 255).astype(int).tolist()


# --------------------------------------------------------------------------- geometry


def shear_x(image: Image.Image, factor: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    return warp(image, (1.0, -factor, 0.0, 0.0, 1.0, 0.0), fill)


def shear_y(image: Image.Image, factor: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    return warp(image, (1.0, 0.0, 0.0, -factor, 1.0, 0.0), fill)


def translate_x(image: Image.Image, pixels: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """To the left by a number of pixels."""
    return _translate(image, pixels, 0.0, fill)


def translate_y(image: Image.Image, pixels: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Upwards by a number of pixels."""
    return _translate(image, 0.0, pixels, fill)


def _translate(image: Image.Image, left: float, up: float, fill: tuple[int, int, int]) -> Image.Image:
    if left != int(left) or up != int(up):
        return warp(image, (1.0, 0.0, left, 0.0, 1.0, up), fill)
    moved = Image.new("RGB", image.size, fill)  # whole pixels, the usual case, need no interpolation
    moved.paste(image, (-int(left), -int(up)))
    return moved


def rotate(image: Image.Image, degrees: float, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Anticlockwise around (W/2, H/2), which is half a pixel off the centre, as released."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def warp(image: Image.Image, affine: Affine, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """Bilinear affine map that blends into `fill` at the border, rounded to the nearest grey level.

    Pillow alone does neither: it repeats the border's pixels and cuts fractions off. Hence a frame of one pixel, and
    channels in floating point.
    """
    a, b, c, d, e, f = affine
    # Pillow's coordinates count from pixel corners, ours from centres; the frame moves the input by one.
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
    """The ten operations at a magnitude of 10, each as `operation(image, sign)`."""
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
    """Names and signs of the operations to apply: `count` are drawn, each is applied with probability 0.5."""
    drawn = [(rng.choice(names), rng.choice((1, -1)), rng.random() < 0.5) for _ in range(count)]
    return [(name, sign) for name, sign, applied in drawn if applied]


class RandAugment:
    """`count` operations at `magnitude` of 10 (ALBEF: 2 at 7). Picklable; draws from the generator it is handed."""

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
