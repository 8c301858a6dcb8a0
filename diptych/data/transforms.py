"""Turns pictures into tensors: for training by crop, flip and RandAugment, for evaluation by resizing only.

All operations work on PIL pictures. Tensors have H = W = image_size. All randomness comes from the generator that is
passed in, so that a sample is a function of its seed.
"""

from __future__ import annotations

import math
import random
import re
import warnings
from functools import cache
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.data.augment import RandAugment
from diptych.schema import DataConfig, Normalise, Released

Colours = tuple[float, float, float]
STATISTICS: dict[Normalise, tuple[Colours, Colours]] = {
    "albef": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "vlmo": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of red, green and blue in 0..1, by which the released code normalises pictures: `albef`'s
are CLIP's, `vlmo`'s are also SigLIP's, `imagenet` is for DINOv2 and MAE."""
ASPECT = (3 / 4, 4 / 3)
"""The range of the random crop's width divided by its height."""
LONGER = 1333 / 800
"""The largest ratio of the longer to the shorter side of pictures that keep their shape (`keep_shape`)."""
MULTIPLE = 32
"""The sides of such pictures are multiples of this."""

_DIRECTIONAL = re.compile(
    r"(?<![^\W_])(?:left|right)(?:most|wards?|hand(?:ed)?|side|s|y|ies?)?(?![^\W_])", re.IGNORECASE
)


class TrainTransform:
    """Applies a random resized crop, a flip, RandAugment and normalisation (ALBEF §3.5)."""

    def __init__(self, config: DataConfig, image_size: int, released: Released = Released()) -> None:
        low, high = config.crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"data.crop is {config.crop}: it takes two shares of the picture's area, 0 < low <= high <= 1"
            )
        self.config, self.released = config, released
        self.image_size = image_size
        self.augment = RandAugment(*config.randaugment, released)  # ALBEF §3.5

    def __call__(self, image: Image.Image, caption: str, rng: random.Random) -> Float[Tensor, "3 H W"]:
        """Transforms a picture. `caption` decides whether it may be flipped."""
        whole = self.config.crop == (1, 1)  # crop_box would cut the whole picture to a permitted aspect ratio
        image = image if whole else image.crop(crop_box(image.size, self.config.crop, rng))
        image = (resize_quickly if self.config.resize == "torch" else resize)(image, self.image_size)
        flip = rng.random() < self.config.flip  # always drawn, so that the caption does not change the later draws
        if flip and (self.released.flip_directional_texts or not says_left_or_right(caption)):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(self.augment(image, rng), self.config.normalise)


class EvaluationTransform:
    """Resizes the whole picture to a square, whatever its shape, and normalises it."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self.normalise = config.normalise
        self.image_size = image_size

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        return to_tensor(resize(image, self.image_size), self.normalise)


def resize(image: Image.Image, side: int) -> Image.Image:
    """Resizes a picture to a square by bicubic interpolation, antialiased as in Pillow."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def resize_quickly(image: Image.Image, side: int) -> Image.Image:
    """Resizes an RGB picture as `resize` does, to within one or two grey levels, several times faster."""
    if image.size == (side, side):
        return image
    _accept_read_only_arrays()
    bytes_CHW = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)
    resized = F.interpolate(bytes_CHW[None], (side, side), mode="bicubic", antialias=True)[0]
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


@cache
def _accept_read_only_arrays() -> None:
    """Triggers torch's one-time warning about read-only arrays while warnings are silenced. No array is written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"\0", np.uint8))


def crop_box(size: tuple[int, int], area: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """Draws a random crop (left, top, right, bottom). Its share of the area and the log of its aspect are uniform.

    A shape that does not fit is drawn again, up to ten times. Then the largest central crop of a permitted aspect is
    taken.
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
    """Returns whether the text has the word left or right, or one formed from them: leftmost, right-hand, leftwards."""
    return _DIRECTIONAL.search(text) is not None


def keep_shape(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Returns width and height of a picture that keeps its shape, as VLMo's other transform computes them.

    The shorter side becomes `shorter`, or less if the longer side would exceed `LONGER` times as much. Both are cut to
    multiples of 32. No model here takes such pictures, because position embeddings are those of a square.

    >>> keep_shape((640, 480), 384)
    (512, 384)
    """
    scale = min(shorter / min(size), int(LONGER * shorter) / max(size))
    width, height = (int(side * scale + 0.5) // MULTIPLE * MULTIPLE for side in size)
    return width, height


def to_tensor(image: Image.Image, normalise: Normalise) -> Float[Tensor, "3 H W"]:
    """Turns an RGB picture into normalised channels."""
    bytes_HWC = np.asarray(image)
    assert image.mode == "RGB", "sources give RGB pictures"
    scale, shift = _scale_and_shift(normalise)
    pixels = np.empty((3, *bytes_HWC.shape[:2]), np.float32)
    np.multiply(bytes_HWC.transpose(2, 0, 1), scale, out=pixels)
    pixels += shift
    return torch.from_numpy(pixels)


def to_picture(pixels: Float[Tensor, "3 H W"], normalise: Normalise) -> Image.Image:
    """Inverts `to_tensor`, for reports and heat maps."""
    scale, shift = _scale_and_shift(normalise)
    bytes_CHW = (pixels.float().cpu().numpy() - shift) / scale
    return Image.fromarray(cast(np.ndarray, np.rint(np.clip(bytes_CHW, 0, 255)).astype(np.uint8).transpose(1, 2, 0)))


@cache
def _scale_and_shift(normalise: Normalise) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift [3, 1, 1] by which bytes become normalised channels."""
    mean, std = (np.array(values)[:, None, None] for values in STATISTICS[normalise])
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
