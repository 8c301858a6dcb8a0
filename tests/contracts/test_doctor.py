"""Tests the doctor on healthy logs, and on the same logs with one fault each."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.apps import doctor
from diptych.apps.doctor import CHECKS, Diagnosis, known, read_run, record
from diptych.apps.doctor.chance import chances
from diptych.apps.doctor.envelope import RECORDED, Envelope, _band, _quantile, differences
from diptych.apps.report.stages import training_rate
from diptych.catalog import RECIPES, find_recipe
from diptych.cli.main import main
from diptych.data.loader import Loaded
from diptych.recipes.override import override
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.loop import train
from tests.contracts.test_loop import Loader, Toy
from tests.contracts.test_loop import recipe as toy_recipe

ROOT = Path(__file__).parents[2]
Line = dict[str, Any]
EVERY = 25


def pairs() -> Recipe:
    """Gives a recipe with all losses that trains long enough to be judged."""
    changes = {"task.fuse_start": 500, "init_from": "runs/language", "run.steps": 2000, "schedule.warmup_steps": 400}
    return override(find_recipe("vlmo_tiny"), changes)


def line(recipe: Recipe, step: int) -> Line:
    """Writes a line of a healthy run of `pairs`, whose curves fall towards their floors."""
    left = math.exp(-step / 400)
    fused = step > 500
    losses = {"itc": 1.0 + 3.1 * left} | ({"itm": 0.3 + 0.35 * left, "mlm": 2.0 + 4 * left} if fused else {})
    measures = {
        "mi_bound": 3.1 * (1 - left), "temperature": 0.05 + 0.02 * left, "positive_similarity": 0.7 - 0.5 * left,
        "other_similarity": 0.1, "false_negatives": 0.02,
    }  # fmt: skip
    size = recipe.run.batch_size * recipe.optim.accumulate
    return {
        "step": step, "epoch": step / 1000, "pairs": size * step, "seconds": step / 10, "lr": 1e-4,
        "pairs_per_second": 640.0, "waiting": 0.02, "gradient_norm": 5.0 + math.sin(step), "loss": sum(losses.values()),
        "losses": losses, "measures": measures,
    }  # fmt: skip


def validation(step: int, value: float) -> Line:
    return {"step": step, "epoch": step / 1000, "pairs": 64 * step, "seconds": step / 10,
            "validation": {"mean_recall": value}}  # fmt: skip


STEPS = range(EVERY, 2000 + EVERY, EVERY)
START = {"from": "runs/language/checkpoints/step-00000600", "fresh": {"model.match_head": 2}, "untrained": []}
Change = Callable[[Line], None]
"""Changes a line in place."""


def write(
    folder: Path, recipe: Recipe, change: Change = lambda line: None, start: Mapping[str, Any] | None = START,
    recalls: Callable[[int], float] = lambda step: 60 - 6000 / step, steps: range = STEPS,
) -> Path:  # fmt: skip
    """Writes a run's folder as training leaves it."""
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    if start is not None:
        (folder / "start.json").write_text(json.dumps(start))
    lines = []
    for step in steps:
        lines.append(line(recipe, step))
        change(lines[-1])
        if step % 200 == 0:
            lines.append(validation(step, recalls(step)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def examine(folder: Path, envelopes: Sequence[Envelope] = ()) -> Diagnosis:
    return doctor.examine(read_run(folder), envelopes)


def levels(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.level for finding in diagnosis.findings}


def wrong(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings if finding.level == "wrong"}


def test_a_healthy_run_is_healthy(tmp_path: Path) -> None:
    diagnosis = examine(write(tmp_path / "run", pairs()))
    assert levels(diagnosis) == {
        "envelope": "unknown", "start": "fine", "loss: itc": "fine", "loss: itm": "fine", "loss: mlm": "fine",
        "features": "fine", "temperature": "fine", "false negatives": "fine", "validation": "fine", "gradient": "fine",
        "records": "fine", "loader": "fine",
    }  # fmt: skip
    assert diagnosis.healthy


# --------------------------------------------------------------------------- one fault each


def after(step: int, **changes: Any) -> Change:
    """Sets numbers from a step on, also as functions of the step. `measures__x` names one of the measures."""

    def change(line: Line) -> None:
        for name, value in changes.items():
            group, _, key = name.rpartition("__")
            place = line[group] if group else line
            if line["step"] > step and (key in place or group == "measures"):
                place[key] = value(line["step"]) if callable(value) else value

    return change


FAULTS: dict[str, tuple[str, Change]] = {
    "no better than guessing": ("loss: itc", after(0, measures__mi_bound=0.01)),
    "worse than guessing": ("loss: itc", after(0, measures__mi_bound=-0.3)),
    "matching not learnt": ("loss: itm", after(0, losses__itm=0.64)),
    "words not learnt": ("loss: mlm", after(0, losses__mlm=7.6)),
    "diverging": ("loss: course", after(1500, losses__mlm=lambda step: 2.2 + (step - 1500) / 300)),
    "contrast lost": ("loss: course", after(1400, measures__mi_bound=1.5)),
    "not a number": ("loss: course", after(1900, loss=math.nan)),
    "collapse": ("features", after(1200, measures__other_similarity=lambda step: 0.68)),
    "all alike": ("features", after(0, measures__other_similarity=0.96, measures__positive_similarity=1.0)),
    "sharp": ("temperature", after(1000, measures__temperature=0.001)),
    "flat": ("temperature", after(1000, measures__temperature=0.5)),
    "exploding": ("gradient", after(1900, gradient_norm=lambda step: 60.0 * (step - 1850))),
    "vanished": ("gradient", after(0, gradient_norm=1e-9)),
    "starved": ("loader", after(0, waiting=0.4)),
    "ever more skipped": ("records", after(1500, pairs=lambda step: 64 * 1500 + 58 * (step - 1500))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_else(fault: str, tmp_path: Path) -> None:
    name, change = FAULTS[fault]
    diagnosis = examine(write(tmp_path / "run", pairs(), change))
    assert wrong(diagnosis) == {name}
    finding = next(one for one in diagnosis.findings if one.name == name and one.level == "wrong")
    assert finding.do
    assert not diagnosis.healthy


def test_a_term_that_has_hardly_begun_to_learn_is_noted(tmp_path: Path) -> None:
    """This is how matching looks in the demo's VLMo."""
    diagnosis = examine(write(tmp_path / "run", pairs(), after(0, losses__itm=0.62)))
    assert diagnosis.healthy
    assert levels(diagnosis)["loss: itm"] == "note"


@pytest.mark.parametrize(("kept", "share", "level"), [
    (False, 0.3, "fine"), (False, 0.7, "note"), (True, 0.3, "wrong"), (True, 0.02, "note"), (True, 0.0, "fine"),
])  # fmt: skip
def test_false_negatives_are_wrong_where_they_are_kept(kept: bool, share: float, level: str, tmp_path: Path) -> None:
    recipe = override(pairs(), {"released.keep_false_negatives": kept})
    diagnosis = examine(write(tmp_path / "run", recipe, after(0, measures__false_negatives=share)))
    assert levels(diagnosis)["false negatives"] == level


@pytest.mark.parametrize(("recalls", "level"), [
    (lambda step: 60 - 6000 / step, "fine"), (lambda step: 50 if step < 1000 else 30, "wrong"),
    (lambda step: 50 - step / 1000, "note"),
])  # fmt: skip
def test_validation_that_falls_or_stalls_is_said(recalls: Callable[[int], float], level: str, tmp_path: Path) -> None:
    assert levels(examine(write(tmp_path / "run", pairs(), recalls=recalls)))["validation"] == level


def test_a_jump_of_the_gradient_that_passed_is_only_noted(tmp_path: Path) -> None:
    def once(line: Line) -> None:
        line["gradient_norm"] *= 100 if line["step"] == 1000 else 1

    assert levels(examine(write(tmp_path / "run", pairs(), once)))["gradient"] == "note"


def test_early_in_a_run_nothing_of_its_learning_is_judged(tmp_path: Path) -> None:
    """Before the warm-up ends, features are alike and ITC guesses in every run."""
    change = after(0, measures__mi_bound=0.0, measures__other_similarity=0.2, measures__positive_similarity=0.2)
    diagnosis = examine(write(tmp_path / "run", pairs(), change, steps=range(EVERY, 300, EVERY)))
    assert diagnosis.healthy
    assert levels(diagnosis)["loss: itc"] == levels(diagnosis)["features"] == "unknown"


def test_a_log_from_before_the_new_measures_is_read(tmp_path: Path) -> None:
    def older(line: Line) -> None:
        del line["waiting"], line["measures"]["other_similarity"], line["measures"]["false_negatives"]

    diagnosis = examine(write(tmp_path / "run", pairs(), older, start=None))
    assert diagnosis.healthy
    assert levels(diagnosis)["loader"] == levels(diagnosis)["false negatives"] == "unknown"
    assert levels(diagnosis)["features"] == "fine", "a bound above 0 excludes a collapse"


def test_lines_without_their_pairs_are_passed_over(tmp_path: Path) -> None:
    def odd(line: Line) -> None:
        if line["step"] == 10 * EVERY:
            del line["pairs"]
        if line["step"] == 11 * EVERY:
            line["pairs_per_second"] = 0.0

    run = write(tmp_path / "run", pairs(), odd)
    assert levels(examine(run))["records"] == "fine"
    assert (training_rate(run) or 0) > 0


def test_records_that_were_left_out_are_named_by_the_newest_checkpoint(tmp_path: Path) -> None:
    run = write(tmp_path / "run", pairs(), after(0, pairs=lambda step: 64 * step - step // 50))
    for step, name in ((9, "old.jpg"), (2000, "torn.jpg")):
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        state = {"skipped": {"seen": 9, "bad": [[name, "truncated", ""]]}}
        (run / "checkpoints" / f"step-{step:08d}" / "state.json").write_text(json.dumps(state))
    (run / "checkpoints" / "damaged-step-00001000").mkdir()
    findings = {finding.name: finding for finding in examine(run).findings}
    assert findings["records"].level == findings["checkpoints"].level == "note"
    assert "40 of 128,000 records were skipped (1 × truncated, such as torn.jpg)" in findings["records"].what
    assert "damaged-step-00001000" in findings["checkpoints"].what


# --------------------------------------------------------------------------- what it began with


@pytest.mark.parametrize(
    ("name", "changes", "level"),
    [
        ("albef_base", {}, "wrong"),
        ("albef_tiny", {}, "fine"),
        ("albef_small", {}, "fine"),
        ("vlmo_base", {"init_from": None}, "wrong"),
        ("vlmo_tiny", {}, "fine"),
        ("vlmo_base_language", {"init_from": None}, "wrong"),
        ("vlmo_base_vision", {}, "fine"),
        ("visual_tokenizer_tiny", {}, "fine"),
        ("albef_base_vqa", {"init_from": None}, "wrong"),
        ("vlmo_tiny_nlvr2", {"init_from": None}, "wrong"),
    ],
)
def test_a_run_from_nothing_is_wrong_where_the_paper_starts_from_something(
    name: str, changes: dict[str, Any], level: str, tmp_path: Path
) -> None:
    nothing = {"from": None, "fresh": {"model": 100}, "untrained": []}
    run = write(tmp_path / "run", replace(find_recipe(name), **changes), start=nothing)
    assert levels(examine(run))["start"] == level


@pytest.mark.parametrize(
    ("name", "fresh", "untrained", "level"),
    [
        ("vlmo_tiny", {"model.blocks.2.vl_ffn": 6, "model.match_head": 2, "model.pooler": 2}, [], "fine"),
        ("vlmo_tiny", {"model.blocks.0.language_ffn": 6}, [], "wrong"),
        ("vlmo_tiny_language", {"model.text": 3, "model.blocks.0.language_ffn": 6, "model.pooler": 2}, [], "fine"),
        ("vlmo_tiny_language", {}, ["blocks.*.attention", "text"], "wrong"),
        ("albef_base", {}, ["text.layers.*.cross", "word_head", "match_head"], "fine"),
        ("albef_base", {}, ["vision", "word_head"], "wrong"),
        ("albef_base_vqa", {"head": 60, "momentum_head": 60}, [], "fine"),
    ],
)
def test_an_encoder_that_began_random_is_named(
    name: str, fresh: dict[str, int], untrained: list[str], level: str, tmp_path: Path
) -> None:
    recipe = replace(find_recipe(name), init_from="runs/before")
    start = {"from": "runs/before", "fresh": fresh, "untrained": untrained}
    (finding,) = (f for f in examine(write(tmp_path / "run", recipe, start=start)).findings if f.name == "start")
    assert finding.level == level
    assert ("12 points" in finding.do) == (level == "wrong")


# --------------------------------------------------------------------------- chance


def test_chance_is_what_even_guesses_cost() -> None:
    """The expected values are softmax cross-entropies of equal scores, computed here."""
    levels = {one.term: one.nats for name in RECIPES for one in chances(find_recipe(name))}
    assert levels.keys() == {"itc", "itm", "mlm", "masked_image", "entailment", "nlvr2", "text_assignment"}
    even = {one.term: one.nats for one in chances(find_recipe("vlmo_tiny"))}
    for term, classes in (("itc", 64), ("mlm", 2000)):
        assert even[term] == pytest.approx(-np.log(np.ones(classes) / classes).mean())
    guesses = np.linspace(0.01, 0.99, 99)
    assert even["itm"] == pytest.approx(min(-(np.log(p) + 2 * np.log(1 - p)) / 3 for p in guesses), abs=1e-3)


# --------------------------------------------------------------------------- envelopes


def test_a_quantile_is_numpys() -> None:
    values = sorted(np.random.default_rng(0).normal(size=17).tolist())
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert _quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_a_band_holds_its_run_and_narrows_with_more_runs() -> None:
    curve = [(step, 4 * math.exp(-step / 500) + 1) for step in STEPS]
    one, four = _band([curve]), _band([curve] * 4)
    for step, value in curve:
        low, high = one.at(step)
        assert low < value < high
        assert low <= four.at(step)[0] < value < four.at(step)[1] <= high
    assert one.at(0) == one.at(EVERY), "before the first step, as there"
    joined = [(step + 1000, value) for step, value in curve]
    shifted = _band([joined], since=1000)
    assert [shifted.at(step + 1000) for step in STEPS] == [one.at(step) for step in STEPS], "steps count from its own"
    assert one.at(40) == pytest.approx(tuple(0.4 * a + 0.6 * b for a, b in zip(one.at(25), one.at(50), strict=True)))


@pytest.mark.parametrize(("factor", "level"), [(1.0, "fine"), (1.03, "fine"), (1.5, "wrong"), (0.5, "note")])
def test_a_loss_is_judged_by_the_envelope_of_its_recipe(factor: float, level: str, tmp_path: Path) -> None:
    trusted = record([read_run(write(tmp_path / "trusted", pairs()))])
    other = override(pairs(), {"run.seed": 5, "run.validate_every": 100, "init_from": "elsewhere", "data.workers": 3})

    def change(line: Line) -> None:
        line["losses"]["itc"] *= factor

    diagnosis = examine(write(tmp_path / "run", other, change), [trusted])
    assert levels(diagnosis)["envelope: itc"] == level
    assert levels(diagnosis)["envelope: mlm"] == "fine"


@pytest.mark.parametrize(
    "changes", [{"optim.lr": 0.1}, {"run.batch_size": 8}, {"model.depth": 5}, {"init_from": None}, {"run.steps": 5000}]
)
def test_an_envelope_of_another_recipe_is_not_used_and_the_difference_named(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    trusted = record([read_run(write(tmp_path / "trusted", pairs()))])
    diagnosis = examine(write(tmp_path / "run", override(pairs(), changes)), [trusted])
    (finding,) = (one for one in diagnosis.findings if one.name.startswith("envelope"))
    assert finding.level == "unknown"
    assert f"{next(iter(changes))} differ" in finding.what


def test_only_ended_runs_of_one_recipe_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", pairs())
    other = write(tmp_path / "other", override(pairs(), {"optim.lr": 0.5}))
    stopped = write(tmp_path / "stopped", pairs(), steps=range(EVERY, 1000, EVERY))
    short = write(tmp_path / "short", pairs(), steps=range(1975, 2025, EVERY))
    for runs, message in (
        ([one, other], "other has another recipe than"),
        ([one, stopped], "stopped has not ended: it is at step 975 of 2000"),
        ([short], "short has logged 2 lines; an envelope needs 8"),
        ([tmp_path], "holds no run: it has no recipe.json"),
    ):
        assert main(["doctor", "--record", *map(str, runs), "--to", str(tmp_path / "e.json")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "e.json").exists()


def test_a_recorded_envelope_is_used_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write(tmp_path / name, pairs())) for name in ("one", "two")]
    file = tmp_path / "e.json"
    assert main(["doctor", "--record", *runs, "--to", str(file)]) == 0
    assert main(["doctor", runs[0], "--envelope", str(file)]) == 0
    assert "(2 runs of vlmo_tiny)" in capsys.readouterr().out
    file.write_text("{}")
    assert main(["doctor", runs[0], "--envelope", str(file)]) == 2
    assert "is no envelope: make one with `diptych doctor --record" in capsys.readouterr().err


def test_the_envelopes_of_the_package_are_of_its_recipes() -> None:
    """The envelope of a changed recipe must be recorded again: `diptych doctor --record`."""
    files = sorted(RECORDED.glob("*.json"))
    assert files
    for file in files:
        recorded = Envelope.read(file)
        assert recorded.recipe.name == file.stem
        assert not differences(recorded.recipe, replace(find_recipe(file.stem), init_from=recorded.recipe.init_from))
        assert recorded.bands
        assert known(file.stem)[0].bands.keys() == recorded.bands.keys()
    assert known("albef_base") == [], "none is recorded"


# --------------------------------------------------------------------------- the command


def test_the_command_says_what_is_wrong_first_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", pairs(), FAULTS["starved"][1])
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(run)])
    assert end.value.code == 1
    text = capsys.readouterr().out
    assert text.startswith(f"{run}: vlmo_tiny, step 2,000 of 2,000\n\n  wrong   loader: 40% of the time")
    assert "→ raise data.workers" in text
    assert "1 thing is wrong" in text
    with pytest.raises(SystemExit):
        main(["doctor", str(run), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["healthy"] is False
    assert [one["name"] for one in printed["findings"] if one["level"] == "wrong"] == ["loader"]


def test_a_log_is_read_without_torch(tmp_path: Path) -> None:
    run = write(tmp_path / "run", pairs())
    code = "import sys; from diptych.cli.main import main; main(['doctor', sys.argv[1]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_folder_that_has_logged_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", pairs())
    (run / "metrics.jsonl").write_text('{"step": 25, "lo')
    assert main(["doctor", str(run)]) == 2
    assert "has logged no step yet" in capsys.readouterr().err


@pytest.mark.parametrize(("chance", "level"), [(40.0, "fine"), (50.5, "note"), (53.0, "wrong")])
def test_validation_is_judged_beside_what_a_guesser_gets(tmp_path: Path, chance: float, level: str) -> None:
    run = write(tmp_path / "run", pairs(), recalls=lambda step: 50 + step / 1000)
    lines = [json.loads(one) for one in (run / "metrics.jsonl").read_text().splitlines()]
    for one in lines:
        if "validation" in one:
            one["validation"]["chance"] = chance
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (found,) = (finding for finding in examine(run).findings if finding.name == "validation")
    assert found.level == level
    assert f"guessing gets {chance:.1f} %" in found.what


def test_every_finding_has_a_heading_in_the_page() -> None:
    """The name of a finding is its first argument, up to a colon."""
    text = "".join(path.read_text() for path in (ROOT / "diptych" / "apps" / "doctor").glob("*.py"))
    names = set(re.findall(r'Finding\(\s*f?"([a-z ]+)', text)) | set(re.findall(r'name = f"([a-z ]+): ', text))
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert len(names) >= len(CHECKS)
    assert {name.strip() for name in names} <= set(re.findall(r"^### `([a-z ]+)`", page, flags=re.MULTILINE))


# --------------------------------------------------------------------------- what training writes


class Slow(Loader):
    """A loader whose batches take a while."""

    def batches(self, start_step: int) -> Iterator[Loaded]:
        for loaded in super().batches(start_step):
            time.sleep(0.05)
            yield loaded


def test_a_loader_that_really_is_slow_is_found(tmp_path: Path) -> None:
    """A batch takes 50 ms beside a step on six numbers, and the other way round."""
    patient = Toy()
    patient.hook = lambda progress: time.sleep(0.05)
    train(Toy(), Slow(), toy_recipe(), tmp_path / "slow")
    train(patient, Loader(), toy_recipe(), tmp_path / "quick")
    shares = [json.loads(line)["waiting"] for line in (tmp_path / "slow" / "metrics.jsonl").read_text().splitlines()]
    assert all(0.25 < share < 1 for share in shares)
    assert "loader" in wrong(examine(tmp_path / "slow"))
    assert "loader" not in wrong(examine(tmp_path / "quick"))
