"""Tests the benchmark of the bounds on mutual information: it collects what trainings log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.views import measure


def log(run: Path, *lines: dict[str, object]) -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def test_bounds_and_recalls_are_collected_by_step(tmp_path: Path) -> None:
    run = log(
        tmp_path / "run",
        {"step": 25, "measures": {"mi_bound": 0.51234, "temperature": 0.07}},
        {"step": 50, "measures": {"mi_bound": 1.5, "mi_bound_words": 2.0, "mi_bound_teacher": 1.0}},
        {"step": 50, "validation": {"mean_recall": 40.0, "chance": 1.0}},
    )
    assert measure(run) == {
        "mi_bound.25": 0.512, "mi_bound.50": 1.5, "mi_bound_words.50": 2.0, "mi_bound_teacher.50": 1.0,
        "mean_recall.50": 40.0,
    }  # fmt: skip


def test_a_run_without_a_bound_is_named(tmp_path: Path) -> None:
    run = log(tmp_path / "other", {"step": 25, "measures": {"accuracy": 0.5}})
    with pytest.raises(ValueError, match="other logged no bound on mutual information"):
        measure(run)
