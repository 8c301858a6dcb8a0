"""Measures a run's model and writes the files that hold the result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress as RichProgress
from rich.progress import TaskID

from diptych import catalog
from diptych.checkpoints import store
from diptych.checkpoints.sizes import check_size
from diptych.console import say
from diptych.data.loader import EvaluationBatch
from diptych.data.record import AnyRecord
from diptych.data.sources.scenes import Scenes
from diptych.data.tokenizer import Tokenizer
from diptych.device import find_device
from diptych.evaluate import CalibrationResult, OnProgress, RetrievalResult, evaluate_retrieval, evaluate_task
from diptych.metrics.task_evaluation import TaskEvaluation
from diptych.nn.lowered import Precision
from diptych.predict import Predictor, load
from diptych.predict.loading import ONLY_FOR_TRAINING
from diptych.predict.precision import use_precision
from diptych.recipes.override import override
from diptych.run import calibration
from diptych.run.splits import (
    AnySource,
    RetrievalSplit,
    batches_of,
    check_lengths,
    measured_as_retrieval,
    open_split,
    read_retrieval,
    warn_of_training_data,
)
from diptych.run.submission import check_submission, write_submission
from diptych.schema import Recipe, Split
from diptych.serialize import from_dict
from diptych.synthetic.evaluation import noun_set_ceiling
from diptych.task import Model, Task
from diptych.writing import write_text

Changes = Mapping[str, Any]
"""Fields of a stored recipe by their dotted names, with the values that replace them in an evaluation."""
CHANGEABLE = (
    "data.", "evaluation.", "task.boxes.", "released.heat_map_averages_padding", "released.iou_in_whole_pixels",
)  # fmt: skip


def evaluate(
    path: Path, split: Split = "test", submission: Path | None = None, changes: Changes | None = None,
    write: bool = True, precision: str = "fp32",
) -> EvaluatedRetrieval | EvaluatedTask:  # fmt: skip
    """Measures a run's best checkpoint, or the checkpoint given, by its task's official measure.

    Writes `eval.json` into the run's folder and, for a task that is measured record by record, the prediction for each
    record as `predictions.jsonl`. The files of the validation split are called `eval-validation.json` and so on, those
    of an evaluation with `changes` `eval-changed.json`; another `precision` than fp32 counts as a change. `submission`
    names a file for an evaluation server. Without `write` nothing is written before the result's own `write` is called.

    Raises ValueError, before anything is measured, for a submission that the task has no format for or that could not
    be complete.
    """
    changes = changes or {}
    checkpoint = store.load_from(path)
    recipe = changed(from_dict(checkpoint.recipe), changes)
    if submission is not None:
        check_submission(recipe, split, submission)
    evaluated: EvaluatedRetrieval | EvaluatedTask
    if measured_as_retrieval(recipe):
        evaluated = evaluate_as_retrieval(checkpoint.folder, split, changes, False, precision)
    else:
        evaluated = replace(evaluate_by_record(checkpoint.folder, split, changes, precision), submission=submission)
    if write:
        evaluated.write()
    return evaluated


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """Returns the recipe with other data or other questions to the same model. Raises ValueError for other changes."""
    allowed = CHANGEABLE + catalog.task_class(recipe.task).changeable
    for name in changes:
        if not name.startswith(allowed):
            raise ValueError(f"{name} was settled by training; what can be changed: {', '.join(allowed)}")
    overridden = override(recipe, changes)
    check_lengths(overridden)
    return overridden


def folder_of(checkpoint: Path) -> Path:
    """Returns the run's folder, or the checkpoint itself if it belongs to no run, such as a converted one."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def _suffix(split: Split, changes: Changes) -> str:
    return ("" if split == "test" else f"-{split}") + ("-changed" if changes else "")


def _with_precision(changes: Changes, precision: Precision) -> Changes:
    """Counts another precision than fp32 as a change, so that its measures never replace the run's own."""
    return changes if precision == "fp32" else {**changes, "precision": precision}


def _changed(changes: Changes) -> dict[str, Any]:
    return {"changed": dict(changes)} if changes else {}


