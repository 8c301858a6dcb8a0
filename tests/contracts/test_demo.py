"""Tests the demonstrations: their runs, the runs' starts, repetition, and the table. Stand-ins replace trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych import catalog
from diptych.apps.demo import pretraining, tasks
from diptych.apps.demo.systems import ALBEF, SYSTEMS, VLMO, Demonstration, System, TaskRun
from diptych.checkpoints import store
from diptych.cli import demo as verb
from diptych.schema import Recipe, VisionStageConfig
from diptych.serialize import to_dict

RETRIEVAL: dict[str, Any] = {"rerank_gain.recall@1": 1.0} | {
    f"{prefix}{way}.recall@1{suffix}": value
    for way in ("image_to_text", "text_to_image")
    for prefix, suffix, value in (
        ("", "", 50.0), ("", ".interval", [47.0, 53.0]), ("chance.", "", 0.1),
        ("contrastive.", "", 40.0), ("contrastive.", ".interval", [37.0, 43.0]),
    )
}  # fmt: skip
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
    """A training that writes the files of a training, and remembers its arguments."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str, bool, bool]] = []
        """Recipe, start, whether blind, whether resumed."""

    def train(self, recipe: Recipe, folder: Path, resume: bool = False) -> Path:
        start = Path(recipe.init_from or "").name
        self.trained.append((recipe.name, start, recipe.data.blank_images, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
        return folder

    def report(self, folder: Path) -> Path:
        recipe = json.loads((folder / "recipe.json").read_text())
        found = BLIND if recipe["data"]["blank_images"] else JUDGED
        found = {"retrieval": RETRIEVAL, "grounding": GROUNDING}.get(recipe["name"].rpartition("_")[2], found)
        (folder / "eval.json").write_text(json.dumps(found))
        return folder / "report.html"


@contextmanager
def blind_afterwards(shown: Demonstration, run: TaskRun) -> Iterator[None]:
    """Runs the blind twin in this process, where a stand-in replaces trainings."""
    yield
    tasks._run(shown, run, blank=True)


@pytest.fixture(params=SYSTEMS.values(), ids=tuple(SYSTEMS))
def system(request: pytest.FixtureRequest) -> System:
    made: System = request.param
    return made


@pytest.fixture
def shown(system: System, tmp_path: Path) -> Demonstration:
    return Demonstration(system, tmp_path / "demo")


@pytest.fixture
def stand_in(shown: Demonstration, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Replaces trainings by a stand-in, after pre-training."""
    made = StandIn()
    monkeypatch.setattr(tasks, "train", made.train)
    monkeypatch.setattr(tasks, "report", made.report)
    monkeypatch.setattr(tasks, "_weights_of", lambda run: b"weights")
    monkeypatch.setattr(tasks, "_blind_beside", blind_afterwards)
    monkeypatch.chdir(shown.folder.parent)
    made.train(catalog.find_recipe(shown.system.recipe), shown.folder)
    made.trained.clear()
    (shown.folder / "eval.json").write_text(json.dumps(RETRIEVAL))
    return made


# --------------------------------------------------------------------------- stages


def test_the_verb_names_the_systems() -> None:
    assert tuple(SYSTEMS) == verb.MODELS
    assert len({system.folder for system in SYSTEMS.values()}) == len(SYSTEMS)


def test_each_stage_starts_from_the_demonstration_s_own_runs(shown: Demonstration) -> None:
    """A path `runs/…` in a recipe names one of the stages before it."""
    assert pretraining.linked(shown, shown.system.recipe).init_from is None
    staged, before = replace(shown, staged=True), list[str]()
    for name in (*staged.stages, staged.system.recipe):
        recipe = pretraining.linked(staged, name)
        starts = {recipe.init_from, recipe.task.tokenizer if isinstance(recipe.task, VisionStageConfig) else None}
        assert starts - {None} <= {str(shown.stage_folder(stage)) for stage in before}
        before.append(name)
    assert pretraining.linked(Demonstration(VLMO, shown.folder, staged=True), "vlmo_tiny").init_from == str(
        shown.folder / "stages/vlmo_tiny_language"
    )


def test_no_stage_sees_the_scenes_of_the_pairs_and_texts_are_of_other_scenes_than_pictures() -> None:
    seeds = {name: catalog.find_recipe(name).data.scenes.seed for name in (*VLMO.stages, VLMO.recipe)}
    assert seeds["visual_tokenizer_tiny"] == seeds["vlmo_tiny_vision"]
    assert len(set(seeds.values())) == 3


def test_stages_run_in_their_order_and_only_what_is_missing_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, shown = StandIn(), Demonstration(VLMO, tmp_path, staged=True)
    monkeypatch.setattr(pretraining, "train", made.train)
    monkeypatch.setattr(pretraining, "report", made.report)
    monkeypatch.setattr(pretraining, "record_compute", lambda place: None)
    monkeypatch.setattr(pretraining, "_ended", lambda recipe, place: recipe.name == "visual_tokenizer_tiny")
    monkeypatch.setattr(pretraining, "evaluate_as_retrieval", lambda folder: pytest.fail("stages end here"))
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception):
            pretraining.demo(shown)
    order = [
        ("visual_tokenizer_tiny", "", False), ("vlmo_tiny_vision", "", False),
        ("vlmo_tiny_language", "vlmo_tiny_vision", False), ("vlmo_tiny", "vlmo_tiny_language", False),
    ]  # fmt: skip
    trained = [(name, start, resumed) for name, start, _, resumed in made.trained]
    assert trained[:4] == order
    assert trained[4:] == [(name, start, True) for name, start, _ in order[1:]]
    assert f"{shown.stage_folder('visual_tokenizer_tiny')} is trained already" in capsys.readouterr().out


# --------------------------------------------------------------------------- tasks


def test_every_task_is_trained_from_the_right_model_and_again_without_pictures(
    shown: Demonstration, stand_in: StandIn
) -> None:
    tasks.all_tasks(shown)
    start, tiny = shown.folder.name, shown.system.recipe
    assert stand_in.trained == [
        (f"{tiny}_retrieval", start, False, False),
        (f"{tiny}_grounding", start, False, False),
        *((f"{tiny}_{name}", start, blind, False) for name in HEADED for blind in (False, True)),
        (f"{tiny}_assignment", "entailment", False, False),
        (f"{tiny}_nlvr2", "assignment", False, False),
        (f"{tiny}_nlvr2", "assignment", True, False),
    ]  # fmt: skip


def test_what_is_there_is_not_trained_again_and_what_was_stopped_goes_on(
    shown: Demonstration, stand_in: StandIn
) -> None:
    tasks.all_tasks(shown)
    stand_in.trained.clear()
    (shown.folder / "tasks" / "vqa" / "eval.json").unlink()
    tasks.all_tasks(shown)
    assert stand_in.trained == [(f"{shown.system.recipe}_vqa", shown.folder.name, False, True)]


def test_another_recipe_or_other_weights_are_another_blind_run(
    shown: Demonstration, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.all_tasks(shown)
    stand_in.trained.clear()
    tiny = shown.system.recipe
    run = next(run for run in shown.system.tasks if run.name == "vqa")
    before = tasks._blind_folder(shown, run)
    recipe = catalog.find_recipe(f"{tiny}_vqa")
    longer = replace(recipe, run=replace(recipe.run, steps=9))
    with monkeypatch.context() as patch:
        patch.setitem(catalog.RECIPES, f"{tiny}_vqa", lambda: longer)
        assert tasks._blind_folder(shown, run) != before
        with pytest.raises(ValueError, match=rf"tasks/vqa holds a run of another recipe than {tiny}_vqa: remove it"):
            tasks.all_tasks(shown)
    monkeypatch.setattr(tasks, "_weights_of", lambda run: b"other weights")
    tasks.all_tasks(shown)
    assert [name for name, _, blind, _ in stand_in.trained if blind] == [
        f"{tiny}_{name}" for name in (*HEADED, "nlvr2")
    ]


def test_baselines_can_be_left_out(shown: Demonstration, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    found = tasks.all_tasks(shown, blind=False)
    assert not any(blind for _, _, blind, _ in stand_in.trained)
    assert {row.task for row in found} == {"retrieval", "grounding", *HEADED, "nlvr2"}
    assert {row.task for row in found if row.baseline_value is None} == {*HEADED, "nlvr2"}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("entailment")]
    assert " ".join(line.split()) == "entailment accuracy 70.0 68.0 … 72.0 34.0"


def test_the_table_says_how_far_each_measure_is_above_its_baseline(
    shown: Demonstration, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {(row.task, row.measure, row.baseline): row for row in tasks.all_tasks(shown)}
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
    stored: list[dict[str, Any]] = json.loads((shown.folder / "tasks" / "table.json").read_text())
    assert len(stored) == len(found)


def test_a_dual_encoder_is_compared_with_what_it_was_as_one(shown: Demonstration, stand_in: StandIn) -> None:
    tasks.all_tasks(shown, blind=False)
    before = {row.baseline_value for row in tasks.rows(shown) if row.task == "retrieval"}
    assert before == {50.0}
    alone = {key: value for key, value in RETRIEVAL.items() if key != "rerank_gain.recall@1"}
    (shown.folder / "tasks" / "retrieval" / "eval.json").write_text(json.dumps(alone))
    before = {row.baseline_value for row in tasks.rows(shown) if row.task == "retrieval"}
    assert before == {40.0}


def test_a_run_of_another_recipe_in_a_task_s_folder_is_named(shown: Demonstration, stand_in: StandIn) -> None:
    tiny = shown.system.recipe
    stand_in.train(catalog.find_recipe(tiny), shown.folder / "tasks" / "retrieval")
    with pytest.raises(ValueError, match=rf"tasks/retrieval holds a run of another recipe than {tiny}_retrieval"):
        tasks.all_tasks(shown)


def test_what_a_run_took_is_counted_also_where_it_was_stopped_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = StandIn()
    counted: list[Path] = []
    monkeypatch.setattr(pretraining, "train", made.train)
    monkeypatch.setattr(pretraining, "_ended", lambda recipe, place: True)
    monkeypatch.setattr(pretraining, "record_compute", counted.append)
    made.train(catalog.find_recipe("albef_tiny"), tmp_path)
    pretraining._train(catalog.find_recipe("albef_tiny"), tmp_path)
    assert (len(made.trained), counted) == (1, [tmp_path])
    (tmp_path / "compute.json").write_text("{}")
    pretraining._train(catalog.find_recipe("albef_tiny"), tmp_path)
    assert (len(made.trained), counted) == (1, [tmp_path])


def test_the_weights_that_a_blind_run_is_named_by_are_the_best_checkpoint_s(tmp_path: Path) -> None:
    content = store.CheckpointState({}, {}, {"step": 1, "measure": 1.0}, to_dict(catalog.find_recipe("albef_tiny")))
    folder = store.save_checkpoint(tmp_path / "checkpoints", 1, content)
    assert tasks._weights_of(tmp_path) == (folder / "weights.safetensors").read_bytes()


def test_the_blind_twin_runs_in_a_process_of_its_own_with_half_of_the_threads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The twin fails here, since it has no checkpoint to start from. Its output goes to its log and into the error."""
    shown, run = Demonstration(ALBEF, tmp_path), TaskRun("entailment", blind=True)
    content = store.CheckpointState({}, {}, {"step": 1, "measure": 1.0}, to_dict(catalog.find_recipe("albef_tiny")))
    store.save_checkpoint(tmp_path / "checkpoints", 1, content)
    before, within = torch.get_num_threads(), 0
    failure = pytest.raises(ValueError, match=r"albef_tiny_entailment on blank pictures failed; the end of .*\.log:\n")
    with failure as failed, tasks._blind_beside(shown, run):
        within = torch.get_num_threads()
    assert (within, torch.get_num_threads()) == (max(1, before // 2), before)
    (log,) = (tmp_path / "blind").glob("entailment-*.log")
    assert "albef_tiny_entailment in" in log.read_text()
    assert "diptych: " in str(failed.value)
    assert "Traceback" not in str(failed.value) + capfd.readouterr().err
