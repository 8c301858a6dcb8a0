"""Measures trained models by the official measure of each task, with intervals.

Retrieval is measured over a whole split at once (`evaluate_retrieval`), the other tasks record by record
(`evaluate_task`).
"""

from diptych.evaluate.calibration import CalibrationResult
from diptych.evaluate.retrieval import (
    DIRECTIONS,
    OnProgress,
    RetrievalResult,
    contrastive_recall,
    evaluate_retrieval,
)
from diptych.evaluate.tasks import evaluate_task
from diptych.metrics.task_evaluation import Decision, TaskEvaluation

__all__ = [
    "DIRECTIONS",
    "CalibrationResult",
    "Decision",
    "OnProgress",
    "RetrievalResult",
    "TaskEvaluation",
    "contrastive_recall",
    "evaluate_retrieval",
    "evaluate_task",
]
