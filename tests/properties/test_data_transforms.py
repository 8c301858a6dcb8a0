"""Tests crop, flip, RandAugment and normalisation against their definitions."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from diptych.data import augment
from diptych.data.transforms import (
    ASPECT,
    STATISTICS,
    EvaluationTransform,
    TrainTransform,
    crop_box,
    resize,
    resize_quickly,
    says_left_or_right,
    to_picture,
    to_tensor,
)
from diptych.schema import ALBEF_AS_RELEASED, DataConfig, Normalise, Released

PLAIN = DataConfig(crop=(1.0, 1.0), flip=0.5, randaugment=(0, 0))
"""On a square picture only the flip is left to chance."""


def _noise(width: int, height: int, seed: int = 0, low: int = 0, high: int = 256) -> Image.Image:
    values = np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def _shades(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --------------------------------------------------------------------------- crop


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_a_crop_lies_inside_the_picture_and_holds_something(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = crop_box((width, height), (0.2, 1.0), random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_the_area_and_aspect_of_their_definition() -> None:
    rng = random.Random(0)
    boxes = np.array([crop_box((1000, 1000), (0.2, 0.5), rng) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 1e6, width / height
    assert area.min() >= 0.199
    assert area.max() <= 0.501
    assert abs(area.mean() - 0.35) < 0.01  # uniform
    assert aspect.min() >= ASPECT[0] - 0.01
    assert aspect.max() <= ASPECT[1] + 0.01
    assert abs(np.log(aspect).mean()) < 0.02  # uniform in the logarithm: as often wide as tall


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_a_picture_too_narrow_for_any_crop_gives_its_middle(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert crop_box(size, (1.0, 1.0), random.Random(0)) == box


def test_a_crop_of_the_whole_area_shows_the_whole_picture_whatever_its_shape() -> None:
    image, transform = _noise(40, 10), TrainTransform(replace(PLAIN, flip=0.0), 16)
    assert torch.equal(transform(image, "a fox", random.Random(0)), EvaluationTransform(PLAIN, 16)(image))


def test_a_crop_that_is_no_share_of_the_area_is_refused() -> None:
    for crop in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5)):
        with pytest.raises(ValueError, match=r"data\.crop"):
            TrainTransform(DataConfig(crop=crop), 32)


# --------------------------------------------------------------------------- flip


def _flips(caption: str, config: DataConfig, released: Released = Released(), draws: int = 200) -> int:
    """Counts how often a picture that is dark on its left comes out dark on its right."""
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 4, 8))
    transform = TrainTransform(config, 8, released)
    results = [transform(image, caption, random.Random(seed)) for seed in range(draws)]
    return sum(bool(pixels[0, 0, 0] > pixels[0, 0, -1]) for pixels in results)


def test_pictures_are_flipped_half_the_time() -> None:
    assert 70 <= _flips("a bright fox", PLAIN) <= 130


@pytest.mark.parametrize("caption", ["a fox left of a car", "Rightmost of three", "a right-hand glove", "RIGHT."])
def test_no_picture_is_flipped_under_a_text_that_says_left_or_right(caption: str) -> None:
    assert _flips(caption, PLAIN) == 0


def test_the_released_behaviour_flips_them_all() -> None:
    """Defect 12 of the released code is reproduced."""
    released = Released(flip_directional_texts=True)
    assert _flips("a fox left of a car", PLAIN, released) == _flips("a bright fox", PLAIN, released) > 0


def test_a_directional_text_changes_the_flip_and_nothing_else() -> None:
    """If no flip is drawn, both captions give the same crop and the same augmentation."""
    transform = TrainTransform(DataConfig(flip=0.0), 24)
    image = _noise(40, 30)
    for seed in range(20):
        plain = transform(image, "a fox", random.Random(seed))
        assert torch.equal(plain, transform(image, "a fox on the left", random.Random(seed)))


@pytest.mark.parametrize(
    "text", ["left", "Right", "(right)", "left,", "the_left", "leftmost", "left-hand", "righthanded", "leftwards"]
)
def test_words_made_of_left_and_right_are_directional(text: str) -> None:
    assert says_left_or_right(f"a thing {text} there")


@pytest.mark.parametrize("text", ["bright", "copyright", "cleft", "leftover", "rightful", "upright", "eft", ""])
def test_words_that_only_contain_them_are_not(text: str) -> None:
    assert not says_left_or_right(f"a thing {text} there")


# --------------------------------------------------------------------------- augmentation


def test_augmentation_never_makes_colour_out_of_grey() -> None:
    grey = Image.merge("RGB", [_noise(24, 24).getchannel("R")] * 3)
    rand, rng = augment.RandAugment(2, 7), random.Random(0)
    for _ in range(200):
        red, green, blue = rand(grey, rng).split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()


def test_each_operation_is_drawn_equally_and_applied_half_the_time() -> None:
    rng, names = random.Random(0), tuple(augment.operations(7))
    drawn = Counter(step for _ in range(10_000) for step in augment.draw(names, 2, rng))
    assert len(names) == 10
    assert set(drawn) == {(name, sign) for name in names for sign in (1, -1)}
    assert sum(drawn.values()) == pytest.approx(10_000, rel=0.03)
    assert all(count == pytest.approx(500, rel=0.2) for count in drawn.values())


def test_no_operations_leave_the_picture_alone() -> None:
    image = _noise(9, 7)
    assert augment.RandAugment(0, 0)(image, random.Random(0)) is image


@pytest.mark.parametrize("seed", range(3))
def test_grey_value_operations_equal_pillows_own(seed: int) -> None:
    """Pillow's operations are an independent implementation, whose rounding may cost 1 grey level."""
    image = _noise(31, 23, seed, low=40, high=200)
    pairs = [
        (augment.autocontrast(image), ImageOps.autocontrast(image)),
        (augment.equalize(image), ImageOps.equalize(image)),
        (augment.brightness(image, 1.36), ImageEnhance.Brightness(image).enhance(1.36)),
        (augment.sharpness(image, 1.36), ImageEnhance.Sharpness(image).enhance(1.36)),
        (augment.sharpness(image, 0.4), ImageEnhance.Sharpness(image).enhance(0.4)),
    ]
    for ours, theirs in pairs:
        assert np.abs(_shades(ours) - _shades(theirs)).max() <= 1


