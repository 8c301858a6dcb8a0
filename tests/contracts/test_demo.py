"""The demonstration of all tasks: what it runs, what not again, and its table. Trainings are stood in for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych import catalog, demo, pipeline
from diptych.checkpoints import store
from diptych.schema import Recipe
from diptych.serialize import to_dict

RETRIEVAL = {
    f"{prefix}{way}.recall@1{suffix}": value
    for way in ("image_to_text", "text_to_image")
    for prefix, suffix, value in (("", "", 50.0), ("", ".interval", [47.0, 53.0]), ("chance.", "", 0.1))
}
GROUNDING = {
    f"{name}{suffix}": value
    for name in ("accuracy", "references.largest_proposal", "references.central_proposal", "references.any_proposal")
    for suffix, value in (("", 20.0), (".interval", [18.0, 22.0]))
}
JUDGED = {
    "accuracy": 70.0, "accuracy.interval": [68.0, 72.0], "consistency": 40.0, "consistency.interval": [37.0, 43.0],
    "references.commonest": 34.0,
}  # fmt: skip
BLIND = JUDGED | {"accuracy": 50.0, "accuracy.interval": [48.0, 52.0]}


HEADED = ("entailment", "vqa", "vqa_closed")


class StandIn:
    """Trainings that write what a training writes, and remember what was asked for."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str, bool, bool]] = []
        """Recipe, what it starts from, whether blind, whether resumed."""

    def train(self, recipe: Recipe, folder: Path, resume: bool = False) -> Path:
        start = Path(recipe.init_from or "").name
        self.trained.append((recipe.name, start, recipe.data.blank_images, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
        return folder

    def report(self, folder: Path) -> Path:
        recipe = json.loads((folder / "recipe.json").read_text())
        found = BLIND if recipe["data"]["blank_images"] else JUDGED
        found = {"albef_tiny_retrieval": RETRIEVAL, "albef_tiny_grounding": GROUNDING}.get(recipe["name"], found)
        (folder / "eval.json").write_text(json.dumps(found))
        return folder / "report.html"


@contextmanager
def blind_afterwards(folder: Path, stage: demo.Stage) -> Iterator[None]:
    """In this process, where trainings are stood in for."""
    yield
    demo._run(folder, stage, blank=True)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(pipeline, "train", made.train)
    monkeypatch.setattr(pipeline, "report", made.report)
    monkeypatch.setattr(demo, "_weights_of", lambda run: b"weights")
    monkeypatch.setattr(demo, "_blind_beside", blind_afterwards)
    made.train(catalog.find_recipe("albef_tiny"), tmp_path)
    made.trained.clear()
    (tmp_path / "eval.json").write_text(json.dumps(RETRIEVAL))
    return made


def test_every_task_is_trained_from_the_right_model_and_again_without_pictures(
    tmp_path: Path, stand_in: StandIn
) -> None:
    demo.all_tasks(tmp_path)
    start = tmp_path.name
    assert stand_in.trained == [
        ("albef_tiny_retrieval", start, False, False),
        ("albef_tiny_grounding", start, False, False),
        *((f"albef_tiny_{name}", start, blind, False) for name in HEADED for blind in (False, True)),
        ("albef_tiny_assignment", "entailment", False, False),
        ("albef_tiny_nlvr2", "assignment", False, False),
        ("albef_tiny_nlvr2", "assignment", True, False),
    ]  # fmt: skip


def test_what_is_there_is_not_trained_again_and_what_was_stopped_goes_on(tmp_path: Path, stand_in: StandIn) -> None:
    demo.all_tasks(tmp_path)
    stand_in.trained.clear()
    (tmp_path / "tasks" / "vqa" / "eval.json").unlink()
    demo.all_tasks(tmp_path)
    assert stand_in.trained == [("albef_tiny_vqa", tmp_path.name, False, True)]


def test_another_recipe_or_other_weights_are_another_blind_run(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.all_tasks(tmp_path)
    stand_in.trained.clear()
    stage = next(stage for stage in demo.STAGES if stage.name == "vqa")
    before = demo._blind_folder(tmp_path, stage)
    recipe = catalog.find_recipe("albef_tiny_vqa")
    longer = replace(recipe, run=replace(recipe.run, steps=9))
    with monkeypatch.context() as patch:
        patch.setitem(catalog.RECIPES, "albef_tiny_vqa", lambda: longer)
        assert demo._blind_folder(tmp_path, stage) != before
        with pytest.raises(ValueError, match=r"tasks/vqa holds a run of another recipe than albef_tiny_vqa: remove it"):
            demo.all_tasks(tmp_path)
    monkeypatch.setattr(demo, "_weights_of", lambda run: b"other weights")
    demo.all_tasks(tmp_path)
    assert [name for name, _, blind, _ in stand_in.trained if blind] == [
        f"albef_tiny_{name}" for name in (*HEADED, "nlvr2")
    ]


def test_baselines_can_be_left_out(tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    found = demo.all_tasks(tmp_path, blind=False)
    assert not any(blind for _, _, blind, _ in stand_in.trained)
    assert {row.task for row in found} == {"retrieval", "grounding", *HEADED, "nlvr2"}
    assert {row.task for row in found if row.baseline_value is None} == {*HEADED, "nlvr2"}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("entailment")]
    assert " ".join(line.split()) == "entailment accuracy 70.0 68.0 … 72.0 34.0"


def test_the_table_says_how_far_each_measure_is_above_its_baseline(
    tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {(row.task, row.measure, row.baseline): row for row in demo.all_tasks(tmp_path)}
    entailment, consistency = found["entailment", "accuracy", "blind"], found["nlvr2", "consistency", "blind"]
    assert (entailment.value, entailment.baseline_value, entailment.chance) == (70.0, 50.0, 34.0)
    assert entailment.apart
    assert not consistency.apart
    assert consistency.chance is None
    assert {baseline for task, _, baseline in found if task == "grounding"} == {"largest_proposal", "central_proposal"}
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("entailment")]
    assert line.split() == [
        "entailment",
        "accuracy",
        "70.0",
        "68.0",
        "…",
        "72.0",
        "blind",
        "50.0",
        "48.0",
        "…",
        "52.0",
        "+20.0",
        "34.0",
    ]
    assert "+0.0 overlap" in printed
    stored: list[dict[str, Any]] = json.loads((tmp_path / "tasks" / "table.json").read_text())
    assert len(stored) == len(found)


def test_a_run_of_another_recipe_in_a_task_s_folder_is_named(tmp_path: Path, stand_in: StandIn) -> None:
    stand_in.train(catalog.find_recipe("albef_tiny"), tmp_path / "tasks" / "retrieval")
    with pytest.raises(ValueError, match=r"tasks/retrieval holds a run of another recipe than albef_tiny_retrieval"):
        demo.all_tasks(tmp_path)


def test_the_weights_that_a_blind_run_is_named_by_are_the_best_checkpoint_s(tmp_path: Path) -> None:
    content = store.CheckpointState({}, {}, {"step": 1, "measure": 1.0}, to_dict(catalog.find_recipe("albef_tiny")))
    folder = store.save_checkpoint(tmp_path / "checkpoints", 1, content)
    assert demo._weights_of(tmp_path) == (folder / "weights.safetensors").read_bytes()


def test_the_blind_twin_runs_in_a_process_of_its_own_with_half_of_the_threads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here it fails, since there is no checkpoint to start from; what it says goes to its log and into the error."""
    stage = demo.Stage("entailment", "albef_tiny_entailment", blind=True)
    content = store.CheckpointState({}, {}, {"step": 1, "measure": 1.0}, to_dict(catalog.find_recipe("albef_tiny")))
    store.save_checkpoint(tmp_path / "checkpoints", 1, content)
    before, within = torch.get_num_threads(), 0
    failure = pytest.raises(ValueError, match=r"albef_tiny_entailment on blank pictures failed; the end of .*\.log:\n")
    with failure as failed, demo._blind_beside(tmp_path, stage):
        within = torch.get_num_threads()
    assert (within, torch.get_num_threads()) == (max(1, before // 2), before)
    (log,) = (tmp_path / "blind").glob("entailment-*.log")
    assert "albef_tiny_entailment in" in log.read_text()
    assert "diptych: " in str(failed.value)
    assert "Traceback" not in str(failed.value) + capfd.readouterr().err
