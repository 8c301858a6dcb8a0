"""Where the disk has damaged checkpoints, a run goes on from the last whole one, and says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.checkpoints import store
from diptych.cli.main import main
from diptych.run import train
from tests.smoke.killable import RECIPE

NEWEST, BEFORE = "step-00000012", "step-00000008"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains an undisturbed run."""
    kept = replace(RECIPE, run=replace(RECIPE.run, keep_checkpoints=3))
    return train(kept, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Copies the undisturbed run."""
    return shutil.copytree(whole, tmp_path / "run")


def result(run: Path) -> dict[str, Any]:
    """Returns the bits that a run ends with, its state and its log, without times."""
    newest = run / "checkpoints" / NEWEST
    checkpoint, manifest = store.load(newest), json.loads((newest / "manifest.json").read_text())
    manifest.pop("state.json")
    state = {**checkpoint.state, "run": {**checkpoint.state["run"], "seconds": None}}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = [{key: line[key] for key in line if "second" not in key and key != "waiting"} for line in lines]
    return {"manifest": manifest, "state": state, "log": log}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped weights": ("weights.safetensors", flip),
    "cut optimizer": ("optimizer.safetensors", cut),
    "missing state": ("state.json", Path.unlink),
    "empty recipe": ("recipe.json", empty),
    "missing words": ("tokenizer/vocab.txt", Path.unlink),
    "missing manifest": ("manifest.json", Path.unlink),
    "cut manifest": ("manifest.json", cut),
    "emptied manifest": ("manifest.json", lambda path: path.write_text("{}")),
    "another manifest": ("manifest.json", lambda path: path.write_text('{"state.json": 3, "recipe.json": []}')),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_after_damage_ends_with_the_bits_of_an_undisturbed_run(
    damage: str, whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, harm = DAMAGES[damage]
    checkpoints = run / "checkpoints"
    harm(checkpoints / NEWEST / name)
    harmed = {path.name: path.read_bytes() for path in (checkpoints / NEWEST).glob("*.*")}
    assert main(["resume", str(run)]) == 0
    output = capsys.readouterr().err
    assert output.startswith(f"{checkpoints / NEWEST / name} ")
    assert f"going on from {checkpoints / BEFORE} instead: 4 steps are lost and done again" in output
    assert result(run) == result(whole)
    kept = checkpoints / f"damaged-{NEWEST}"
    assert {path.name: path.read_bytes() for path in kept.glob("*.*")} == harmed, "set aside as it was found"


def test_all_damaged_checkpoints_after_the_last_whole_one_are_set_aside(
    whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It damages them twice, so that the names of damaged checkpoints are taken already."""
    checkpoints = run / "checkpoints"
    for _ in range(2):
        for name in (NEWEST, BEFORE):
            flip(checkpoints / name / "weights.safetensors")
        assert main(["resume", str(run)]) == 0
        output = capsys.readouterr().err
        assert re.findall(r"(\d+) steps are lost", output) == ["7", "3"]
        assert result(run) == result(whole)
    assert {path.name for path in checkpoints.glob("damaged-*")} == {
        f"damaged-{name}{number}" for name in (NEWEST, BEFORE) for number in ("", "-2")
    }


def test_where_none_is_whole_all_are_named_and_nothing_is_touched(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = sorted((run / "checkpoints").iterdir())
    assert len(folders) == 3
    for folder in folders:
        cut(folder / "weights.safetensors")
    before = (run / "metrics.jsonl").read_text()
    for verb in ("resume", "evaluate"):
        assert main([verb, str(run)]) == 2
        output = capsys.readouterr().err
        assert f"none of the 3 checkpoints in {run / 'checkpoints'} is whole" in output
        assert all(f"{folder / 'weights.safetensors'} has " in output for folder in folders)
    assert sorted((run / "checkpoints").iterdir()) == folders
    assert (run / "metrics.jsonl").read_text() == before


def test_what_is_no_run_to_continue_is_not_trained_from_the_beginning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.jsonl").read_text()
    assert main(["resume", str(run / "checkpoints" / NEWEST)]) == 2
    assert f"is a checkpoint of a run: resume the run, {run}" in capsys.readouterr().err
    exported = run.with_name("exported")
    assert main(["export", str(run), "--to", str(exported)]) == 0
    capsys.readouterr()
    assert main(["resume", str(exported)]) == 2
    assert "is an exported model, not a run" in capsys.readouterr().err
    assert not (exported / "metrics.jsonl").exists()
    shutil.rmtree(run / "checkpoints")
    assert main(["resume", str(run)]) == 2
    assert "reaches step 12, but" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_without_a_first_checkpoint_starts_again_and_says_so(
    whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    log = run / "metrics.jsonl"
    early = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] < 4]
    log.write_text("".join(early))
    assert main(["resume", str(run)]) == 0
    assert "has no checkpoint yet: the run starts again at step 0" in capsys.readouterr().err
    assert result(run) == result(whole)


def test_a_training_that_fails_before_it_begins_leaves_its_name_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["train", "albef_tiny", "data.scenes.sprites=shapes", "run.steps=0", "--folder", str(folder)]) == 2
    assert "run.steps must be at least 1" in capsys.readouterr().err
    assert not folder.exists()