def test_a_picture_of_one_colour_stays() -> None:
    plain = Image.new("RGB", (8, 8), (10, 200, 30))
    for operation in (augment.autocontrast, augment.equalize):
        assert operation(plain).tobytes() == plain.tobytes()


def test_released_autocontrast_whitens_and_the_repaired_one_stretches() -> None:
    image = _noise(16, 16, low=50, high=200)
    assert (_shades(augment.autocontrast(image, overflow=True)) == 255).all()
    repaired = _shades(augment.autocontrast(image))
    assert repaired.min() == 0
    assert repaired.max() >= 254


def test_released_sharpness_wraps_around_where_the_repaired_one_clips() -> None:
    image = Image.new("RGB", (5, 5), (250, 250, 250))
    image.putpixel((2, 2), (255, 255, 255))
    image.putpixel((1, 1), (200, 200, 200))
    released, repaired = _shades(augment.sharpness(image, 1.9, overflow=True)), _shades(augment.sharpness(image, 1.9))
    differ = released != repaired
    assert differ.any()
    assert (repaired[differ] == 255).all()
    assert (released[differ] < 20).all()


def test_whole_translations_equal_the_interpolated_ones() -> None:
    image = _noise(20, 15)
    for left, up in ((7.0, 0.0), (-3.0, 0.0), (0.0, 5.0), (0.0, -30.0)):
        ours = augment.translate_x(image, left) if left else augment.translate_y(image, up)
        assert ours.tobytes() == augment.warp(image, (1.0, 0.0, left, 0.0, 1.0, up)).tobytes()


