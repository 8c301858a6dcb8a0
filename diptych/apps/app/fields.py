"""Reads the pictures and texts that visitors send, and limits them before anything is decoded.

Gradio's components pass on what the browser sent without decoding it (`preprocess=False`), so that the bytes and pixels
of a file are checked before it is opened. Gradio has checked by then that the file was really uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gradio as gr
from PIL import Image

from diptych.data.pictures import LARGEST_PIXELS, open_picture
from diptych.predict.inputs import is_whole
from diptych.reading import open_regular

MOST_BYTES = 20 * 2**20
"""Largest size of an uploaded file."""
MOST_LETTERS = 2_000
"""Longest text. Models read far less of it."""


@runtime_checkable
class Field(Protocol):
    """An input field: its component, and how to read what the component sends."""

    def make(self) -> gr.components.Component: ...

    def read(self, sent: Any) -> Any:
        """Raises ValueError for unusable input."""
        ...


@dataclass(frozen=True)
class PictureField:
    label: str = "Picture"
    optional: bool = False
    largest_pixels: int = LARGEST_PIXELS

    def make(self) -> gr.components.Component:
        return gr.Image(
            type="filepath", label=self.label, sources=["upload"], buttons=[], height=250, alt_text=self.label,
            elem_classes="picture-field",
        )  # fmt: skip

    def read(self, sent: Any) -> Image.Image | None:
        if sent is None:
            if self.optional:
                return None
            raise ValueError(f"no {self.label.lower()} yet: drop one on its frame, or click an example")
        if not isinstance(sent, Mapping) or not isinstance(sent.get("path"), str):
            raise ValueError(f"{self.label} is not an uploaded file: drop one on its frame, or click an example")
        return read_picture(Path(sent["path"]), str(sent.get("orig_name") or self.label), self.largest_pixels)


@dataclass(frozen=True)
class TextField:
    label: str
    placeholder: str = ""
    optional: bool = False

    def make(self) -> gr.components.Component:
        return gr.Textbox(label=self.label, placeholder=self.placeholder, max_length=MOST_LETTERS, lines=1)

    def read(self, sent: Any) -> str:
        text = _text(sent, self.label)
        if len(text) > MOST_LETTERS:
            raise ValueError(f"{self.label} has {len(text):,} letters: write at most {MOST_LETTERS:,}")
        if not text and not self.optional:
            raise ValueError(f"no {self.label.lower()} yet: write one, or click an example")
        return text


@dataclass(frozen=True)
class PercentField:
    """A share in percent, which may be left empty."""

    label: str
    placeholder: str = ""

    def make(self) -> gr.components.Component:
        return gr.Textbox(label=self.label, placeholder=self.placeholder, max_length=10, lines=1)

    def read(self, sent: Any) -> float | None:
        """Returns a number in 0..1, or None for an empty field."""
        text = _text(sent, self.label).removesuffix("%").strip()
        if not text:
            return None
        try:
            share = float(text.replace(",", ".")) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError(f"{self.label}: write a number from 0 to 100, or leave it empty")
        return share


def _text(sent: Any, label: str) -> str:
    if sent is not None and not (isinstance(sent, str) and is_whole(sent)):
        raise ValueError(f"{label} is not a text")
    return (sent or "").strip()


def read_picture(path: Path, name: str, largest_pixels: int = LARGEST_PIXELS) -> Image.Image:
    """Opens the picture in a file. Raises ValueError for too many bytes or pixels, and for a file that is no picture.

    Messages show `name` instead of the path, which belongs to the server.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError:
        raise ValueError(f"{name} is not here any more: upload it again") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} is too large: give a picture of at most {MOST_BYTES // 2**20} MiB")
    return open_picture(content, name, most_pixels=largest_pixels, limit="--largest-pixels")