# --------------------------------------------------------------------------- over all pictures and captions at once


@dataclass(frozen=True)
class EvaluatedRetrieval:
    """A run's model, measured as retrieval."""

    folder: Path
    predictor: Predictor
    split: RetrievalSplit
    result: RetrievalResult
    ceiling: dict[str, float]
    """Recalls of a matcher that knows only the set of nouns; empty for data other than scenes."""
    calibration: tuple[CalibrationResult, ...] = ()
    """How well the probabilities of hits fit, by kind of query; empty without calibration, and for the split that it
    was fitted on."""
    split_name: Split = "test"
    changes: Changes = field(default_factory=dict)
    calibrated: bool = False
    """Whether the predictor's calibration was fitted by this evaluation, and is to be stored with the checkpoint."""

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that hold the result."""
        return (self.folder / f"eval{_suffix(self.split_name, self.changes)}.json",)

    def write(self) -> None:
        """Writes the result, each file whole or not at all. Raises WriteError."""
        if self.calibrated and self.predictor.calibration is not None:
            store.save_calibration(self.predictor.origin, self.predictor.calibration.to_json())
        write_text(self.written[0], json.dumps(self.to_json(), indent=1))

    def to_json(self) -> dict[str, Any]:
        ceiling = {f"nouns_only.{name}": value for name, value in self.ceiling.items()}
        origin = {"checkpoint": self.predictor.origin.name, "split": self.split_name}
        calibrated = calibration.to_json(self.predictor.calibration, self.calibration)
        return origin | _changed(self.changes) | self.result.to_json() | ceiling | calibrated


def evaluate_as_retrieval(
    path: Path, split: Split = "test", changes: Changes | None = None, write: bool = True, precision: str = "fp32"
) -> EvaluatedRetrieval:
    """Measures a run's best checkpoint, or the checkpoint given, as retrieval, and writes the files of `evaluate`.

    Before that it calibrates the matches of searches (`run.calibration`). A model whose ITM was not trained re-ranks
    nothing, which is said, and so is that its ITC was not trained. An evaluation with `changes` keeps the
    calibration that is stored, and measures it on the other data.
    """
    changes = changes or {}
    predictor = load(path, precision=precision)
    recipe = changed(predictor.recipe, changes)
    changes = _with_precision(changes, predictor.precision)
    fits = not (changes and predictor.calibration)
    if fits:
        predictor = calibration.calibrate(predictor)
    if recipe.evaluation.rerank and (reason := predictor.missing("match")):
        say(f"nothing is re-ranked: {reason}")
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, rerank=0))
    if reason := predictor.missing("embed"):
        say(f"warning: similarity says nothing here: {reason}")
    predictor = replace(predictor, recipe=recipe)
    warn_of_training_data(recipe, split)
    source = open_split(recipe, split)
    read = read_retrieval(recipe, source, predictor.tokenizer)
    with RichProgress(transient=True) as bars:
        result = evaluate_retrieval(
            predictor.model, read.pictures, read.texts, read.image_of_text, recipe.evaluation, predictor.device,
            on_progress=_bars(bars),
        )  # fmt: skip
    ceiling = {}
    if isinstance(source, Scenes):
        shares = noun_set_ceiling(source.evaluation.scenes, source.evaluation.captions)
        ceiling = {name: 100 * share for name, share in shares.items()}
    measured = calibration.measure(predictor, source, read, result) if split != "validation" else ()
    evaluated = EvaluatedRetrieval(
        folder_of(predictor.origin), predictor, read, result, ceiling, tuple(measured), split, changes,
        calibrated=fits and predictor.precision == "fp32",
    )  # fmt: skip
    if write:
        evaluated.write()
    return evaluated


def _bars(bars: RichProgress) -> OnProgress:
    """Shows a progress bar for each stage."""
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int | None) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    return show


# --------------------------------------------------------------------------- record by record


@dataclass(frozen=True)
class OpenedTask:
    """A checkpoint with its whole task, for uses that need more of it than a `Predictor` holds."""

    checkpoint: Path
    recipe: Recipe
    tokenizer: Tokenizer
    task: Task
    epoch: float
    """The epochs that it was trained for."""
    precision: Precision = "fp32"
    """The precision of the products in its transformer blocks."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return folder_of(self.checkpoint)


