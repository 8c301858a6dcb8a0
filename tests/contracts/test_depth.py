"""Tests the benchmark of how deep to re-rank: a depth gives what an evaluation with so many candidates gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.depth import measure
from diptych.catalog import find_recipe
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.evaluation import evaluate_as_retrieval
from tests.contracts.test_compare import SHRUNK, SMALL

WAYS = ("image_to_text", "text_to_image")


def test_each_depth_gives_what_an_evaluation_with_so_many_candidates_gives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(override(find_recipe("albef_tiny"), {**SHRUNK, **SMALL["albef_tiny"]}), run)
    found = measure(run, (1, 3, 8))
    for depth in (1, 3, 8):
        evaluated = evaluate_as_retrieval(run, changes={"evaluation.rerank": depth}, write=False).result.to_json()
        for way in WAYS:
            assert found[f"{way}.recall@1.{depth}"] == pytest.approx(evaluated[f"{way}.recall@1"])
            assert found[f"{way}.recall@1.0"] == pytest.approx(evaluated[f"contrastive.{way}.recall@1"])
            assert found[f"{way}.among.{depth}"] >= found[f"{way}.recall@1.{depth}"]
        assert found[f"{WAYS[0]}.among.1"] == found[f"{WAYS[0]}.recall@1.0"]
