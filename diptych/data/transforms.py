"""A picture to a tensor: for training (crop, flip, RandAugment) and for evaluation (resize only). All on PIL.

H = W = image_size. Randomness comes only from the generator handed in, so that an item is a function of its seed.
"""

from __future__ import annotations

import math
import random
import re
from functools import cache
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diptych.data.augment import RandAugment
from diptych.schema import DataConfig, Normalise, Released

Colours = tuple[float, float, float]
STATISTICS: dict[Normalise, tuple[Colours, Colours]] = {
    "albef": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "vlmo": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of red, green and blue in 0..1: the released pictures are normalised with these."""
ASPECT = (3 / 4, 4 / 3)
"""Width by height of the random crop."""

LONGER = 1333 / 800
"""The longer side at most, by the shorter one, of pictures that keep their shape."""
MULTIPLE = 32
"""Sides of such pictures are multiples of this."""

_DIRECTIONAL = re.compile(
    r"(?<![^\W_])(?:left|right)(?:most|wards?|hand(?:ed)?|side|s|y|ies?)?(?![^\W_])", re.IGNORECASE
)


class TrainTransform:
    """Random resized crop, flip, RandAugment, normalisation (ALBEF §3.4, §3.5)."""

    def __init__(self, config: DataConfig, image_size: int, released: Released = Released()) -> None:
        low, high = config.crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"data.crop is {config.crop}: it takes two shares of the picture's area, 0 < low <= high <= 1"
            )
        self.config, self.released = config, released
        self.image_size = image_size
        self.augment = RandAugment(*config.randaugment, released)

    def __call__(self, image: Image.Image, caption: str, rng: random.Random) -> Float[Tensor, "3 H W"]:
        """The picture as it is shown beside `caption`, which decides whether it may be flipped."""
        whole = self.config.crop == (1, 1)  # which crop_box would cut to a permitted aspect
        image = image if whole else image.crop(crop_box(image.size, self.config.crop, rng))
        image = resize(image, self.image_size)
        flip = rng.random() < self.config.flip  # drawn always: the caption must not move the later draws
        if flip and (self.released.flip_directional_texts or not says_left_or_right(caption)):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(self.augment(image, rng), self.config.normalise)


class EvaluationTransform:
    """The whole picture, resized to a square whatever its shape, and normalised."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self.normalise = config.normalise
        self.image_size = image_size

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        return to_tensor(resize(image, self.image_size), self.normalise)


def resize(image: Image.Image, side: int) -> Image.Image:
    """To a square by bicubic interpolation (antialiased, as Pillow does)."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def crop_box(size: tuple[int, int], area: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random crop: its share of the area uniform, the logarithm of its aspect uniform.

    Shapes that do not fit are drawn again, ten times; then the largest central crop of a permitted aspect is taken.
    """
    width, height = size
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def says_left_or_right(text: str) -> bool:
    """Whether a word of the text is left, right or formed from them (leftmost, right-hand, leftwards), not: bright."""
    return _DIRECTIONAL.search(text) is not None


def keep_shape(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height for a picture that is not to become a square, as VLMo's other transform has them.

    The shorter side becomes `shorter`, unless the longer one then exceeds `LONGER` times as much; both are cut to
    multiples of 32. No model here takes such pictures: their positions are those of a square.

    >>> keep_shape((640, 480), 384)
    (512, 384)
    """
    scale = min(shorter / min(size), int(LONGER * shorter) / max(size))
    width, height = (int(side * scale + 0.5) // MULTIPLE * MULTIPLE for side in size)
    return width, height


def to_tensor(image: Image.Image, normalise: Normalise) -> Float[Tensor, "3 H W"]:
    """RGB bytes to normalised channels."""
    bytes_HWC = np.asarray(image)
    assert image.mode == "RGB", "sources give RGB pictures"
    scale, shift = _scale_and_shift(normalise)
    pixels = np.empty((3, *bytes_HWC.shape[:2]), np.float32)
    np.multiply(bytes_HWC.transpose(2, 0, 1), scale, out=pixels)
    pixels += shift
    return torch.from_numpy(pixels)


def to_picture(pixels: Float[Tensor, "3 H W"], normalise: Normalise) -> Image.Image:
    """The inverse of `to_tensor`, for reports and heat maps."""
    scale, shift = _scale_and_shift(normalise)
    bytes_CHW = (pixels.float().cpu().numpy() - shift) / scale
    return Image.fromarray(cast(np.ndarray, np.rint(np.clip(bytes_CHW, 0, 255)).astype(np.uint8).transpose(1, 2, 0)))


@cache
def _scale_and_shift(normalise: Normalise) -> tuple[np.ndarray, np.ndarray]:
    """By which bytes become normalised channels [3, 1, 1]."""
    mean, std = (np.array(values)[:, None, None] for values in STATISTICS[normalise])
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
