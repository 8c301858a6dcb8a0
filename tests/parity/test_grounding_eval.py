"""Boxes, overlaps and accuracies of `grounding_eval.json`: the released evaluation of grounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.metrics.grounding import box_accuracy, box_iou
from diptych.schema import GroundingConfig
from diptych.tasks.grounding import find_box


@pytest.fixture(scope="module")
def stored(golden_albef: Path) -> dict[str, Any]:
    return json.loads((golden_albef / "grounding_eval.json").read_text())


def test_overlaps_are_the_released_ones(stored: dict[str, Any]) -> None:
    first, second = (np.array([pair[side] for pair in stored["iou_pairs"]], np.float64) for side in "ab")
    found = box_iou(first, second, whole_pixels=True)
    assert found == pytest.approx([pair["iou"] for pair in stored["iou_pairs"]], abs=1e-12)
    assert box_iou(second, first, whole_pixels=True) == pytest.approx(found, abs=1e-12)


def test_boxes_overlaps_and_accuracies_are_the_released_ones(stored: dict[str, Any]) -> None:
    assert stored["expected_accuracy"]
    for alpha, accuracies in stored["expected_accuracy"].items():
        config = GroundingConfig(alpha=float(alpha))
        overlaps, splits, pictures = [], [], []
        for case in stored["results"]:
            picture, name = stored["images"][str(case["image_id"])], str(case["ref_id"])
            proposals = tuple(tuple(map(float, found[:4])) for found in stored["detections"][str(case["image_id"])])
            heat = torch.tensor(case["map"])
            assert heat.shape == (stored["mask_size"], stored["mask_size"])
            box = find_box(heat, (picture["width"], picture["height"]), proposals, config)
            assert list(box) == case[f"expected_pred_box_alpha_{alpha}"], name
            overlap = box_iou(np.array(box), np.array(case["ref_box"], np.float64), whole_pixels=True)
            assert float(overlap) == pytest.approx(case[f"expected_iou_alpha_{alpha}"], abs=1e-12), name
            overlaps.append(float(overlap))
            splits.append(case["split"])
            pictures.append(case["image_id"])
        found = box_accuracy(np.array(overlaps), splits, pictures, resamples=50)
        # The released names of the splits end in `_d`, for detections.
        assert {f"{part}_d": accuracy.value / 100 for part, accuracy in found.items()} == pytest.approx(accuracies)
        assert sum(accuracy.count for accuracy in found.values()) == len(stored["results"])