def test_evaluating_takes_the_next_best_and_says_so_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = store.load_from(run).folder
    flip(chosen / "weights.safetensors")
    assert main(["evaluate", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    measured = json.loads(captured.out)["checkpoint"]
    (chosen / "state.json").unlink()
    assert measured == store.best(chosen.parent).name
    assert measured != chosen.name
    assert captured.err.count(f"{chosen / 'weights.safetensors'} is damaged") == 1
    assert f"taking {chosen.parent / measured} instead" in captured.err
    assert chosen.is_dir(), "measuring moves nothing"
    assert main(["evaluate", str(chosen)]) == 2, "the very checkpoint was asked for"


def test_neither_the_clock_nor_the_times_of_files_matter(
    whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes back by an hour whenever it is read, and the newest checkpoint has the oldest date."""
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    checkpoints = run / "checkpoints"
    best = store.best(checkpoints)
    shutil.rmtree(checkpoints / NEWEST)
    for age, folder in enumerate(sorted(checkpoints.iterdir())):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (10_000 - age, 10_000 - age))
    newest, _ = store.newest_whole(checkpoints)
    assert newest is not None
    assert newest.folder.name == BEFORE
    assert store.best(checkpoints) == best
    assert main(["resume", str(run)]) == 0
    assert result(run) == result(whole)
    seconds = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_the_doctor_reads_what_training_wrote(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # a loader of such small steps may well be called slow
        main(["doctor", str(whole), "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["start"]["what"] == "the run started from random weights, which this model is built for"
    assert findings["records"]["level"] == "fine", "every step had all its pairs, accumulated ones too"
    assert findings["features"]["level"] == "unknown", "twelve steps are too few"
    assert "do not belong together" in findings["features"]["what"]
    assert findings["false negatives"]["level"] == "fine"
    assert "time is spent waiting for data" in findings["loader"]["what"]
    start = json.loads((whole / "start.json").read_text())
    assert (start["from"], start["untrained"], start["borrowed"]) == (None, [], [])
    assert start["fresh"].keys() == {"model", "momentum_encoder", "queue"}


def test_nothing_asks_for_the_time_of_day_or_orders_by_the_times_of_files() -> None:
    """These exceptions are harmless. Indices and caches compare the times of files for equality, to see that one has
    changed. Downloads and kept vectors are dropped by their last use, where a clock that goes backwards only costs
    another download or embedding. The app drops what arrived of an upload long ago, so that a clock that jumps costs
    another upload. MLflow wants the time of each measure.
    """
    clock = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(datetime|date|now)\b|getmtime|st_[acm]time")
    sources = {path: path.read_text() for path in Path(diptych.__file__).parent.rglob("*.py")}
    names = {f"{path.parent.name}/{path.name}" for path, text in sources.items() if clock.search(text)}
    assert names == {
        "sources/texts.py", "shards/index.py", "shards/cache.py", "index/items.py", "index/presence.py",
        "index/states.py",
        "data/tables.py", "pretrained/named.py", "train/trackers.py", "predict/kept_vectors.py", "app/guard.py",
    }  # fmt: skip
