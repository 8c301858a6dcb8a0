"""What a trained model is worth: the official measure of each task, with intervals.

Retrieval is measured over a whole split at once (`evaluate_retrieval`), the other tasks record by record
(`evaluate_task`).
"""

from diptych.evaluate.retrieval import (
    DIRECTIONS,
    OnProgress,
    RetrievalResult,
    contrastive_recall,
    evaluate_retrieval,
)
from diptych.evaluate.tasks import evaluate_task
from diptych.metrics.task_evaluation import Decision, TaskResult

__all__ = [
    "DIRECTIONS",
    "Decision",
    "OnProgress",
    "RetrievalResult",
    "TaskResult",
    "contrastive_recall",
    "evaluate_retrieval",
    "evaluate_task",
]
