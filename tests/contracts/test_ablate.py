"""Tests ablations: the runs of a grid, side by side and repeated, and its table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import nct, ttest_rel
from scipy.stats import t as student

from diptych import catalog
from diptych.apps.ablate import runs, table
from diptych.apps.ablate.grid import Grid, Part, given_grid, read_grid
from diptych.apps.ablate.ready import ALBEF_TABLE1, GRIDS, VLMO_STAGES
from diptych.apps.compare.compute import step_flops
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.metrics.intervals import paired_p, seeds_for, t_quantile
from diptych.run import train
from diptych.schema import VisionStageConfig, VlmoPretrainConfig
from diptych.serialize import to_dict

RUN = {"batch_size": 8, "log_every": 1, "checkpoint_every": 1, "validate_every": 0}
SCENES = {"sprites": "shapes", "size": 32, "count": 40, "evaluation_count": 12}
SMALL: Mapping[str, Any] = {
    "model": {"image_size": 32, "width": 32, "depth": 2, "heads": 2, "fusion_start": 1},
    "data.scenes": SCENES, "data.workers": 0, "tokenizer.size": 150, "run": RUN | {"steps": 3},
}  # fmt: skip
PAIRS = {**SMALL, "task.fuse_start": 0}
TOKENIZER = {
    "model": {"image_size": 32, "width": 16, "codes": 8, "code_width": 8, "residual_blocks": 0},
    "data.scenes": SCENES, "data.workers": 0, "run": RUN | {"steps": 2},
}  # fmt: skip


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """Beside a test's folder there are those of others, whose equal runs would be copied."""
    (alone := tmp_path / "alone").mkdir()
    return alone


def small_stages(**changes: Any) -> Grid:
    """Shrinks the ready grid."""
    grid = replace(VLMO_STAGES, **changes)
    grid = grid.replaced([part.name for part in grid.variants], PAIRS)
    grid = grid.replaced(["visual tokenizer"], TOKENIZER)
    return grid.replaced(["vision stage", "language stage"], SMALL | {"run": RUN | {"steps": 2}})


def small(*variants: str, seeds: tuple[int, ...] = (0,)) -> Grid:
    grid = replace(given_grid("vlmo_tiny", variants), seeds=seeds)
    return grid.replaced([part.name for part in grid.variants], PAIRS | {"init_from": None, "evaluation.rerank": 0})


# --------------------------------------------------------------------------- grids


def test_every_ready_grid_is_made_of_recipes_that_can_be_built(tmp_path: Path) -> None:
    for grid in GRIDS.values():
        for run in runs.plan(grid, tmp_path / grid.name):
            assert run.recipe.run.seed == run.seed
            with torch.device("meta"):
                model = catalog.MODELS[type(run.recipe.model)](run.recipe.model)
            if not isinstance(run.recipe.task, VisionStageConfig):  # it wants the tokenizer's run
                special = catalog.SpecialIds(0, 1, 2, 3, 4)
                catalog.TASKS[type(run.recipe.task)](model.to_empty(device="cpu"), run.recipe.task, special)


def test_variants_of_a_ready_grid_differ_from_the_first_in_what_they_are_about(tmp_path: Path) -> None:
    for grid in GRIDS.values():
        planned = {run.part.name: to_dict(run.recipe) for run in runs.plan(replace(grid, seeds=(0,)), tmp_path)}
        first, *others = (planned[part.name] for part in grid.variants)
        for other in others:
            assert other != first
            assert {key for key in other if other[key] != first[key]} <= {"task", "init_from", "model"}


def test_the_stages_are_compared_at_equal_pairs_and_see_scenes_of_their_own(tmp_path: Path) -> None:
    planned = {run.part.name: run.recipe for run in runs.plan(replace(VLMO_STAGES, seeds=(7,)), tmp_path)}
    pairs = [planned[part.name] for part in VLMO_STAGES.variants]
    assert len({recipe.run.steps * recipe.run.batch_size for recipe in pairs if recipe.run.steps}) == 1
    assert all(isinstance(recipe.task, VlmoPretrainConfig) and recipe.evaluation.rerank == 0 for recipe in pairs)
    shown = {planned[part.name].data.scenes.seed for part in VLMO_STAGES.stages}
    assert not shown & {recipe.data.scenes.seed for recipe in pairs}
    assert planned["vision stage"].data.scenes.seed != planned["language stage"].data.scenes.seed
    starts = [recipe.init_from and Path(recipe.init_from).parent.name for recipe in pairs]
    assert starts == [None, "vision-stage", "language-stage"]


