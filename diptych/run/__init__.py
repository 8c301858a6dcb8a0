"""Puts a recipe together: training, evaluation and submission files, in the order of a batch's way.

recipe → source → tokenizer → task → training → evaluation. The commands use these functions; whoever builds something
else puts the same parts together in another way.
"""

from diptych.run.classes import EvaluatedClasses, evaluate_classes
from diptych.run.evaluation import EvaluatedRetrieval, EvaluatedTask, evaluate, open_task
from diptych.run.training import train

__all__ = [
    "EvaluatedClasses",
    "EvaluatedRetrieval",
    "EvaluatedTask",
    "evaluate",
    "evaluate_classes",
    "open_task",
    "train",
]
