"""VLMo's pictures: every tensor of `transforms.safetensors`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.data import augment
from diptych.data.transforms import EvaluationTransform, TrainTransform, keep_shape, resize, to_picture, to_tensor
from diptych.schema import DataConfig, Released
from tests.parity.vlmo.golden import Golden

CONFIG = DataConfig(crop=(0.5, 1.0), normalise="vlmo")
RELEASED = Released(flip_directional_texts=True)
"""All that VLMo's transform has but for the fault of AutoContrast."""
GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""Operations that interpolate at steps of 1/32 pixel as released: within two grey levels."""
GAIN = {"Brightness": 1.36, "Sharpness": 1.45, "AutoContrast": 4.0, "Equalize": 8.0}
"""By how much others may stretch such a difference: the latter two as far as a picture's histogram asks for."""
OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "Identity": lambda image: image,
    "AutoContrast": augment.autocontrast,
    "Equalize": augment.equalize,
    "Brightness": augment.brightness,
    "Sharpness": augment.sharpness,
    "ShearX": augment.shear_x,
    "ShearY": augment.shear_y,
    "TranslateX": augment.translate_x,
    "TranslateY": augment.translate_y,
    "Rotate": augment.rotate,
}


@cache
def golden(folder: Path) -> Golden:
    """One for all tests, so that it remembers what all of them compared."""
    return Golden(folder, "transforms")


def notes(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "transforms.json").read_text())
    return content


def picture(stored: Golden, key: str) -> Image.Image:
    return Image.fromarray(stored[key].numpy())


def check_bytes(stored: Golden, key: str, ours: Image.Image, within: int = 0) -> None:
    off = np.abs(np.asarray(ours).astype(int) - stored[key].numpy().astype(int)).max()
    assert off <= within, f"{key}: off by {off} grey levels"