def _bilinear(image: Image.Image, affine: augment.Affine, fill: int) -> np.ndarray:
    """Interpolates by definition, pixel by pixel: the four neighbours weighted by nearness, and `fill` outside."""
    source = np.asarray(image).astype(float)
    height, width, _ = source.shape
    a, b, c, d, e, f = affine
    result = np.zeros_like(source)
    for y, x in np.ndindex(height, width):
        u, v = a * x + b * y + c, d * x + e * y + f
        for row in (int(np.floor(v)), int(np.floor(v)) + 1):
            for column in (int(np.floor(u)), int(np.floor(u)) + 1):
                weight = (1 - abs(u - column)) * (1 - abs(v - row))
                inside = 0 <= row < height and 0 <= column < width
                result[y, x] += weight * (source[row, column] if inside else fill)
    return result


@given(st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4), st.floats(-9, 9), st.floats(-9, 9))
@settings(max_examples=25, deadline=None)
def test_warping_is_bilinear_and_blends_into_the_fill(matrix: list[float], right: float, down: float) -> None:
    a, b, d, e = matrix
    image = _noise(9, 7)
    affine = (a, b, right, d, e, down)
    assert np.abs(_shades(augment.warp(image, affine)) - _bilinear(image, affine, 128)).max() <= 0.51


def test_a_transform_can_be_sent_to_another_process() -> None:
    image = _noise(40, 30)
    transform = TrainTransform(DataConfig(), 16, ALBEF_AS_RELEASED)
    again = pickle.loads(pickle.dumps(transform))
    for seed in range(10):
        assert torch.equal(transform(image, "a fox", random.Random(seed)), again(image, "a fox", random.Random(seed)))


# --------------------------------------------------------------------------- tensors


def _by_definition(image: Image.Image, normalise: Normalise) -> Tensor:
    values = torch.tensor(_shades(image), dtype=torch.float64).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in STATISTICS[normalise])
    return ((values - mean) / std).float()


@pytest.mark.parametrize("normalise", STATISTICS)
def test_pixels_are_normalised_by_definition_and_back(normalise: Normalise) -> None:
    image = _noise(13, 11)
    assert torch.allclose(to_tensor(image, normalise), _by_definition(image, normalise), atol=1e-6)
    assert to_picture(to_tensor(image, normalise), normalise).tobytes() == image.tobytes()


@pytest.mark.parametrize("normalise", STATISTICS)
def test_training_and_evaluation_normalise_as_the_recipe_says(normalise: Normalise) -> None:
    image = _noise(16, 16)
    config = replace(PLAIN, flip=0.0, normalise=normalise)
    expected = _by_definition(image, normalise)
    assert torch.allclose(TrainTransform(config, 16)(image, "a fox", random.Random(0)), expected, atol=1e-6)
    assert torch.allclose(EvaluationTransform(config, 16)(image), expected, atol=1e-6)


def test_evaluation_shows_the_whole_picture_as_a_square() -> None:
    image = Image.new("RGB", (90, 30), "black")
    image.paste((255, 255, 255), (45, 0, 90, 30))
    picture = _shades(to_picture(EvaluationTransform(PLAIN, 20)(image), PLAIN.normalise))
    assert picture.shape == (20, 20, 3)
    assert (picture[:, :8] < 10).all()
    assert (picture[:, 12:] > 245).all()


@pytest.mark.parametrize(("width", "height", "side"), [(640, 480, 224), (17, 300, 64), (48, 40, 64), (64, 64, 64)])
def test_torch_resizes_as_pillow_does_to_within_a_grey_level_or_two(width: int, height: int, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    off = np.abs(np.asarray(resize(image, side)).astype(int) - np.asarray(resize_quickly(image, side)).astype(int))
    assert off.max() <= 2, "noise overshoots, so that rounding twice may differ twice"
    assert (off > 0).mean() < 0.02
    quick = TrainTransform(replace(PLAIN, flip=0.0, resize="torch"), side)(image, "a fox", random.Random(0))
    assert np.array_equal(np.asarray(to_picture(quick, "albef")), np.asarray(resize_quickly(image, side)))