def test_a_chain_has_each_stage_that_a_variant_begins_with_once() -> None:
    chains = {part.name: [one.name for one in VLMO_STAGES.chain(part)] for part in VLMO_STAGES.variants}
    assert chains["no stages"] == ["no stages"]
    assert chains["vision"] == ["visual tokenizer", "vision stage", "vision"]
    assert chains["vision and language"] == [
        "visual tokenizer", "vision stage", "language stage", "vision and language",
    ]  # fmt: skip


def test_a_stage_that_no_variant_begins_with_is_not_trained(tmp_path: Path) -> None:
    grid = replace(VLMO_STAGES, variants=VLMO_STAGES.variants[:2])
    assert "language stage" not in {run.part.name for run in runs.plan(grid, tmp_path)}


def test_variants_and_tasks_of_a_grid_can_be_chosen() -> None:
    grid = ALBEF_TABLE1.only(["with ITC", "with tasks distilled"], ["nlvr2"])
    assert [part.name for part in grid.variants] == ["with ITC", "with tasks distilled"]
    assert [part.name for part in grid.tasks] == ["entailment", "assignment", "nlvr2"]
    assert set(grid.variants[1].tasks) == {"entailment", "nlvr2"}
    assert not ALBEF_TABLE1.only(None, []).tasks


