"""From what a client sends to a picture in memory, and a picture back to base64."""

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
"""Of a JPEG. Encoders write about ten; thousands, each over all pixels, are an attack on the decoder's time."""
DRAWN = 1_024
"""Pixels of a drawn heat map's longer side at most: it is to be looked at, and drawing takes 100 bytes a pixel."""


def open_upload(content: str, name: str, most_pixels: int) -> Image.Image:
    """The RGB picture in a field called `name`. Raises ApiError for what is none, and for more than `most_pixels`."""
    raw = _decoded(content, name)
    if raw.startswith(b"\xff\xd8") and (scans := raw.count(b"\xff\xda")) > MOST_SCANS:
        raise ApiError("bad_picture", f"{name}: a JPEG of {scans} scans; {MOST_SCANS} are the most")
    try:
        return open_picture(raw, name, most_pixels=most_pixels)
    except BadRecord as bad:
        if bad.reason == "picture too large":
            message = f"{name}: {bad.detail} pixels; {most_pixels:,} in all are the most here"
            raise ApiError("picture_too_large", message) from None
        raise ApiError("bad_picture", str(bad)) from None


def _decoded(content: str, name: str) -> bytes:
    if content.startswith("data:"):
        raise ApiError("bad_picture", f"{name}: send the base64 alone, without 'data:…,' before it")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        message = f"{name}: no base64. Send a picture file's bytes in base64 without line breaks, no path and no URL"
        raise ApiError("bad_picture", message) from None


def draw_heat(content: str, heat: np.ndarray, box: Box, name: str, most_pixels: int) -> str:
    """The picture that was sent under its heat map [h, w], as PNG in base64. Decoded again: nobody kept the pixels."""
    picture = open_upload(content, name, most_pixels)
    width, height = picture.size
    picture.thumbnail((DRAWN, DRAWN))
    across, down = picture.width / width, picture.height / height
    x, y, wide, high = box
    drawn = heat_picture(picture, torch.from_numpy(heat), (x * across, y * down, wide * across, high * down))
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
