"""Recalls of stored score matrices equal the released evaluation's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.metrics.recall import retrieval_metrics, retrieval_ranks

TOLERANCE = 1e-9
NAMES = {
    f"{released}_{name}": f"{ours}.{measure}"
    for released, ours in (("txt", "image_to_text"), ("img", "text_to_image"))
    for name, measure in (("r1", "recall@1"), ("r5", "recall@5"), ("r10", "recall@10"), ("r_mean", "mean_recall"))
} | {"r_mean": "mean_recall"}


def metrics_of(score_i2t: torch.Tensor, score_t2i: torch.Tensor, image_of_text: torch.Tensor) -> dict[str, float]:
    relevant = image_of_text[:, None] == torch.arange(len(score_i2t))
    return retrieval_metrics(
        {"image_to_text": retrieval_ranks(score_i2t, relevant.T), "text_to_image": retrieval_ranks(score_t2i, relevant)}
    )


@pytest.fixture
def stored(golden_albef: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    return load_file(golden_albef / "retrieval_eval.safetensors"), json.loads(
        (golden_albef / "retrieval_metrics.json").read_text()
    )


@pytest.mark.parametrize("case", ["reranked", "first_stage_only", "big"])
def test_recalls_equal_the_released_ones(case: str, stored) -> None:
    tensors, expected = stored
    scores = {
        "reranked": ("out.score_i2t", "out.score_t2i", "in.txt2img"),
        "big": ("big.score_i2t", "big.score_t2i", "big.txt2img"),
    }
    if case == "first_stage_only":
        similarity = tensors["out.sims"].float()
        found = metrics_of(similarity, similarity.T, tensors["in.txt2img"])
    else:
        found = metrics_of(*(tensors[name] for name in scores[case]))
    assert {name: found[ours] for name, ours in NAMES.items()} == pytest.approx(expected[case], abs=TOLERANCE)
