"""Trackers receive every line of the log, of a resumed run under the same id, and never end a training."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from diptych.train import trackers
from diptych.train.loop import train
from tests.contracts.test_loop import Loader, Toy, lines, recipe

FOLDER = "fox"


class Recorder:
    """Stands in for a tracker's package: notes what it is told."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.logged: dict[str, dict[int, float]] = {}
        self.ended: list[bool] = []
        self.fail_at: int | None = None
        self.closing = lambda: None

    def open(self, **arguments: Any) -> Recorder:
        self.opened.append(arguments)
        self.id = arguments["id"] if arguments.get("id") else f"id-{len(self.opened)}"
        return self

    def log(self, values: dict[str, float], step: int, **rest: Any) -> None:
        if step == self.fail_at:
            raise RuntimeError("no route to host\nmore")
        for name, value in values.items():
            self.logged.setdefault(name, {})[step] = value

    def finish(self, exit_code: int | None = None) -> None:
        self.closing()
        self.ended.append(bool(exit_code))


class Client:
    """Stands in for MLflow's client."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.parameters, self.status, self.calls = recorder, {}, [], []
        self.experiments: dict[str, str] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        self.recorder.open(name=run_name, experiment=experiment_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=self.recorder.id))

    def update_run(self, run_id: str, status: str) -> None:
        self.recorder.open(id=run_id)
        self.status.append(status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), synchronous: bool = True) -> None:
        assert run_id == self.recorder.id
        assert len(params) <= 100
        self.calls.append(synchronous)
        self.parameters |= dict(params)
        for name, value, _, step in metrics:
            self.recorder.log({name: value}, step)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status.append(status)
        self.recorder.finish(int(status != "FINISHED"))


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Installs a small module in the place of a tracker's package."""
    recorder, module = Recorder(), ModuleType(name)
    if name == "mlflow":
        entities = ModuleType("mlflow.entities")
        entities.Metric, entities.Param = (lambda *a: a), (lambda *a: a)  # type: ignore[attr-defined]
        recorder.client = Client(recorder)  # type: ignore[attr-defined]
        module.MlflowClient = lambda: recorder.client  # type: ignore[attr-defined]
        module.flush_async_logging = lambda: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    else:
        module.init = recorder.open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return recorder


OTHERS = ("wandb", "mlflow", "trackio")


@pytest.mark.parametrize("name", OTHERS)
def test_a_tracker_receives_every_line_of_the_log(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = stand_in(name, monkeypatch)
    train(Toy(), Loader(), recipe(run__trackers=name), tmp_path / FOLDER)
    logged = lines(tmp_path / FOLDER)
    assert recorder.logged["losses/a"] == {line["step"]: line["losses"]["a"] for line in logged}
    assert recorder.logged["lr"] == {line["step"]: line["lr"] for line in logged}
    assert recorder.opened[0]["name"].startswith(FOLDER)
    assert recorder.ended == [False]


@pytest.mark.parametrize("name", OTHERS)
def test_a_resumed_run_goes_on_under_its_id_and_a_failed_one_is_said_to_have_failed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = stand_in(name, monkeypatch)
    changes = {"run__trackers": name, "run__checkpoint_every": 2}
    with pytest.raises(ValueError, match="not finite at step 5: the loss is nan"):
        train(Toy(poison=4), Loader(), recipe(**changes), tmp_path / FOLDER)
    first = json.loads((tmp_path / FOLDER / "trackers.json").read_text())[name]
    train(Toy(), Loader(), recipe(**changes), tmp_path / FOLDER, resume=True)
    assert recorder.opened[-1].get("id", recorder.opened[-1].get("name")) == first
    assert recorder.ended[-1] is False
    if name != "trackio":  # which has no status of a run
        assert recorder.ended[0] is True
    assert sorted(recorder.logged["losses/a"]) == [1, 2, 3, 4, 5, 6]


def test_mlflow_has_the_recipe_as_parameters_and_does_not_hold_up_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "foxes")
    client = stand_in("mlflow", monkeypatch).client  # type: ignore[attr-defined]
    train(Toy(), Loader(), recipe(run__trackers="mlflow"), tmp_path / FOLDER)
    assert client.parameters["optim.lr"] == "0.01"
    assert client.parameters["data.scenes.size"]
    assert list(client.experiments) == ["foxes"]
    assert client.calls[-1] is False


def test_wandb_has_the_recipe_and_follows_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = stand_in("wandb", monkeypatch)
    monkeypatch.setenv("WANDB_PROJECT", "foxes")
    train(Toy(), Loader(), recipe(run__trackers="wandb"), tmp_path / FOLDER)
    opened = recorder.opened[0]
    assert (opened["project"], opened["dir"]) == ("foxes", str(tmp_path / FOLDER))
    assert opened["config"]["optim"]["lr"] == 0.01


@pytest.mark.parametrize("field", ["run__tensorboard", "run__trackers"])
def test_tensorboard_by_either_field(field: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    value = True if field == "run__tensorboard" else "tensorboard"
    train(Toy(), Loader(), recipe(**{field: value}), tmp_path / "run")
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    stored = [(event.step, event.value) for event in curves.Scalars("losses/a")]
    logged = [(line["step"], line["losses"]["a"]) for line in lines(tmp_path / "run")]
    assert [step for step, _ in stored] == [step for step, _ in logged]
    assert [value for _, value in stored] == pytest.approx([value for _, value in logged])


@pytest.mark.parametrize("name", [*OTHERS, "tensorboard"])
def test_a_missing_tracker_is_named_with_its_extra_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name][1], None)
    task = Toy()
    extra = "track" if name == "tensorboard" else name
    with pytest.raises(ValueError, match=rf"run\.trackers asks for {name}.*pip install 'diptych\[{extra}\]'"):
        train(task, Loader(), recipe(run__trackers=name), tmp_path / "run")
    assert task.calls == []
    assert not (tmp_path / "run").exists()


def test_every_name_of_the_schema_has_a_tracker_and_an_extra() -> None:
    import tomllib
    from typing import get_args

    from diptych.schema import TrackerName

    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(trackers.TRACKERS) == set(get_args(TrackerName))
    assert all(extra.removeprefix("diptych[").rstrip("]") in extras for _, _, extra, _ in trackers.TRACKERS.values())


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb, trackio = stand_in("wandb", monkeypatch), stand_in("trackio", monkeypatch)
    wandb.fail_at = 3
    train(Toy(), Loader(), recipe(run__trackers="wandb,trackio"), tmp_path / FOLDER)
    said = capsys.readouterr().err
    assert said.count("Weights & Biases receives no more, because it failed at step 3: no route to host") == 1
    assert sorted(wandb.logged["lr"]) == [1, 2]
    assert sorted(trackio.logged["lr"]) == [line["step"] for line in lines(tmp_path / FOLDER)] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_cannot_be_opened_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = stand_in("wandb", monkeypatch)

    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key configured")

    recorder.open = refuse  # type: ignore[method-assign,assignment]
    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    task = Toy()
    with pytest.raises(ValueError, match=r"Weights & Biases cannot be opened \(no API key configured\)"):
        train(task, Loader(), recipe(run__trackers="wandb"), tmp_path / FOLDER)
    assert task.calls == []


def test_the_end_of_a_run_does_not_wait_for_a_tracker_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = stand_in("wandb", monkeypatch)
    released = threading.Event()
    recorder.closing = released.wait  # type: ignore[assignment]
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    train(Toy(), Loader(), recipe(run__trackers="wandb"), tmp_path / FOLDER)
    assert "Weights & Biases took over 0.2 s to close" in capsys.readouterr().err
    released.set()