def open_task(path: Path, changes: Changes | None = None, precision: str = "fp32") -> OpenedTask:
    """Loads the task of a run's best checkpoint, or of the checkpoint given, in evaluation mode. Raises ValueError.

    In an exported checkpoint, which holds neither momentum encoder nor queue, these are new.
    """
    checkpoint = store.load_from(path)
    recipe = changed(from_dict(checkpoint.recipe), changes or {})
    tokenizer = Tokenizer.load(checkpoint.tokenizer)
    stored, unstored = checkpoint.stored("weights"), ONLY_FOR_TRAINING if checkpoint.state.get("shared") else ()
    check_size(lambda: catalog.build_task(recipe, tokenizer), recipe, stored.shapes, checkpoint.folder, unstored)
    task = catalog.build_task(recipe, tokenizer)
    weights = checkpoint.weights()
    if unstored:
        weights |= {name: own for name, own in task.state_dict().items() if name.startswith(ONLY_FOR_TRAINING)}
    store.load_into(task, weights, checkpoint.folder)
    device = find_device(recipe.run.device)
    task = task.to(device).eval()
    used: Precision = "fp32"
    if isinstance(task.model, Model):  # and no visual tokenizer
        used, _ = use_precision(precision, task, task.model, recipe, tokenizer, device)
    return OpenedTask(checkpoint.folder, recipe, tokenizer, task, checkpoint.state.get("epoch", 0.0), used)


@dataclass(frozen=True)
class EvaluatedTask:
    """A run's model, measured record by record."""

    opened: OpenedTask
    split: Split
    result: TaskEvaluation
    source: AnySource
    records: Mapping[str, AnyRecord]
    """The records of the split by their ids, in order."""
    changes: Changes = field(default_factory=dict)
    submission: Path | None = None
    """The file for an evaluation server, if one is wanted."""

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that hold the measures and the prediction for each record."""
        suffix = _suffix(self.split, self.changes)
        return self.opened.folder / f"eval{suffix}.json", self.opened.folder / f"predictions{suffix}.jsonl"

    def write(self) -> None:
        """Writes measures, predictions and submission, each file whole or not at all. Raises WriteError, and ValueError
        for a submission that would not be accepted."""
        measures, predictions = self.written
        write_text(measures, json.dumps(self.to_json(), indent=1))
        lines = (json.dumps(asdict(decision), ensure_ascii=False) for decision in self.result.decisions)
        write_text(predictions, "".join(f"{line}\n" for line in lines))
        if self.submission is not None:
            write_submission(self.opened.recipe, self.submission, self.result.decisions, list(self.records))

    def to_json(self) -> dict[str, Any]:
        opened = self.opened
        origin = {"checkpoint": opened.checkpoint.name, "task": type(opened.recipe.task).__name__, "split": self.split}
        return origin | _changed(self.changes) | self.result.to_json()


def evaluate_by_record(
    path: Path, split: Split = "test", changes: Changes | None = None, precision: str = "fp32"
) -> EvaluatedTask:
    """Measures a run's best checkpoint, or the checkpoint given, by its task's own measure. Writes nothing."""
    changes = changes or {}
    opened = open_task(path, changes, precision)
    warn_of_training_data(opened.recipe, split)
    source = open_split(opened.recipe, split)
    records: dict[str, AnyRecord] = {}
    batches = _noted(batches_of(opened.recipe, source, opened.tokenizer), records)
    result = evaluate_task(opened.task, batches, opened.tokenizer, opened.recipe.evaluation.bootstrap)
    return EvaluatedTask(opened, split, result, source, records, _with_precision(changes, opened.precision))


def _noted(batches: Iterable[EvaluationBatch], records: dict[str, AnyRecord]) -> Iterator[EvaluationBatch]:
    """Yields the batches unchanged and keeps their records, without the pixels, in `records`."""
    for chunk in batches:
        records.update((record.id, record) for record in chunk.records)
        yield chunk
