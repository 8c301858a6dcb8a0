"""Tests the benchmark of towers: a depth gives what an evaluation with so many candidates gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.towers import measure
from diptych.catalog import find_recipe
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.evaluation import evaluate_as_retrieval
from tests.contracts.test_compare import SHRUNK, SMALL

WAYS = ("image_to_text", "text_to_image")


def test_each_depth_gives_what_an_evaluation_with_so_many_candidates_gives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(override(find_recipe("albef_tiny"), {**SHRUNK, **SMALL["albef_tiny"]}), run)
    found = measure(run, (1, 3, 8), rounds=1)
    for depth in (1, 3, 8):
        evaluated = evaluate_as_retrieval(run, changes={"evaluation.rerank": depth}, write=False).result.to_json()
        for way in WAYS:
            assert found[f"{way}.recall@1.{depth}"] == pytest.approx(evaluated[f"{way}.recall@1"])
            assert found[f"{way}.recall@1.0"] == pytest.approx(evaluated[f"contrastive.{way}.recall@1"])
            assert found[f"{way}.among.{depth}"] >= found[f"{way}.recall@1.{depth}"]
        assert found[f"{WAYS[0]}.among.1"] == found[f"{WAYS[0]}.recall@1.0"]
    alone = {"evaluation.rerank": 10**6, "evaluation.score": "match"}
    evaluated = evaluate_as_retrieval(run, changes=alone, write=False).result.to_json()
    for way in WAYS:
        assert found[f"{way}.recall@1.tower"] == pytest.approx(evaluated[f"{way}.recall@1"])
    operations = [found[f"flop.{name}"] for name in ("0", "1", "3", "8", "tower")]
    assert operations == sorted(set(operations))
    pair = found["flop.1"] - found["flop.0"]
    assert found["flop.8"] - found["flop.0"] < 9 * pair  # the text is encoded once for all pairs


def test_two_towers_alone_have_no_candidates(tmp_path: Path) -> None:
    run = tmp_path / "run"
    contrast = {"task.itm": 0.0, "task.mlm": 0.0, "task.match_phrases": False}
    train(override(find_recipe("albef_tiny"), {**SHRUNK, **SMALL["albef_tiny"], **contrast}), run)
    found = measure(run, (1, 3), rounds=1)
    assert set(found) == {f"{way}.recall@1.0" for way in WAYS} | {"flop.0", "seconds.0"}
