"""The measure that decides during training which checkpoint is best."""

from __future__ import annotations

from diptych import catalog
from diptych.data.tokenizer import Tokenizer
from diptych.device import find_device
from diptych.evaluate import contrastive_recall, evaluate_task
from diptych.metrics.recall import chance_mean_recall
from diptych.metrics.task_evaluation import MAIN, has_label
from diptych.run.splits import AnySource, batches_of, measured_as_retrieval, open_split, read_retrieval, warn_of_shared
from diptych.schema import Recipe
from diptych.task import Model, Task
from diptych.train import loop
from diptych.train.log import CHANCE

MAXIMISED = "mean_recall"
"""The measure of contrastive recall that decides which checkpoint is best."""


def make_validation(recipe: Recipe, task: Task, tokenizer: Tokenizer, training: AnySource) -> loop.Validation | None:
    """Prepares contrastive recall on the validation split or, record by record, the task's own measure.

    Warns of images that are in the `training` data, too. Raises ValueError for a validation split that cannot be
    measured.
    """
    if not recipe.run.validate_every:
        return None
    source = open_split(recipe, "validation")
    warn_of_shared(training, source, "validation")
    if measured_as_retrieval(recipe):
        split = read_retrieval(recipe, source, tokenizer, recipe.run.validation_items)
        split.pictures.check()
        guess = {CHANCE: chance_mean_recall(split.image_of_text, len(split.pictures))}
        device, model = find_device(recipe.run.device), task.model
        assert isinstance(model, Model), "only models are measured as retrieval"

        def recall() -> dict[str, float]:
            return contrastive_recall(model, split.pictures, split.texts, split.image_of_text, device=device) | guess

        return loop.Validation(recall, MAXIMISED)

    items = min(len(source), recipe.run.validation_items)
    if not any(has_label(source.record(index)) for index in range(items)):
        raise ValueError("the validation split has no labels: name another, or set run.validate_every=0")

    def measure(count: int = items) -> dict[str, float]:
        evaluation = evaluate_task(task, batches_of(recipe, source, tokenizer, count), tokenizer, resamples=1)
        guesses = [reference.value for reference in evaluation.references.values()]
        chance = {CHANCE: max(guesses)} if guesses else {}
        return {name: score.value for name, score in evaluation.scores.items()} | dict(evaluation.figures) | chance

    if catalog.task_class(recipe.task).fails_early:
        measure(1)
    return loop.Validation(measure, MAIN)
