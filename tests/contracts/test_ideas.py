"""Tests the page of the ablations: it says what the stored results say, and a small stored ablation can be repeated."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych.apps.ablate import runs, table
from diptych.apps.ablate.ready import ALBEF_TABLE1
from tests.contracts.test_ablate import SCENES

DOCS = Path(__file__).parents[2] / "docs"
SMALL = Path(__file__).with_name("ablation_small.json")
"""Two variants of ALBEF's Table 1, three steps each: `python -m tests.contracts.test_ideas` writes it anew."""
ONE_ITEM = 100 / 12
"""Recall that one of twelve items is worth; a last bit that differs between processors can turn one around."""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "ideas.py"))


def test_the_page_is_what_the_stored_results_say(script: dict[str, Any]) -> None:
    page = (DOCS / "ideas.md").read_text(encoding="utf-8")
    assert script["filled"](page) == page, "run python docs/ideas.py"
    marked = {name for _, name, _ in script["MARKED"].findall(page)}
    stored = {file.stem for file in (DOCS / "results" / "ablations").glob("*.json")}
    several = {*script["SEVERAL"]}
    assert {name for name in stored if name.partition("_")[0] not in several} == marked - several
    for name in marked - several:
        rows = script["_rows"](json.loads((DOCS / "results" / "ablations" / f"{name}.json").read_text("utf-8")))
        assert script["figure"](name, rows) == (DOCS / "pictures" / f"ideas-{name}.svg").read_text("utf-8")


def test_the_figures_of_the_bounds_are_those_of_the_stored_runs(script: dict[str, Any]) -> None:
    for system, stored in script["stored_views"]().items():
        title = f"{script['SYSTEMS'][system]}: bounds on mutual information and recall"
        figure = (DOCS / "pictures" / f"ideas-views_{system}.svg").read_text("utf-8")
        assert script["curves"](title, stored) == figure, "run python docs/ideas.py"


def test_the_figure_of_towers_is_that_of_the_stored_runs(script: dict[str, Any]) -> None:
    figure = (DOCS / "pictures" / "ideas-towers.svg").read_text("utf-8")
    assert script["rates"](script["stored_towers"]()) == figure, "run python docs/ideas.py"


def test_numbers_have_two_digits_that_count(script: dict[str, Any]) -> None:
    assert [script["_rounded"](value) for value in (0.0312, 0.96, 9.96, 43.4, 1234.5)] == [
        "0.031", "0.96", "10.0", "43", "1,200",
    ]  # fmt: skip


def test_a_sentence_says_whether_a_difference_is_beyond_noise(script: dict[str, Any]) -> None:
    row = {
        "variant": "b", "against": "a", "measure": "text → picture, recall@1, dual encoder", "difference": -2.04,
        "difference_interval": [-3.0, -1.0], "p": 0.01,
    }  # fmt: skip
    (clear,) = script["_answers"]([row])
    assert clear.endswith("changes by −2.0 points (95 %: −3.0 to −1.0), which is beyond noise (p = 0.010).")
    (unclear,) = script["_answers"]([row | {"p": 0.3, "difference_interval": [-6.0, 2.0]}])
    assert "within the noise (p = 0.30)" in unclear


def small(folder: Path) -> table.Table:
    model = {
        "vision": {"image_size": 32, "width": 32, "depth": 1, "heads": 2},
        "text": {"width": 32, "layers": 2, "fusion_start": 1, "heads": 2, "intermediate": 64},
        "embed_dim": 16,
    }
    grid = replace(ALBEF_TABLE1.only(["with ITC", "with hard negatives"], []), seeds=(0,))
    grid = grid.replaced(
        [variant.name for variant in grid.variants],
        {
            "model": model, "data.scenes": SCENES, "data.workers": 0, "tokenizer.size": 150, "task.queue_size": 16,
            "task.fuse_start": 0, "evaluation.rerank": 4,
            "run": {"steps": 3, "batch_size": 8, "validate_every": 0},
        },
    )  # fmt: skip
    for run in runs.plan(grid, folder):
        runs.carry_out(run)
    return table.table(grid, folder)


def test_a_small_ablation_gives_the_stored_numbers_again(tmp_path: Path) -> None:
    found, stored = small(tmp_path / "alone" / "grid"), json.loads(SMALL.read_text(encoding="utf-8"))
    assert [[row.measure, row.variant] for row in found.reached] == [row[:2] for row in stored]
    for row, (_, _, mean) in zip(found.reached, stored, strict=True):
        assert row.mean == pytest.approx(mean, abs=ONE_ITEM + 0.1)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as there:
        rows = [(row.measure, row.variant, round(row.mean, 2)) for row in small(Path(there) / "alone" / "grid").reached]
    SMALL.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
