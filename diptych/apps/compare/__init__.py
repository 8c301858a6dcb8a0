"""Comparisons of runs on the same data: quality of each task, speed, parameters.

comparison = compare([RUN, RUN]); print(as_text(comparison)); write(comparison, FOLDER)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diptych import catalog
from diptych.apps.compare.parameters import parameters
from diptych.apps.compare.quality import quality, same_data
from diptych.apps.compare.speed import ROUNDS, measured, training
from diptych.apps.compare.text import as_text
from diptych.apps.report.compared import ComparedRun, Comparison, write_comparison
from diptych.apps.report.stages import training_stages
from diptych.data.record import Record
from diptych.predict import Predictor, load
from diptych.run.splits import measured_as_retrieval
from diptych.train.state import stored_recipe
from diptych.writing import write_text

__all__ = ["Comparison", "as_text", "compare", "write"]


def compare(runs: Sequence[Path], rounds: int = ROUNDS) -> Comparison:
    """Compares the quality of runs on the same data, and measures their speed on this machine.

    Quality comes from `eval.json` of the runs and of the runs in their `tasks`. Speed and parameters are measured for
    models that were trained to rank pairs. Raises ValueError for runs without measures, or measured on different data.
    """
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs at least: name a second one")
    data = same_data(runs)
    names = [stored_recipe(run).name for run in runs]
    doubled = {name for name, times in Counter(names).items() if times > 1}
    titles = [f"{name} in {run}" if name in doubled else name for name, run in zip(names, runs, strict=True)]
    predictors = [_predictor(run) for run in runs]
    return Comparison(
        runs=tuple(ComparedRun(title, str(run), training_stages(run)) for title, run in zip(titles, runs, strict=True)),
        data=data,
        quality=quality(runs),
        speed=(training(runs), *measured(predictors, rounds)),
        parameters=parameters(predictors),
    )


def _predictor(run: Path) -> Predictor | None:
    """Loads the run's model, if it was trained to rank pairs."""
    recipe = stored_recipe(run)
    return load(run) if measured_as_retrieval(recipe) and catalog.record_kind(recipe.task) is Record else None


def write(comparison: Comparison, folder: Path) -> Path:
    """Writes `comparison.json` and `comparison.html` into the folder. Returns the page."""
    write_text(folder / "comparison.json", json.dumps(comparison.to_json(), indent=1))
    return write_comparison(folder, comparison)
