"""Decodes pictures that clients send, and encodes drawn heat maps."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import torch
from PIL import Image

from diptych.apps.serve.errors import ApiError
from diptych.data.heatmap import heat_picture
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord, Box

MOST_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; thousands, each over all pixels, are an attack on the decoder's time."""
DRAWN = 1_024
"""Largest side of a drawn heat map in pixels. It is meant for looking at, and drawing takes 100 bytes per pixel."""


def open_upload(content: str, name: str, most_pixels: int) -> Image.Image:
    """Decodes the RGB picture in a field called `name`.

    Raises ApiError for anything that is not a picture, and for more than `most_pixels`.
    """
    raw = _decoded(content, name)
    if raw.startswith(b"\xff\xd8") and (scans := raw.count(b"\xff\xda")) > MOST_SCANS:
        raise ApiError("bad_picture", f"{name}: a JPEG of {scans} scans; at most {MOST_SCANS} are allowed")
    try:
        return open_picture(raw, name, most_pixels=most_pixels, limit="--pixels")
    except BadRecord as bad:
        if bad.reason == "picture too large":
            raise ApiError("picture_too_large", f"{name}: {bad.detail}") from None
        raise ApiError("bad_picture", str(bad)) from None


def _decoded(content: str, name: str) -> bytes:
    if content.startswith("data:"):
        raise ApiError("bad_picture", f"{name}: send the base64 alone, without 'data:…,' before it")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        message = f"{name}: not base64. Send the bytes of a picture file in base64 without line breaks, no path or URL"
        raise ApiError("bad_picture", message) from None


def draw_heat(content: str, heat: np.ndarray, box: Box, name: str, most_pixels: int) -> str:
    """Draws a heat map [h, w] and a box over a sent picture. Returns a PNG in base64.

    The picture is decoded again, because its pixels are not kept while a request waits for the model.
    """
    picture = open_upload(content, name, most_pixels)
    width, height = picture.size
    picture.thumbnail((DRAWN, DRAWN))
    scale_x, scale_y = picture.width / width, picture.height / height
    x, y, box_width, box_height = box
    scaled = (x * scale_x, y * scale_y, box_width * scale_x, box_height * scale_y)
    stream = io.BytesIO()
    heat_picture(picture, torch.from_numpy(heat), scaled).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