def both_orders(image: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    """Resized along one side, rounded, then along the other: which comes first depends on Pillow's version.

    Up to 12 it is the width, from 13 on the height of tall pictures. It costs a grey level at a quarter of the values.
    """
    first = [image.resize(size, Image.Resampling.BICUBIC) for size in ((size[0], image.height), (image.width, size[1]))]
    return [one.resize(size, Image.Resampling.BICUBIC) for one in first]


def check_resized(image: Image.Image, ours: Image.Image, theirs: Tensor, to_theirs: Callable[..., Tensor]) -> None:
    """Both are exactly what Pillow gives, of one version or the other."""
    orders = both_orders(image, ours.size)
    assert ours.tobytes() in [one.tobytes() for one in orders]
    assert any(torch.allclose(to_theirs(one), theirs, rtol=0, atol=1e-6) for one in orders)


def grey_levels(applied: list[str]) -> int:
    """How far apart the results of these operations may be: what interpolation left, stretched by what follows it."""
    apart = 0.0
    for name in applied:
        apart = apart + 2 if name in GEOMETRY else apart * GAIN.get(name, 1.0)
    return math.ceil(apart)


def do(name: str, image: Image.Image, arguments: list[Any], released: bool) -> Image.Image:
    extra = {"overflow": released} if name == "AutoContrast" else {}
    return OPERATIONS[name](image, *(tuple(one) if isinstance(one, list) else one for one in arguments), **extra)


def test_evaluation_gives_the_released_pixels(golden_vlmo: Path) -> None:
    stored, cases = golden(golden_vlmo), notes(golden_vlmo)["square"]
    assert cases
    for case in cases:
        mark = f"square/{case['index']}"
        image = picture(stored, f"{mark}/input")
        ours = to_picture(EvaluationTransform(CONFIG, case["size"])(image), "vlmo")
        check_resized(image, ours, stored[f"{mark}/output"], lambda shown: to_tensor(shown, "vlmo"))


def test_single_operations_are_the_released_ones(golden_vlmo: Path) -> None:
    stored, cases = golden(golden_vlmo), notes(golden_vlmo)["randaugment_ops"]
    image = picture(stored, "randaugment/input")
    assert {case["op"] for case in cases} == set(OPERATIONS) == set(augment.operations(7))
    for case in cases:
        name, fill = case["op"], case["fill"]
        arguments = [*case["args"], *([(fill,) * 3] if fill is not None else [])]
        key = f"randaugment/{name}/{case['case']}"
        check_bytes(stored, key, do(name, image, arguments, released=True), grey_levels([name]))


def test_autocontrast_is_repaired_unless_as_released(golden_vlmo: Path) -> None:
    stored = golden(golden_vlmo)
    image = picture(stored, "randaugment/input")
    check_bytes(stored, "randaugment/AutoContrast_intended/0", augment.autocontrast(image))
    dark = picture(stored, "randaugment_zero_minimum/input")
    for released in (False, True):
        check_bytes(stored, "randaugment_zero_minimum/AutoContrast", augment.autocontrast(dark, overflow=released), 1)


def test_training_pictures_are_the_released_ones(golden_vlmo: Path) -> None:
    """Recorded crop, flip and operations, one after the other; where AutoContrast was drawn, both ways."""
    stored, cases = golden(golden_vlmo), notes(golden_vlmo)["square_randaug"]
    assert cases
    for case in cases:
        mark, (top, left, height, width) = f"square_randaug/{case['index']}", case["crop_top_left_height_width"]
        image = picture(stored, f"{mark}/input").crop((left, top, left + width, top + height))
        theirs = stored[f"{mark}/after_crop_resize"]
        check_resized(image, resize(image, case["size"]), theirs, lambda shown: torch.from_numpy(np.array(shown)))
        image = Image.fromarray(theirs.numpy())
        if case["flipped"]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        applied = [step["op"] for step in case["applied"]]
        for suffix, released in (("", True), ("_intended", False)):
            key, shown = f"{mark}/after_augment{suffix}", image
            if key not in stored.tensors:
                assert suffix
                assert "AutoContrast" not in applied
                continue
            for step in case["applied"]:
                shown = do(step["op"], shown, step["args"], released)
            check_bytes(stored, key, shown, grey_levels(applied))
        check_near(stored, f"{mark}/output", to_tensor(picture(stored, f"{mark}/after_augment"), "vlmo"))


def check_near(stored: Golden, key: str, ours: Tensor) -> None:
    assert torch.allclose(stored[key], ours, atol=1e-6), key


def test_our_magnitudes_are_the_released_ones(golden_vlmo: Path) -> None:
    """At level 7, whatever the size of the picture: a sign turns the operations that have a direction."""
    stored = golden(golden_vlmo)
    image = picture(stored, "randaugment/input")
    ours = augment.operations(CONFIG.randaugment[1])
    recorded = [(step["op"], step["args"]) for case in notes(golden_vlmo)["square_randaug"] for step in case["applied"]]
    assert recorded
    for name, arguments in recorded:
        sign = -1 if arguments and arguments[0] < 0 else 1
        assert ours[name](image, sign).tobytes() == do(name, image, arguments, released=False).tobytes(), name


def test_our_training_crops_flips_and_draws_are_of_the_released_kind(golden_vlmo: Path) -> None:
    """Recorded crops could be ours; two draws, each applied half the time; half the pictures flipped."""
    cases = notes(golden_vlmo)["square_randaug"]
    stored = golden(golden_vlmo)
    for case in cases:
        height, width = stored.tensors[f"square_randaug/{case['index']}/input"].shape[:2]
        _, _, tall, wide = case["crop_top_left_height_width"]
        assert (tall + 0.5) * (wide + 0.5) >= CONFIG.crop[0] * height * width, "sides are rounded"
        assert tall <= height
        assert wide <= width
        assert len(case["applied"]) <= CONFIG.randaugment[0] == 2
    transform = TrainTransform(CONFIG, 16, RELEASED)
    image = picture(stored, "randaugment/input")
    pixels = torch.stack([transform(image, "a fox on the left", random.Random(seed)) for seed in range(8)])
    assert -1 <= pixels.min() < pixels.max() <= 1


def test_the_other_transforms_sizes_are_the_released_ones(golden_vlmo: Path) -> None:
    told = notes(golden_vlmo)
    for case in told["pixelbert_sizes"]:
        size = keep_shape((case["width"], case["height"]), case["shorter"])
        assert size == (case["out_width"], case["out_height"]), case
    stored = golden(golden_vlmo)
    image = picture(stored, "pixelbert/input")
    shown = image.resize(keep_shape(image.size, told["pixelbert_size"]), Image.Resampling.BICUBIC)
    check_resized(image, shown, stored["pixelbert/output"], lambda one: to_tensor(one, "vlmo"))


def test_every_tensor_has_been_compared(golden_vlmo: Path) -> None:
    if len(golden(golden_vlmo).used) < 5:
        for compare in (
            test_evaluation_gives_the_released_pixels, test_single_operations_are_the_released_ones,
            test_autocontrast_is_repaired_unless_as_released, test_training_pictures_are_the_released_ones,
            test_the_other_transforms_sizes_are_the_released_ones,
        ):  # fmt: skip
            compare(golden_vlmo)
    assert not golden(golden_vlmo).unused
