"""Several trained models, found by what can be asked of them: what a server and a web app have at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.predict.loading import load
from diptych.predict.predictor import ABILITIES, Predictor
from diptych.schema import (
    EntailmentConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    RetrievalConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)

SPECIALISTS: dict[str, tuple[type, ...]] = {
    "embed": (RetrievalConfig,),
    "match": (RetrievalConfig,),
    "entail": (EntailmentConfig,),
    "answer": (VqaDecoderConfig, VqaClosedSetConfig),
    "compare": (Nlvr2Config,),
    "locate": (GroundingTrainingConfig,),
}
"""Ability → tasks that models were trained for to be better at it than others."""


@dataclass(frozen=True, eq=False)
class PooledModel:
    """A model with its name."""

    name: str
    """The run's path as it was given, or below it: `runs/demo`, `runs/demo/tasks/vqa`."""
    predictor: Predictor
    measured: dict[str, Any] | None
    """The run's `eval.json`; None where nobody measured it."""


@dataclass(frozen=True)
class ModelPool:
    """Trained models by what can be asked of them."""

    models: tuple[PooledModel, ...]
    """In the order in which they were given, a run before what was fine-tuned below it."""

    @classmethod
    def load(cls, runs: Sequence[str | Path], device: str = "auto") -> ModelPool:
        """Each run, checkpoint folder or Hub name, and the runs in its `tasks` folder, as the demonstrations leave it.

        Raises ValueError for no runs, one given twice, and for what `diptych.load` cannot take.
        """
        if not runs:
            raise ValueError("no run given: name at least one, as in runs/demo")
        names = [name for run in runs for name in (Path(run).as_posix(), *_task_runs(Path(run)))]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{doubled} is given twice (a run brings those in its tasks folder)")
        return cls(tuple(PooledModel(name, load(name, device), _measured(Path(name))) for name in names))

    def able(self, ability: str) -> tuple[PooledModel, ...]:
        """The models that can be asked, those trained for it first. `ability`: a key of `ABILITIES`."""
        can = [one for one in self.models if one.predictor.missing(ability) is None]
        special = SPECIALISTS[ability]
        return tuple(sorted(can, key=lambda one: type(one.predictor.recipe.task) not in special))

    def find(self, ability: str, name: str | None = None) -> PooledModel:
        """The model of that name, else the best for it.

        Raises ValueError for an unknown name, and where no model can be asked, with what to train.
        """
        if name is not None:
            found = next((one for one in self.models if one.name == name), None)
            if found is None:
                raise ValueError(f"no model '{name}' here. There are: {', '.join(one.name for one in self.models)}")
            if why := found.predictor.missing(ability):
                raise ValueError(why)
            return found
        if able := self.able(ability):
            return able[0]
        raise ValueError(self.models[0].predictor.missing(ability))

    def abilities(self) -> dict[str, tuple[str, ...]]:
        """Ability → names of the models that have it, the best first; none where it is missing."""
        return {ability: tuple(one.name for one in self.able(ability)) for ability in ABILITIES}


def _task_runs(run: Path) -> list[str]:
    """Runs below `tasks` that hold a checkpoint; those that were broken off before their first are none yet."""
    return sorted(one.parent.as_posix() for one in run.glob("tasks/*/checkpoints") if any(one.iterdir()))


def _measured(run: Path) -> dict[str, Any] | None:
    file = run / "eval.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
