"""Saves folders of small pictures and JSONL files for the tests of the index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ["a red fox left of a car", "two dogs on the beach", "a boat", "a small bird above a tree"]


def save_picture(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def save_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Saves `0.png` … and, as the last picture, `inner/N.png`."""
    for number in range(count):
        inner = "inner/" if number == count - 1 else ""
        save_picture(folder / f"{inner}{number}.png", seed + number)
    return folder


def save_lines(file: Path, lines: list[object]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file
