"""Evaluation transform and augmentation against the released code (OpenCV): every tensor of `images.safetensors`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diptych.data import augment
from diptych.data.transforms import EvaluationTransform
from diptych.schema import ALBEF_AS_RELEASED, DataConfig
from tests.parity.golden import Golden

NEAR = 0.98
"""Share of values that must be equal; the others may be off by one grey level (OpenCV's rounding)."""
OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "Identity": lambda image: image,
    "AutoContrast": lambda image: augment.autocontrast(image, overflow=True),
    "Equalize": augment.equalize,
    "Brightness": augment.brightness,
    "Sharpness": lambda image, factor: augment.sharpness(image, factor, overflow=True),
    "ShearX": augment.shear_x,
    "ShearY": augment.shear_y,
    "TranslateX": augment.translate_x,
    "TranslateY": augment.translate_y,
    "Rotate": augment.rotate,
}


@dataclass(frozen=True)
class Pictures:
    golden: Golden
    notes: dict[str, Any]
    """augment.json: what was done to each picture."""

    def picture(self, key: str) -> Image.Image:
        return Image.fromarray(self.golden[key].numpy())

    def check(self, key: str, ours: Image.Image) -> None:
        theirs = self.golden[key].numpy().astype(int)
        off = np.abs(np.asarray(ours).astype(int) - theirs)
        assert off.max() <= 1, f"{key}: off by {off.max()} grey levels"
        assert (off == 0).mean() >= NEAR, f"{key}: only {(off == 0).mean():.1%} of the values are equal"


@pytest.fixture
def pictures(golden_albef: Path) -> Pictures:
    return Pictures(Golden(golden_albef, "images"), json.loads((golden_albef / "augment.json").read_text()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each augmented picture of the folder given."""
    if "augmented" in metafunc.fixturenames:
        golden = Golden(metafunc.config.getoption("--golden-albef"), "images")
        keys = [key for key in golden.keys("augment.") if key != "augment.in"]
        metafunc.parametrize("augmented", keys)


def test_the_evaluation_transform_gives_the_released_pixels(pictures: Pictures) -> None:
    side = pictures.golden.tensors["transform.out"].shape[-1]
    pictures.golden.check(
        "transform.out", EvaluationTransform(DataConfig(), side)(pictures.picture("transform.in")), within=1e-5
    )


def test_the_augmented_picture_is_the_released_one(pictures: Pictures, augmented: str) -> None:
    image = pictures.picture("augment.in")
    for name, arguments in _applied(pictures.notes, augmented.removeprefix("augment.")):
        image = OPERATIONS[name](image, *(tuple(a) if isinstance(a, list) else a for a in arguments))
    pictures.check(augmented, image)


def _applied(notes: dict[str, Any], name: str) -> list[tuple[str, list[Any]]]:
    """The operations behind a stored picture: its recorded sequence, or one with the arguments that its note states."""
    if name.startswith("random"):
        return [(step, arguments) for step, arguments in notes["random_sequences"][int(name.removeprefix("random"))]]
    stated = re.search(r"with arguments (\(.*?\));", notes["about"][f"augment.{name}"])
    assert stated, f"augment.json does not state the arguments of {name}"
    return [(name, list(ast.literal_eval(stated.group(1))))]


def test_our_magnitudes_are_the_released_ones(pictures: Pictures) -> None:
    """At magnitude 7 the operations of RandAugment do what their functions do with the recorded arguments."""
    image = pictures.picture("augment.in")
    recorded = pictures.notes["level_7_arguments"]
    fill = tuple(recorded.pop("fill"))
    assert fill == augment.FILL
    ours = augment.operations(7, ALBEF_AS_RELEASED)
    assert set(ours) == set(OPERATIONS)
    for name, value in recorded.items():
        for sign in (1, -1):
            directed = value if name in ("Brightness", "Sharpness") else sign * value
            expected = OPERATIONS[name](image, directed)
            assert torch.equal(_bytes(ours[name](image, sign)), _bytes(expected)), (name, sign)


def _bytes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize("name", ["AutoContrast", "Sharpness"])
def test_the_repaired_operation_differs_only_where_the_released_one_overflows(pictures: Pictures, name: str) -> None:
    """Both behaviours: the two released overflows are kept by `released`, and clipped without it."""
    image = pictures.picture("augment.in")
    theirs = pictures.golden[f"augment.{name}"].numpy().astype(int)
    ours = np.asarray(augment.operations(7)[name](image, 1)).astype(int)
    if name == "Sharpness":
        wrapped = np.abs(ours - theirs) > 1
        assert set(np.unique(ours[wrapped])) <= {0, 255}
        return
    for channel in range(3):
        dark, light = np.asarray(image)[..., channel].min(), np.asarray(image)[..., channel].max()
        if 0 < dark < light:
            assert (theirs[..., channel] == 255).all()
        else:
            assert np.array_equal(ours[..., channel], theirs[..., channel])
    assert np.abs(ours - np.asarray(ImageOps.autocontrast(image)).astype(int)).max() <= 1
