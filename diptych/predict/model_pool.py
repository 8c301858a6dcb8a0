"""Several trained models, found by their abilities; a server and a web app hold such a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.logged import read_evaluation
from diptych.predict.loading import load
from diptych.predict.predictor import Predictor
from diptych.reading import expand_home


@dataclass(frozen=True, eq=False)
class PooledModel:
    """A model with its name."""

    name: str
    """The path of the run: `runs/demo`, or for a fine-tuned model below it `runs/demo/tasks/vqa`."""
    predictor: Predictor
    measured: dict[str, Any] | None
    """The run's `eval.json`; None if it was never measured."""


@dataclass(frozen=True)
class ModelPool:
    """Trained models by their abilities."""

    models: tuple[PooledModel, ...]
    """The models in the order of the runs, each run before those that were fine-tuned below it."""

    @classmethod
    def load(
        cls, runs: Sequence[str | Path], device: str = "auto", largest_pixels: int | None = None,
        precision: str = "fp32",
    ) -> ModelPool:  # fmt: skip
        """Loads each run, checkpoint folder or Hub name, and the runs in its `tasks` folder, where demos put them.

        Raises ValueError for no runs, for a run given twice, and for whatever `diptych.load` refuses.
        """
        if not runs:
            raise ValueError("no run given: name at least one, as in runs/demo")
        names = [name for run in runs for name in _names(expand_home(run))]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{doubled} is given twice (a run brings those in its tasks folder)")
        return cls(
            tuple(
                PooledModel(name, load(name, device, largest_pixels, precision), read_evaluation(Path(name)))
                for name in names
            )
        )

    def precision_notes(self) -> tuple[str, ...]:
        """Says for each model in which precision it computes, where `auto` chose it."""
        return tuple(
            f"{model.name}: {model.predictor.precision_note}" for model in self.models if model.predictor.precision_note
        )

    def able(self, ability: str) -> tuple[PooledModel, ...]:
        """Returns the models that have the ability (a name of `catalog.abilities()`), those trained for it first."""
        able = [model for model in self.models if model.predictor.missing(ability) is None]
        wanted = catalog.abilities()[ability]
        return tuple(
            sorted(able, key=lambda model: wanted not in catalog.task_class(model.predictor.recipe.task).abilities)
        )

    def find(self, ability: str, name: str | None = None) -> PooledModel:
        """Returns the model of that name or, without a name, the best model for the ability.

        Raises ValueError for an unknown name and, with the recipe to train, if no model has the ability.
        """
        if name is not None:
            named = next((model for model in self.models if model.name == name), None)
            if named is None:
                raise ValueError(f"no model '{name}' here. There are: {', '.join(model.name for model in self.models)}")
            if why := named.predictor.missing(ability):
                raise ValueError(why)
            return named
        if able := self.able(ability):
            return able[0]
        raise ValueError(self.models[0].predictor.missing(ability))

    def abilities(self) -> dict[str, tuple[str, ...]]:
        """Maps each ability to the names of the models that have it, the best first."""
        return {ability: tuple(model.name for model in self.able(ability)) for ability in catalog.abilities()}


def _names(run: Path) -> tuple[str, ...]:
    return run.as_posix(), *_task_runs(run)


def _task_runs(run: Path) -> list[str]:
    """Finds the runs below `tasks` that hold a checkpoint, as an interrupted one may not yet."""
    return sorted(folder.parent.as_posix() for folder in run.glob("tasks/*/checkpoints") if any(folder.iterdir()))
