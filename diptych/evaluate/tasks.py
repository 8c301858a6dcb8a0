"""Evaluation of the tasks that are measured record by record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from diptych.data.loader import EvaluationBatch
from diptych.data.tokenizer import Tokenizer
from diptych.metrics.task_evaluation import TaskEvaluation
from diptych.search.contract import evaluating
from diptych.task import Task
from diptych.types import to_device


def evaluate_task(
    task: Task, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int = 1000
) -> TaskEvaluation:
    """Measures a task on records by its own official measure, in evaluation mode and on the task's device.

    Raises ValueError for no records, for a task that is measured as retrieval, and, naming the record, for predictions
    that are not finite.
    """
    with evaluating(task):
        return task.evaluate(_on_device(task, batches), tokenizer, resamples)


def _on_device(task: Task, batches: Iterable[EvaluationBatch]) -> Iterator[EvaluationBatch]:
    """Moves the batches to the task's device. Raises ValueError at the end if there was none."""
    device, empty = next(task.parameters()).device, True
    for chunk in batches:
        empty = False
        yield replace(chunk, batch=to_device(chunk.batch, device))
    if empty:
        raise ValueError("nothing to measure: the evaluation holds no record")
