"""Heat maps as pictures: the grey picture under the map's colours, with a bar that says what the colours mean.

h × w patches of a map, H × W pixels of a picture, N values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from diptych.data.record import Box

COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
"""Cold to hot: viridis (van der Walt and Smith, CC0) at every quarter. Brightness grows with heat, so that it reads
without colour vision too."""
OPACITY = 0.6
"""Weight of the colour against the picture."""
FOUND, EXPECTED = (255, 255, 255), (255, 96, 0)
"""Outlines of the box that was found and of the right one: no colours of the scale."""
BAR, MEDIUM_GREY, GAP = 14, 128, 4


def enlarge(heat: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """The map at a picture's `size` (width, height), as released: bicubic, corners not aligned, no antialiasing.

    Overshoot leaves some values below 0. Raises ValueError for a map that is not finite.
    """
    if not heat.isfinite().all():
        raise ValueError("the heat map holds values that are not finite: the model's weights or pixels are broken")
    width, height = size
    grown = F.interpolate(heat.detach()[None, None].float(), (height, width), mode="bicubic", align_corners=False)
    return grown[0, 0]


def heat_colours(values: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N 3"]:
    """Red, green and blue in 0..255 for heat in 0..1; what lies outside counts as the nearer end.

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
    """The map on the picture in grey, and below it a bar of the colours from 0 to `hottest`.

    `hottest` is the heat that gets the last colour; without it the map's own peak. Several maps on one scale need the
    same. `box` is outlined in white, the `expected` one in orange. The bar shows the colours on medium grey.

    Raises ValueError for a map that is not finite and a `hottest` that is not above 0.
    """
    values = enlarge(heat, image.size).cpu().numpy().astype(np.float64)
    if hottest is not None and not hottest > 0:
        raise ValueError(f"hottest is {hottest}: the heat of the last colour lies above 0")
    top = max(float(values.max()), 0.0) if hottest is None else hottest
    page = Image.new("RGB", (image.width, image.height + BAR))
    share = values / top if top else np.zeros_like(values)
    page.paste(_blend(np.asarray(image.convert("L")), share), (0, 0))
    for outlined, colour in ((expected, EXPECTED), (box, FOUND)):
        if outlined is not None:
            _outline(page, image.size, outlined, colour)
    page.paste(_bar(image.width, top), (0, image.height))
    return page


def token_pictures(
    image: Image.Image, tokens: Float[Tensor, "N h w"], words: Sequence[str], columns: int = 4
) -> Image.Image:
    """One heat map for each of N tokens on one common scale, its word above it, in rows of `columns`.

    Raises ValueError unless there are as many words as maps, at least one.
    """
    if len(words) != len(tokens) or not words:
        raise ValueError(f"{len(tokens)} maps and {len(words)} words: give one word for each map, at least one")
    columns = min(columns, len(words))
    hottest = max(float(enlarge(heat, image.size).max()) for heat in tokens)
    width, height = image.width + GAP, image.height + 2 * BAR + GAP
    page = Image.new("RGB", (columns * width - GAP, -(-len(words) // columns) * height - GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(BAR - 4)
    for place, (heat, word) in enumerate(zip(tokens, words, strict=True)):
        left, top = place % columns * width, place // columns * height
        draw.text((left, top), word, "black", font)
        page.paste(heat_picture(image, heat, hottest=hottest if hottest > 0 else None), (left, top + BAR))
    return page


def _blend(grey: UInt8[np.ndarray, "H W"], share: Float[np.ndarray, "H W"]) -> Image.Image:
    mixed = (1 - OPACITY) * grey[..., None] + OPACITY * heat_colours(share)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _bar(width: int, top: float) -> Image.Image:
    """The colours from 0 on the left to `top` on the right, labelled at both ends."""
    share = np.broadcast_to(np.linspace(0, 1, width), (BAR, width))
    bar = _blend(np.full((BAR, width), MEDIUM_GREY, np.uint8), share)
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(BAR - 4)
    draw.text((2, BAR // 2), "0", "white", font, anchor="lm")
    draw.text((width - 2, BAR // 2), f"{top:.2g}", "black", font, anchor="rm")
    return bar


def _outline(page: Image.Image, size: tuple[int, int], box: Box, colour: tuple[int, int, int]) -> None:
    """A line of two pixels along the inside of the box, dark beside it, so that it shows on every colour."""
    x, y, width, height = box
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + width), size[0]) - 1, min(round(y + height), size[1]) - 1
    draw = ImageDraw.Draw(page)
    for inset, ink in ((2, (0, 0, 0)), (0, colour), (1, colour)):
        if right - left >= 2 * inset and bottom - top >= 2 * inset:
            draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=ink)
