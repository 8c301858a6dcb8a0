"""Draws heat maps: the map's colours over the grey picture, and a bar that explains the colours.

A map has h × w patches and a picture H × W pixels; N is any number of values.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from diptych.data.record import Box

COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
"""The colours from cold to hot: viridis (van der Walt and Smith, CC0) at every quarter. Brightness grows with heat, so
that the map can be read without colour vision too."""
OPACITY = 0.6
"""The weight of the colour against the picture."""
FOUND, EXPECTED = (255, 255, 255), (255, 96, 0)
"""The colours that outline the model's box and the right box. The scale does not have them."""
BAR, MEDIUM_GREY = 14, 128
DRAWN = 1_024
"""Largest side of a drawing in pixels unless another is asked for. A drawing is meant for looking at."""
BAND = 1 << 20
"""Number of pixels that are coloured at once. A pixel takes about 100 bytes meanwhile."""


def enlarge(heat: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Enlarges a map to a picture's `size` (width, height) as the released code does: bicubic, corners not aligned.

    There is no antialiasing, and overshoot leaves some values below 0. Raises ValueError for a map that is not finite.
    """
    if not heat.isfinite().all():
        raise ValueError("the heat map holds values that are not finite: the model's weights or pixels are broken")
    width, height = size
    enlarged = F.interpolate(heat.detach()[None, None].float(), (height, width), mode="bicubic", align_corners=False)
    return enlarged[0, 0]


def heat_colours(values: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N 3"]:
    """Returns red, green and blue in 0..255 for heat in 0..1. Values outside are clipped.

    >>> heat_colours(np.array([0.0, 1.0])).tolist()
    [[68.0, 1.0, 84.0], [253.0, 231.0, 37.0]]
    """
    places = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, places, channel) for channel in COLOURS.T], axis=-1)


def heat_picture(
    image: Image.Image,
    heat: Float[Tensor, "h w"],
    box: Box | None = None,
    expected: Box | None = None,
    hottest: float | None = None,
) -> Image.Image:
    """Draws the map over the grey picture, and below it a bar of the colours from 0 to `hottest`, on medium grey.

    `hottest` is the heat that gets the last colour, by default the map's own peak. Maps that are to be compared need
    the same `hottest`. `box` is outlined in white and the `expected` box in orange.

    Raises ValueError for a map that is not finite, and for a `hottest` that is not above 0.
    """
    values = enlarge(heat, image.size).cpu().numpy()
    if hottest is not None and not hottest > 0:
        raise ValueError(f"hottest is {hottest}: the heat of the last colour lies above 0")
    top = max(float(values.max()), 0.0) if hottest is None else hottest
    page = Image.new("RGB", (image.width, image.height + BAR))
    rows = max(1, BAND // image.width)
    for start in range(0, image.height, rows):
        band = values[start : start + rows].astype(np.float64)
        grey = np.asarray(image.crop((0, start, image.width, start + len(band))).convert("L"))
        page.paste(_blend(grey, band / top if top else np.zeros_like(band)), (0, start))
    for outlined, colour in ((expected, EXPECTED), (box, FOUND)):
        if outlined is not None:
            _outline(page, image.size, outlined, colour)
    page.paste(_bar(image.width, top), (0, image.height))
    return page


def scaled_box(box: Box, size: tuple[int, int], drawn: tuple[int, int]) -> Box:
    """Returns a box in pixels of a picture of `size` in those of the same picture at the size `drawn`.

    >>> scaled_box((10.0, 20.0, 30.0, 40.0), (100, 200), (50, 100))
    (5.0, 10.0, 15.0, 20.0)
    """
    x, y, width, height = box
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    return x * across, y * down, width * across, height * down


def _blend(grey: UInt8[np.ndarray, "H W"], share: Float[np.ndarray, "H W"]) -> Image.Image:
    mixed = (1 - OPACITY) * grey[..., None] + OPACITY * heat_colours(share)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _bar(width: int, top: float) -> Image.Image:
    """Draws the colours from 0 on the left to `top` on the right, with labels at both ends."""
    share = np.broadcast_to(np.linspace(0, 1, width), (BAR, width))
    bar = _blend(np.full((BAR, width), MEDIUM_GREY, np.uint8), share)
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(BAR - 4)
    draw.text((2, BAR // 2), "0", "white", font, anchor="lm")
    draw.text((width - 2, BAR // 2), f"{top:.2g}", "black", font, anchor="rm")
    return bar


def _outline(page: Image.Image, size: tuple[int, int], box: Box, colour: tuple[int, int, int]) -> None:
    """Draws a line of two pixels along the inside of the box, with a dark line beside it, to show on every colour."""
    x, y, width, height = box
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + width), size[0]) - 1, min(round(y + height), size[1]) - 1
    draw = ImageDraw.Draw(page)
    for inset, ink in ((2, (0, 0, 0)), (0, colour), (1, colour)):
        if right - left >= 2 * inset and bottom - top >= 2 * inset:
            draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=ink)
