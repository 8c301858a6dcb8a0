"""A checkpoint is complete or not there. Damage is named, and damaged checkpoints are never loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.checkpoints import store
from diptych.checkpoints.store import CheckpointError, CheckpointState
from tests.disk import full_disk


def content(step: int = 0, measure: float | None = None, size: int = 8, **changes: Any) -> CheckpointState:
    base: dict[str, Any] = {
        "weights": {"w": torch.full((size,), float(step)), "queue.ids": torch.arange(3)},
        "optimizer": {"exp_avg/w": torch.ones(size)},
        "state": {"step": step, "measure": measure},
        "recipe": {"name": "x"},
        "save_tokenizer": lambda folder: (folder / "vocab.txt").write_text("[PAD]\n"),
    }
    return CheckpointState(**{**base, **changes})


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = content(7, 0.5)
    checkpoint = store.load(store.save_checkpoint(tmp_path / "c", 7, saved))
    assert checkpoint.folder == tmp_path / "c" / "step-00000007"
    assert (checkpoint.state, checkpoint.recipe) == (saved.state, saved.recipe)
    for stored, tensors in ((checkpoint.weights(), saved.weights), (checkpoint.optimizer(), saved.optimizer)):
        assert stored.keys() == tensors.keys()
        assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    assert (checkpoint.tokenizer / "vocab.txt").read_text() == "[PAD]\n"


def test_tied_and_transposed_tensors_are_stored_under_each_name(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    weights = {"a": table, "b": table, "c": table.T}
    loaded = store.load(store.save_checkpoint(tmp_path, 1, content(weights=weights))).weights()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_only_safe_formats_are_written(tmp_path: Path) -> None:
    folder = store.save_checkpoint(tmp_path, 1, content())
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json", ".txt"}


def test_others_may_read_a_checkpoint_as_they_may_read_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    folder = store.save_checkpoint(tmp_path, 1, content())
    plain = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {plain}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "tokenizer/vocab.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = store.save_checkpoint(tmp_path, 1, content()) / name
    raw = path.read_bytes()
    if damage == "flip":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(raw[:-1])
    else:
        path.unlink()
    with pytest.raises(
        CheckpointError, match=rf"{name} (is damaged|has \d+ bytes|is missing).*: use another checkpoint"
    ):
        store.load(path.parents[name.count("/")])


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    folder = store.save_checkpoint(tmp_path, 1, content())
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        store.load(folder)


def test_latest_and_best_are_found_and_pruning_keeps_them(tmp_path: Path) -> None:
    assert store.latest(tmp_path) is None
    assert store.best(tmp_path) is None
    for step, measure in ((1, 0.2), (2, 0.9), (3, None), (4, 0.9), (10, 0.1)):
        store.save_checkpoint(tmp_path, step, content(step, measure))
    assert store.latest(tmp_path) == tmp_path / "step-00000010"
    assert store.best(tmp_path) == tmp_path / "step-00000002"
    store.prune(tmp_path, newest=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000010"]


def test_find_takes_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    for step, measure in ((1, 0.9), (2, 0.1)):
        store.save_checkpoint(tmp_path / "run" / "checkpoints", step, content(step, measure))
    best = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert store.load_from(tmp_path / "run").folder == best
    assert store.load_from(str(best)).folder == best
    with pytest.raises(CheckpointError, match="nowhere does not exist: name a run folder"):
        store.load_from(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no checkpoint"):
        store.load_from(tmp_path / "empty")


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    store.save_checkpoint(tmp_path, 1, content())
    with pytest.raises(CheckpointError, match="is there already"):
        store.save_checkpoint(tmp_path, 1, content())


def test_a_full_disk_is_said_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    first = store.save_checkpoint(tmp_path, 1, content(1))
    message = r"step 2 could not be written .*; the last whole one is .*step-00000001"
    with full_disk(100_000), pytest.raises(CheckpointError, match=message):
        store.save_checkpoint(tmp_path, 2, content(2, size=1_000_000))
    assert names(tmp_path) == [first.name]
    assert store.load(first).weights()["w"][0] == 1


SAVE_FOR_EVER = """
import sys, torch, itertools
from pathlib import Path
from diptych.checkpoints.store import CheckpointState, save_checkpoint, prune
for step in itertools.count(1):
    weights = {str(i): torch.full((50_000,), float(step)) for i in range(4)}
    save_checkpoint(Path(sys.argv[1]), step, CheckpointState(weights, weights, {"step": step}, {}))
    prune(Path(sys.argv[1]), 2)
    print(step, flush=True)
"""


def test_a_kill_in_the_middle_of_saving_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    interrupted = 0
    try:
        process.stdout.readline()
        # The process is stopped in the middle of its work and looked at; the last time it is killed there.
        for pause in torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist():
            time.sleep(pause / 50)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            interrupted += any(path.name.startswith(".unfinished-") for path in tmp_path.iterdir())
            newest = store.latest(tmp_path)
            assert newest is not None
            checkpoint = store.load(newest)
            assert all(bool((value == checkpoint.state["step"]).all()) for value in checkpoint.weights().values())
            process.send_signal(signal.SIGCONT)
        while not any(path.name.startswith(".unfinished-") for path in tmp_path.iterdir()):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert interrupted, "no pause fell into a save: the test saw nothing"
    newest = store.latest(tmp_path)
    assert newest is not None
    step = store.load(newest).state["step"]
    store.save_checkpoint(tmp_path, step + 1, content(step + 1))
    assert all(name.startswith("step-") for name in names(tmp_path)), "what the kill left is cleaned up"


def test_weights_must_fit_by_name_and_shape() -> None:
    module = nn.Linear(2, 3)
    weights: dict[str, Tensor] = {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"there is not of this model: missing bias; unknown extra; weight is \(3, 3\)"
    ):
        store.load_into(module, weights, "there")
    store.load_into(module, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "there")
    assert module.weight.sum() == 6


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = store.save_checkpoint(tmp_path, 1, content())
    listed = set(json.loads((folder / "manifest.json").read_text()))
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == present - {"manifest.json"}