def test_a_grid_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: vlmo_tiny\nset: {task.mlm: 0.5}\nseeds: [3, 5]\n"
        "stages:\n  language: {recipe: vlmo_tiny_language, set: {init_from: null}}\n"
        "variants:\n  alone: {set: {init_from: null}}\n  after: {after: {init_from: language}, set: {task.mlm: 1}}\n"
    )
    language = Part("language", "vlmo_tiny_language", {"init_from": None})
    assert read_grid(file) == Grid(
        "mine",
        (
            Part("alone", "vlmo_tiny", {"task.mlm": 0.5, "init_from": None}),
            Part("after", "vlmo_tiny", {"task.mlm": 1}, {"init_from": "language"}),
        ),
        (language,),
        (3, 5),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: {a: {}}", "variants.a needs a recipe"),
        ("recipe: vlmo_tiny", "at least one variant"),
        ("recipe: vlmo_tiny\nvariant: {a: {}}", "unknown name 'variant'. Known there: against, recipe, seeds"),
        ("recipe: vlmo_tiny\nvariants: {a: {sets: {}}}", "unknown name 'sets'"),
        ("recipe: vlmo_tiny\nvariants: [a, b]", "expected names with values"),
        ("recipe: vlmo_tiny\nvariants: {a: {}}\nseeds: [one]", "seeds are whole numbers"),
        ("recipe: vlmo_tiny\nvariants: {a: {}}\nseeds: [1, 1]", "given twice: 1"),
        ("recipe: vlmo_tiny\nvariants: {a/b: {}}", "cannot be empty or hold a slash"),
        ("recipe: vlmo_tiny\nvariants: {a: {after: {init_from: b}}}", "from 'b', but no stage stands before it"),
        ("recipe: vlmo_tiny\nvariants: {a: {}}\nagainst: last", "against is 'last': it is first or previous"),
        ("recipe: vlmo_tiny\nvariants: {a: {tasks: {b: {}}}}", "a changes the task 'b', which is not in the grid"),
        ("recipe: vlmo_tiny\nvariants: {a: {}}\ntasks: {b: {after: {init_from: c}}}", "from 'c', but no task stands"),
        ("recipe: vlmo_tiny\nvariants: {a: {tasks: {b: 3}}}\ntasks: {b: {}}", "a.tasks.b: expected names with values"),
        ("recipe: [x]\nvariants: {a: {}}", "a: recipe is the name of a recipe"),
        ("recipe: vlmo_tiny\nvariants: {a: {}}\ntasks: {b: {tasks: {b: {}}}}", "only variants change tasks"),
        ("recipe: [", "could not be read as YAML or JSON"),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        read_grid(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no grid 'nothing'. Ready: albef_table1"),
        (
            ["vlmo_stages", "vison:run.steps=3"],
            "no variant, stage or task 'vison'. Known: visual tokenizer, vision stage",
        ),
        (["vlmo_stages", "--seeds", "one"], "--seeds is 'one'"),
        (["vlmo_stages", "--only", "vison"], "no variant 'vison' in vlmo_stages. It has: no stages, vision"),
        (["albef_table1", "--tasks", "vga"], "no task 'vga' in albef_table1. It has: retrieval, entailment"),
        (["vlmo_stages", "--jobs", "0"], "--jobs is 0"),
        (["vlmo_stages", "task.mml=1"], "unknown name 'mml' in 'task'"),
        (["vlmo_tiny", "--variant", "task.itc=0"], "has no name: write NAME: name=value"),
        (["vlmo_stages", "run.seed=3"], "run.seed is not set in no stages, but by the seeds"),
        (
            ["vlmo_tiny", "--variant", "a: data.scenes.size=32", "--variant", "b: "],
            "different data: they differ in data",
        ),
        (["vlmo_tiny", "--variant", "a b: ", "--variant", "a-b: "], "a b and a-b would share a folder"),
        (["vlmo_tiny", "--variant", "a: task.itc"], "'task.itc' is no override"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_before_anything_is_trained(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *arguments, "--folder", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- runs


def test_the_stages_of_the_ready_grid_train_measure_and_add_up(tmp_path: Path) -> None:
    """All runs train in this process. The table has recall in both directions, and the computation beside it."""
    grid = small_stages(seeds=(0,))
    for run in runs.plan(grid, tmp_path):
        runs.carry_out(run)
    found = table.table(grid, tmp_path)
    assert {one.measure.split(",")[0] for one in found.reached} == {"text → picture", "picture → text"}
    assert all("dual encoder" in one.measure for one in found.reached)
    took = {cost.variant: cost for cost in found.costs}
    assert [part.part for part in took["vision and language"].parts] == [
        "visual tokenizer", "vision stage", "language stage", "vision and language",
    ]  # fmt: skip
    own = [cost.parts[-1] for cost in found.costs]
    assert {(part.steps, part.records) for part in own} == {(3, 24)}
    assert took["no stages"].flops < took["vision"].flops < took["vision and language"].flops
    assert took["vision"].flops == sum(part.flops for part in took["vision"].parts)
    assert all(part.flops > 0 and part.seconds > 0 for cost in found.costs for part in cost.parts)
    for seed in grid.seeds:
        language = runs.place(tmp_path, grid.stages[2], seed)
        assert json.loads((language / "recipe.json").read_text())["init_from"].endswith(f"vision-stage/seed-{seed}")
    text = table.as_markdown(found)
    assert "| vision and language | language stage" in " ".join(text.split())
    assert json.loads(table.write(found, tmp_path)[1].read_text())["costs"][0]["flops"] == took["no stages"].flops


def test_a_failed_run_is_told_and_loses_only_what_begins_with_it_and_what_is_done_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs train at once in other processes. The failing stage has no data."""
    grid = small("full", "after")
    broken = Part("broken", "vlmo_tiny_language", {**SMALL, "data.path": "nowhere", "data.source": "texts"})
    after = replace(grid.variants[1], after={"init_from": "broken"})
    grid = replace(grid, stages=(broken,), variants=(grid.variants[0], after))
    planned = runs.plan(grid, tmp_path)
    failed = runs.train_all(planned, jobs=2)
    assert set(failed) == {tmp_path / "broken" / "seed-0", tmp_path / "after" / "seed-0"}
    assert "nowhere" in failed[tmp_path / "broken" / "seed-0"]
    assert failed[tmp_path / "after" / "seed-0"].startswith(f"left out: it needs {tmp_path}/broken/seed-0")
    found = table.table(grid, tmp_path, failed)
    assert {one.variant for one in found.reached} == {"full"}
    assert found.missing.keys() == {"broken/seed-0", "after/seed-0"}
    assert "broken/seed-0: diptych: " in table.as_markdown(found)
    monkeypatch.setattr(runs, "_started", lambda run, jobs: pytest.fail(f"{run.folder} was trained again"))
    assert not runs.train_all(tuple(run for run in planned if run.part.name == "full"), jobs=2)


def test_a_stopped_run_goes_on_and_another_recipe_in_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small("full")
    (run,) = runs.plan(grid, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "evaluate", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.carry_out(run)
    assert not run.done
    runs.carry_out(run)
    assert run.done
    with pytest.raises(ValueError, match="full/seed-0 holds a run of another recipe: remove it"):
        runs.plan(grid.replaced(["full"], {"optim.lr": 1e-5}), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_ablation_saves_its_runs(number: signal.Signals, tmp_path: Path) -> None:
    """The whole group of processes gets the signal, as by Ctrl-C in a terminal."""
    grid = tmp_path / "endless.json"
    changes = PAIRS | {"init_from": None, "run": RUN | {"steps": 10**6, "checkpoint_every": 10**6}}
    grid.write_text(json.dumps({"recipe": "vlmo_tiny", "set": changes, "seeds": [0], "variants": {"endless": {}}}))
    command = [sys.executable, "-m", "diptych", "ablate", str(grid), "--folder", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )  # fmt: skip
    log, run = tmp_path / "out/endless/seed-0.log", tmp_path / "out/endless/seed-0"
    try:
        wait_until(lambda: log.is_file() and "\nstep " in log.read_text(), process)
        os.killpg(process.pid, number)
        process.wait(timeout=120)
    finally:
        process.kill()
    said = log.read_text()
    stops = said.count("the run stops once this step is done")  # not said where a loader under load is behind
    assert stops == 1 or (stops == 0 and said.count("while waiting for the data") == 1)
    newest, _ = store.newest_whole(run / "checkpoints")
    assert newest is not None
    assert newest.state["run"]["step"] >= 1


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(1800):
        if condition():
            return
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    pytest.fail("the run did not begin within three minutes")


def test_the_steps_that_only_align_are_counted_as_what_they_are(tmp_path: Path) -> None:
    """The cost of a run that fuses in its second half lies between that of always and that of never fusing."""
    taken = []
    for start in (0, 4, 8):
        grid = small("full").replaced(["full"], {"run.steps": 8, "task.fuse_start": start})
        (run,) = runs.plan(grid, tmp_path / str(start))
        train(run.recipe, run.folder)
        taken.append(step_flops(run.folder, 8))
    fused, half, aligned = taken
    assert aligned < half < fused
    assert half == pytest.approx((aligned + fused) / 2, rel=0.1)


def test_tasks_follow_each_variant_and_stand_in_the_table_beside_it(tmp_path: Path) -> None:
    """The second task starts from the first, and one variant changes it."""
    small_task = {**SMALL, "data.scenes": SCENES | {"evaluation_count": 12}, "run": RUN | {"steps": 1}}
    tasks = (
        Part("entailment", "vlmo_tiny_entailment", small_task),
        Part("assignment", "vlmo_tiny_assignment", small_task, {"init_from": "entailment"}),
    )
    grid = small("first", "second")
    second = replace(
        grid.variants[1], set={**grid.variants[1].set, "task.mlm": 0.0}, tasks={"assignment": {"optim.lr": 1e-5}}
    )
    grid = replace(grid, variants=(grid.variants[0], second), tasks=tasks)
    planned = runs.plan(grid, tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in planned] == [
        "first/seed-0", "second/seed-0", "first/seed-0/tasks/entailment", "first/seed-0/tasks/assignment",
        "second/seed-0/tasks/entailment", "second/seed-0/tasks/assignment",
    ]  # fmt: skip
    assert [run.recipe.optim.lr == 1e-5 for run in planned] == [False] * 5 + [True]
    assert planned[5].needs == (planned[4].folder,)
    assert planned[4].needs == (planned[1].folder,)
    for run in planned:
        runs.carry_out(run)
    found = table.table(grid, tmp_path)
    assert {one.task for one in found.reached} == {"", "entailment", "assignment"}
    behind = found.costs[1].behind
    assert [part.part for part in behind("")] == ["second"]
    assert [part.part for part in behind("assignment")] == ["second", "entailment", "assignment"]
    without = table.table(grid.only(None, []), tmp_path)
    assert {one.task for one in without.reached} == {""}
    assert [part.part for part in found.costs[1].parts] == ["second", "entailment", "assignment"]


def test_an_equal_run_of_another_variant_or_ablation_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small("first", "again")
    first, again = runs.plan(grid, tmp_path / "one")
    assert again.needs == (first.folder,)
    runs.carry_out(first)
    monkeypatch.setattr(runs, "train", lambda *arguments, **options: pytest.fail("it was trained again"))
    (elsewhere,) = runs.plan(small("elsewhere"), tmp_path / "two")
    for run in (again, elsewhere):
        runs.carry_out(run)
        assert run.done
        assert (run.folder / "eval.json").read_text() == (first.folder / "eval.json").read_text()
    other, _ = runs.plan(replace(grid, seeds=(1,)), tmp_path / "one")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        runs.carry_out(other)


# --------------------------------------------------------------------------- the table


def judged(folder: Path, accuracy: float) -> None:
    """Writes the files that a run leaves behind."""
    folder.mkdir(parents=True)
    recipe = catalog.find_recipe("albef_tiny_entailment")
    (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    (folder / "eval.json").write_text(
        json.dumps({"accuracy": accuracy, "accuracy.interval": [accuracy - 2, accuracy + 2]})
    )
    (folder / "compute.json").write_text(json.dumps({"steps": 5, "records": 40, "flops": 2e12, "seconds": 9.0}))


def test_differences_are_paired_by_seed_with_student_s_interval(tmp_path: Path) -> None:
    grid = replace(given_grid("albef_tiny_entailment", ["first", "second"]), seeds=(0, 1, 2, 3))
    values = {"first": [60.0, 64.0, 70.0], "second": [63.0, 66.0, 74.0, 90.0]}
    for part in grid.variants:
        for seed, value in enumerate(values[part.name]):
            judged(runs.place(tmp_path, part, seed), value)
    found = {one.variant: one for one in table.table(grid, tmp_path).reached}
    assert found["first"].difference is None
    assert found["second"].difference == pytest.approx(3.0)  # the fourth seed has no partner
    expected = ttest_rel(values["second"][:3], values["first"]).confidence_interval(0.95)
    assert found["second"].difference_interval == pytest.approx((expected.low, expected.high))
    assert found["second"].mean == pytest.approx(73.25)
    assert found["second"].seeds[3].interval == (88.0, 92.0)


def test_each_variant_can_be_compared_with_the_one_before_it(tmp_path: Path) -> None:
    grid = replace(given_grid("albef_tiny_entailment", ["first", "second", "third"]), against="previous", seeds=(0, 1))
    for part, value in zip(grid.variants, (60.0, 63.0, 64.0), strict=True):
        for seed in grid.seeds:
            judged(runs.place(tmp_path, part, seed), value + seed * (value - 60))
    found = table.table(grid, tmp_path).reached
    assert [(one.against, one.difference) for one in found] == [
        (None, None), ("first", pytest.approx(4.5)), ("second", pytest.approx(1.5)),
    ]  # fmt: skip
    assert "minus the one above" in table.as_markdown(table.table(grid, tmp_path))


def test_differences_are_tested_together(tmp_path: Path) -> None:
    """The first of two differences stays beyond noise after Holm's correction, and the second does not."""
    grid = replace(given_grid("albef_tiny_entailment", ["first", "second", "third"]), seeds=(0, 1, 2, 3))
    values = {"first": [60.0, 64.0, 70.0, 66.0], "second": [63.0, 66.5, 73.5, 69.0], "third": [62.0, 64.0, 72.5, 66.5]}
    for part in grid.variants:
        for seed, value in enumerate(values[part.name]):
            judged(runs.place(tmp_path, part, seed), value)
    _, second, third = table.table(grid, tmp_path).reached
    alone = [ttest_rel(values[name], values["first"]).pvalue for name in ("second", "third")]
    assert second.p == pytest.approx(2 * alone[0])
    assert third.p == pytest.approx(max(alone[1], 2 * alone[0]))
    assert (second.verdict, third.verdict) == ("beyond noise", "within noise")


def test_as_many_seeds_as_said_would_find_the_effect_with_a_power_of_80_percent() -> None:
    differences = [1.0, 4.0, 2.0, 3.5]
    effect, spread = 2.625 / 2, 1.3769
    said = seeds_for(differences, share=0.5)
    assert said is not None
    bounds = [student.ppf(0.975, n - 1) for n in (said - 2, said + 1)]
    few, many = (
        nct.sf(bound, n - 1, effect / spread * n**0.5) for bound, n in zip(bounds, (said - 2, said + 1), strict=True)
    )
    assert few < 0.8 < many
    assert seeds_for([1.0, -1.0], share=0.5) is None
    assert seeds_for([1.0, -0.999], share=0.5) is None, "more than anybody would make"


def test_equal_differences_have_no_probability() -> None:
    """Two recalls of a thousand items often differ by the same number, which is no certainty."""
    assert paired_p([-3.0, -3.0]) is None
    assert paired_p([1.0]) is None
    assert paired_p([1.0, 2.0, 4.0]) == pytest.approx(ttest_rel([1.0, 2.0, 4.0], [0.0] * 3).pvalue)


def test_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    grid = replace(given_grid("albef_tiny_entailment", ["first", "second"]), seeds=(4,))
    for part in grid.variants:
        judged(runs.place(tmp_path, part, 4), 50.0)
    found = table.table(grid, tmp_path)
    assert [(one.interval, one.difference_interval) for one in found.reached] == [(None, None)] * 2
    assert "4: 50.0 (48.0 … 52.0)" in table.as_markdown(found)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_of_student_s_t_are_those_of_scipy(level: float) -> None:
    for freedom in (1, 2, 3, 4, 7, 30, 101):
        assert t_quantile(freedom, level) == pytest.approx(student.ppf(0.5 + level / 2, freedom))
