"""The report of a run: measures it on its test split and writes `report.html`, with examples of what its model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from diptych import catalog
from diptych.apps.report import (
    Examples,
    collect,
    describe_evaluation,
    negative_examples,
    pseudo_target_examples,
    query_examples,
    write_report,
)
from diptych.apps.report.data import NegativeExample, PseudoTargetExample
from diptych.data.dataset import PairDataset, pictures_of
from diptych.data.loader import evaluation_batch
from diptych.data.record import AnyRecord
from diptych.data.transforms import EvaluationTransform, TrainTransform, to_picture
from diptych.device import find_device
from diptych.run import EvaluatedRetrieval, EvaluatedTask, evaluate, open_task
from diptych.tasks.albef_pretraining import AlbefInspection
from diptych.types import Progress, to_device
from diptych.writing import WriteError


def report(folder: Path) -> Path:
    """Measures a run on its test split and writes its `report.html` with examples. Returns the page.

    Prints the measures and raises WriteError where they cannot be written.
    """
    collect(folder)  # raises before anything is measured
    evaluated = evaluate(folder, write=False)
    try:
        evaluated.write()
        return write(evaluated) if isinstance(evaluated, EvaluatedRetrieval) else write_task_evaluation(evaluated)
    except WriteError:
        print(json.dumps(evaluated.to_json(), indent=1), flush=True)
        raise


def write(evaluated: EvaluatedRetrieval) -> Path:
    """Writes the report of a run whose retrieval has been measured."""
    split, ranking = evaluated.split, evaluated.result.text_to_image
    queries = query_examples(
        split.captions, split.image_of_text, ranking.ranks, ranking.contrastive_ranks, ranking.reranked,
        split.pictures.__getitem__, len(split.pictures),
    )  # fmt: skip
    negatives, pseudo_targets = _pretraining_examples(evaluated)
    examples = Examples(queries, negatives, pseudo_targets)
    folder = evaluated.folder
    data = collect(folder, evaluation=evaluated.to_json(), ceiling=evaluated.ceiling, examples=examples)
    return write_report(folder, data)


def _pretraining_examples(
    evaluated: EvaluatedRetrieval, size: int = 64
) -> tuple[tuple[NegativeExample, ...], tuple[PseudoTargetExample, ...]]:
    """Shows hard negatives and pseudo-targets of the first training pairs. Both are empty after other trainings."""
    predictor = evaluated.predictor
    recipe, tokenizer = predictor.recipe, predictor.tokenizer
    if not catalog.task_class(recipe.task).inspectable:
        return (), ()
    source = catalog.open_source(recipe.data, "train")
    transform = TrainTransform(recipe.data, recipe.model.image_size, recipe.released)
    dataset = PairDataset(
        source, transform, tokenizer, recipe.data, 0, claims=recipe.task.needs_claims, phrases=recipe.task.needs_phrases
    )
    fetched = dataset.__getitems__([(0, index) for index in range(min(size, len(source)))])
    if fetched.batch is None:
        return (), ()
    opened = open_task(predictor.origin)
    inspection = opened.task.inspect(to_device(fetched.batch, predictor.device), Progress(0, opened.epoch))
    if inspection is None:
        return (), ()
    normalise = recipe.data.normalise
    negatives = negative_examples(inspection, fetched.batch, tokenizer, normalise)
    if not isinstance(inspection, AlbefInspection):
        return negatives, ()
    clean = [record.clean[0] if record.clean else None for record in fetched.records]
    return negatives, pseudo_target_examples(inspection, fetched.batch, tokenizer, normalise, clean)


def write_task_evaluation(evaluated: EvaluatedTask) -> Path:
    """Writes the report of a run that was evaluated record by record. Only the pictures shown are opened again."""
    opened, recipe = evaluated.opened, evaluated.opened.recipe
    transform = EvaluationTransform(recipe.data, recipe.model.image_size)

    def pictures(record: AnyRecord) -> tuple[Image, ...]:
        return pictures_of(evaluated.source, record, recipe.data)

    def batch_of(record: AnyRecord, image: Image) -> Any:
        batch = evaluation_batch([record], [[transform(image)]], opened.tokenizer, recipe.data)
        return to_device(batch, find_device(recipe.run.device))

    def heat(record: AnyRecord, image: Image) -> Tensor:
        return opened.task.heat(batch_of(record, image))[0]

    def views(record: AnyRecord) -> list[tuple[str, Image]]:
        pixels_of = opened.task.views(batch_of(record, *pictures(record)))
        return [(name, to_picture(pixels[0], recipe.data.normalise)) for name, pixels in pixels_of.items()]

    described = describe_evaluation(
        recipe.task, evaluated.split, evaluated.result, evaluated.records, pictures, heat, views
    )
    return write_report(opened.folder, collect(opened.folder, task_evaluation=described))
