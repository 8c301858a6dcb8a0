"""Runs beside each other on the same data: quality of each task, speed, parameters.

found = compare([RUN, RUN]); print(as_text(found)); write(found, FOLDER)
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
from diptych.apps.report.compared import ComparedRun, Comparison
from diptych.apps.report.compared_page import write_comparison
from diptych.apps.report.stages import trained
from diptych.data.record import Record
from diptych.predict import Predictor, load
from diptych.run.splits import ranks_pairs
from diptych.train.state import stored_recipe

__all__ = ["Comparison", "as_text", "compare", "write"]


def compare(runs: Sequence[Path], rounds: int = ROUNDS) -> Comparison:
    """What runs reached on the same data, and how fast they are on this machine, measured now.

    Quality is that of their `eval.json` and of those in their `tasks`. Speed and parameters are of models trained to
    rank pairs. Raises ValueError for runs that have not been measured, or not on the same data.
    """
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs at least")
    data = same_data(runs)
    names = [stored_recipe(run).name for run in runs]
    doubled = {name for name, times in Counter(names).items() if times > 1}
    titles = [f"{name} in {run}" if name in doubled else name for name, run in zip(names, runs, strict=True)]
    predictors = [_predictor(run) for run in runs]
    return Comparison(
        runs=tuple(ComparedRun(title, str(run), trained(run)) for title, run in zip(titles, runs, strict=True)),
        data=data,
        quality=quality(runs),
        speed=(training(runs), *measured(predictors, rounds)),
        parameters=parameters(predictors),
    )


def _predictor(run: Path) -> Predictor | None:
    """The run's model, if it was trained to rank pairs."""
    recipe = stored_recipe(run)
    return load(run) if ranks_pairs(recipe) and catalog.record_kind(recipe.task) is Record else None


def write(found: Comparison, folder: Path) -> Path:
    """`comparison.json` and `comparison.html` in the folder. Returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
    return write_comparison(folder, found)
