"""Decodes pictures that clients send, and encodes drawn heat maps."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import torch
from PIL import Image

from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.workers import Work
from diptych.data.heatmap import heat_picture
from diptych.data.picture_headers import jpeg_scans
from diptych.data.pictures import SLOW, check_picture, open_picture
from diptych.data.record import BadRecord, Box

USUAL_SCANS = 10
"""Scans of a JPEG that cost no more than one. Twice as many cost twice the pixels."""
JPEG2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""What JPEG2000 files begin with. They are refused: 391 bytes of them can keep the decoder busy for a second."""
NOT_DECODED = ("JPEG2000", "HEIF", SLOW)
"""Formats that are refused."""
DRAWN = 1_024
"""Largest side of a drawn heat map in pixels. It is meant for looking at, and drawing takes 100 bytes per pixel."""
DRAWN_IN_FULL = 16
"""Heat maps of one answer that are drawn at that size. More are drawn smaller, to the same number of pixels in all."""


def charge_upload(content: str, name: str, work: Work) -> tuple[int, int]:
    """Charges the pixels of the picture in a field called `name` to the request's work, by its header.

    Nothing is decoded. Returns the width and height that the header says. Raises ApiError for anything that is not a
    picture, and for too many pixels.
    """
    work.go_on()
    raw, cost = _decoded(content, name), 1
    if raw.startswith(JPEG2000):
        raise ApiError("bad_picture", f"{name}: JPEG2000 is not decoded here, for it takes too long: send JPEG or PNG")
    if raw.startswith(b"\xff\xd8"):
        cost = max(1, -(-jpeg_scans(raw) // USUAL_SCANS))
    most_pixels, affordable = work.limits.pixels, work.pixels_left // cost
    try:
        width, height = check_picture(raw, name, min(most_pixels, affordable), "--pixels", NOT_DECODED)
    except BadRecord as bad:
        if bad.reason == "picture too large":
            if affordable < most_pixels:
                work.spend(work.pixels_left + 1, name)
            raise ApiError("picture_too_large", f"{name}: {bad.detail}") from None
        raise ApiError("bad_picture", str(bad)) from None
    work.spend(width * height * cost, name)
    return width, height


def open_upload(content: str, name: str, work: Work) -> Image.Image:
    """Decodes the RGB picture in a field called `name`, whose pixels `charge_upload` has charged. Raises ApiError."""
    work.go_on()
    try:
        return open_picture(_decoded(content, name), name, None, work.limits.pixels, "--pixels", NOT_DECODED)
    except BadRecord as bad:
        raise ApiError("bad_picture", str(bad)) from None


def _decoded(content: str, name: str) -> bytes:
    if content.startswith("data:"):
        raise ApiError("bad_picture", f"{name}: send the base64 alone, without 'data:…,' before it")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        message = f"{name}: not base64. Send the bytes of a picture file in base64 without line breaks, no path or URL"
        raise ApiError("bad_picture", message) from None


class HeatCanvas:
    """A sent picture at the size at which `maps` heat maps are drawn over it.

    The picture is decoded again, because its pixels are not kept while a request waits for the model.
    """

    def __init__(self, content: str, name: str, maps: int, work: Work) -> None:
        charge_upload(content, name, work)
        picture = open_upload(content, name, work)
        width, height = picture.size
        side = int(DRAWN * min(1, DRAWN_IN_FULL / maps) ** 0.5)
        picture.thumbnail((side, side))
        self._picture = picture
        self._scale = picture.width / width, picture.height / height

    def draw(self, heat: np.ndarray, box: Box) -> str:
        """Draws a heat map [h, w] and a box over the picture. Returns a PNG in base64."""
        (scale_x, scale_y), (x, y, width, height) = self._scale, box
        scaled = (x * scale_x, y * scale_y, width * scale_x, height * scale_y)
        stream = io.BytesIO()
        heat_picture(self._picture, torch.from_numpy(heat), scaled).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()
