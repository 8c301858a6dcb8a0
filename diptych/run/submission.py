"""Files for evaluation servers, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diptych import catalog
from diptych.metrics.task_evaluation import Decision
from diptych.run.splits import open_split
from diptych.schema import Recipe, Split


def check_submission(recipe: Recipe, split: Split, file: Path) -> None:
    """Raises ValueError if it is known beforehand that a submission would not be accepted."""
    if catalog.task_class(recipe.task).submission is None:
        raise ValueError(f"{recipe.name} has no submission file: {_titles()} have one")
    paths = {"train": recipe.data.path, "validation": recipe.data.validation_path, "test": recipe.data.test_path}
    if recipe.data.source != "scenes" and paths[split] is None:
        raise ValueError(
            f"the {split} split is a share of data.path, drawn by this library: an evaluation server wants a published "
            f"split whole. Name its annotations: data.{split}_path=FILE"
        )
    if skipped := open_split(recipe, split).skipped:
        raise ValueError(f"a submission would lack {len(skipped)} records of the {split} split, such as {skipped[0]}")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}")


def write_submission(recipe: Recipe, file: Path, decisions: Sequence[Decision], expected: Sequence[str]) -> None:
    """Writes predictions as an evaluation server takes them. Raises ValueError; then nothing is written."""
    submission = catalog.task_class(recipe.task).submission
    assert submission is not None
    predictions = [(decision.record, submission.label(decision.said)) for decision in decisions]
    submission.write(file, predictions, expected)


def _titles() -> str:
    """Lists the tasks that have a format, those with an evaluation server first."""
    formats = dict.fromkeys(task.submission for task in catalog.TASKS.values() if task.submission is not None)
    ordered = sorted(formats, key=lambda submission: not submission.server)
    *titles, last = (submission.title for submission in ordered)
    return f"{', '.join(titles)} and {last}"
