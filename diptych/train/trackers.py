"""Sends a run's log to experiment trackers, beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow and trackio.

A tracker is three calls (`Tracker`). Where its data go is its own setting: `tensorboard` writes into the run's folder,
the others follow their environment variables (`WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR` and the like).
A resumed run goes on under the id that `trackers.json` in its folder holds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diptych.checkpoints.files import flush
from diptych.reading import read_object
from diptych.schema import Recipe, RunConfig
from diptych.serialize import to_dict

PROJECT = "diptych"
"""Project, or experiment, of runs for which the tracker's own environment variable names none."""
CLOSE_SECONDS = 60.0
"""How long the end of a run waits for a tracker to send what it still holds."""
PARAMETERS_PER_CALL = 100
"""The most parameters that MLflow takes in a call."""
IDS = "trackers.json"


@runtime_checkable
class Tracker(Protocol):
    """Receives the numbers of a run."""

    @property
    def id(self) -> str | None:
        """The name under which a resumed run goes on; None where the run's folder is enough."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers by names such as `losses/itc`. Sends them without holding up the training."""
        ...

    def close(self, failed: bool) -> None:
        """Sends what is left, and says whether the run ended by an error or a signal."""
        ...


Open = Callable[[Path, Recipe, int, str | None], Tracker]
"""Opens a tracker for the run in a folder, with its recipe, the step that it goes on from, and the tracker's own id of
the run if it is resumed."""


class TensorBoard:
    """Writes event files into `tensorboard` in the run's folder."""

    id = None

    def __init__(self, folder: Path, recipe: Recipe, step: int, id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases, or to its files in the run's folder with WANDB_MODE=offline."""

    def __init__(self, folder: Path, recipe: Recipe, step: int, id: str | None) -> None:
        wandb = import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(
            project=project, name=_name(folder), dir=str(folder), config=to_dict(recipe), id=id, resume="allow"
        )
        self.id: str | None = self.run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """Logs to the MLflow server, or store, of MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, recipe: Recipe, step: int, id: str | None) -> None:
        self.entities, client = import_module("mlflow.entities"), import_module("mlflow").MlflowClient()
        if id is None:
            # The client is asked instead of mlflow.start_run, whose run other code of this process would share.
            id = client.create_run(self._experiment(client), run_name=_name(folder)).info.run_id
            pairs = list(_flat(to_dict(recipe), "."))
            parameters = [self.entities.Param(name, str(value)) for name, value in pairs]
            for first in range(0, len(parameters), PARAMETERS_PER_CALL):
                client.log_batch(id, params=parameters[first : first + PARAMETERS_PER_CALL])
        else:
            client.update_run(id, status="RUNNING")
        self.client, self.id = client, id

    @staticmethod
    def _experiment(client: Any) -> str:
        """Returns the id of the experiment that the environment names, which is made if it is new."""
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        return known.experiment_id if known else client.create_experiment(name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics, synchronous=False)

    def close(self, failed: bool) -> None:
        import_module("mlflow").flush_async_logging()
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Trackio:
    """Logs to trackio, whose data base is local unless TRACKIO_SPACE_ID names a Space."""

    def __init__(self, folder: Path, recipe: Recipe, step: int, id: str | None) -> None:
        trackio = import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # A run of trackio is known by its name. A time makes it another one than the last run of this folder's name.
        self.id: str | None = id or f"{_name(folder)}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.run = trackio.init(project=project, name=self.id, config=to_dict(recipe), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, tuple[str, str, str, Open]] = {
    "tensorboard": ("TensorBoard", "torch.utils.tensorboard", "diptych[track]", TensorBoard),
    "wandb": ("Weights & Biases", "wandb", "diptych[wandb]", WeightsAndBiases),
    "mlflow": ("MLflow", "mlflow", "diptych[mlflow]", MLflow),
    "trackio": ("trackio", "trackio", "diptych[trackio]", Trackio),
}
"""Each value of `run.trackers`: what it is called, its module, its extra, and how it is opened."""


def chosen(run: RunConfig) -> tuple[str, ...]:
    """Lists the trackers of a run, each once. `run.tensorboard` is the older way to ask for the first."""
    return tuple(dict.fromkeys([*(["tensorboard"] if run.tensorboard else []), *run.trackers]))


def require_trackers(run: RunConfig) -> None:
    """Raises ValueError for the first tracker that is not installed, before anything is read or written."""
    for name in chosen(run):
        title, module, extra, _ = TRACKERS[name]
        try:
            import_module(module)
        except ImportError:
            field = "run.trackers" if name in run.trackers else "run.tensorboard"
            raise ValueError(
                f"{field} asks for {name}, but {title} is not installed: pip install '{extra}', or leave it out"
            ) from None


class Trackers:
    """All trackers of a run. One that fails is named once and left out: `metrics.jsonl` has every line anyway."""

    def __init__(self, folder: Path, recipe: Recipe, step: int, say: Callable[[str], None]) -> None:
        """Opens them. Raises ValueError for one that cannot be opened, such as one without a key or a server."""
        self.say = say
        self.open: dict[str, Tracker] = {}
        path = folder / IDS
        try:
            stored = read_object(path) if path.exists() else {}
        except (OSError, ValueError):  # it is damaged, and the trackers begin anew
            stored = {}
        ids = {name: known for name, known in stored.items() if isinstance(known, str)}
        for name in chosen(recipe.run):
            title, _, _, opened = TRACKERS[name]
            try:
                tracker = opened(folder, recipe, step, ids.get(name))
            except Exception as error:  # each has exceptions of its own
                self.close(failed=True)
                raise ValueError(f"run.trackers: {title} cannot be opened ({_line(error)}): leave it out?") from error
            self.open[name] = tracker
            if tracker.id and tracker.id != ids.get(name):
                ids[name] = tracker.id
                unfinished = path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(ids, indent=1))
                unfinished.replace(path)
                flush(folder)

    def log(self, content: Mapping[str, Any], step: int) -> None:
        """Passes a line of the log on, with names such as `losses/itc`."""
        values = {name: float(value) for name, value in _flat(content, "/")}
        for name, tracker in list(self.open.items()):
            try:
                tracker.log(values, step)
            except Exception as error:
                self.say(f"{TRACKERS[name][0]} receives no more, because it failed at step {step}: {_line(error)}")
                del self.open[name]

    def close(self, failed: bool) -> None:
        """Closes each, and waits no longer than `CLOSE_SECONDS` for it."""
        for name, tracker in self.open.items():
            problems: list[BaseException] = []
            thread = threading.Thread(target=_attempt, args=(tracker, failed, problems), daemon=True)
            thread.start()
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                self.say(f"{TRACKERS[name][0]} took over {CLOSE_SECONDS:g} s to close: its last lines may be missing")
            elif problems:
                self.say(f"{TRACKERS[name][0]} could not be closed: {_line(problems[0])}")
        self.open = {}


def _attempt(tracker: Tracker, failed: bool, problems: list[BaseException]) -> None:
    try:
        tracker.close(failed)
    except BaseException as error:
        problems.append(error)


def _name(folder: Path) -> str:
    return folder.resolve().name


def _line(error: BaseException) -> str:
    """Returns the first line of an error, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _flat(content: Any, separator: str, above: str = "") -> Iterator[tuple[str, Any]]:
    """Lists the values of nested mappings by their joined names. Lists of values are one value."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{above}{name}{separator}")
        else:
            yield f"{above}{name}", value
