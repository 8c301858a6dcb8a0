"""The report of a run: measures it and writes `report.html`, with examples of what its model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from diptych import catalog
from diptych.apps.report import (
    Examples,
    collect,
    judgement,
    negative_examples,
    query_examples,
    teacher_examples,
    write_report,
)
from diptych.data.loader import PairDataset, evaluation_batch, pictures_of
from diptych.data.record import AnyRecord
from diptych.data.transforms import EvaluationTransform, TrainTransform, to_picture
from diptych.device import find_device
from diptych.run import EvaluatedRetrieval, EvaluatedTask, evaluate, open_task
from diptych.tasks.albef_pretraining import AlbefInspection
from diptych.types import Progress, to_device


def report(folder: Path) -> Path:
    """Measures a run on its test split and writes its `report.html` with examples. Returns the page."""
    collect(folder)  # raises before anything is measured
    evaluated = evaluate(folder)
    return write(evaluated) if isinstance(evaluated, EvaluatedRetrieval) else write_judged(evaluated)


def write(evaluated: EvaluatedRetrieval) -> Path:
    """The report of a run that has been measured."""
    split, result = evaluated.split, evaluated.result
    found = result.text_to_image
    queries = query_examples(
        split.captions, split.image_of_text, found.ranks, found.contrastive_ranks, found.reranked,
        split.pictures.__getitem__, len(split.pictures),
    )  # fmt: skip
    negatives, teacher = _looks_inside(evaluated)
    examples = Examples(queries, negatives, teacher)
    folder = evaluated.folder
    page = collect(folder, evaluation=evaluated.to_json(), ceiling=evaluated.ceiling, examples=examples)
    return write_report(folder, page)


def _looks_inside(evaluated: EvaluatedRetrieval, size: int = 64) -> tuple[Any, Any]:
    """Hard negatives and a teacher's answers for the first training pairs, where the run was pre-training on pairs."""
    predictor = evaluated.predictor
    recipe, tokenizer = predictor.recipe, predictor.tokenizer
    if not catalog.task_class(recipe.task).inspectable:
        return (), ()
    source = catalog.open_source(recipe.data, "train")
    dataset = PairDataset(source, TrainTransform(recipe.data, recipe.model.image_size), tokenizer, recipe.data, 0)
    fetched = dataset.__getitems__([(0, index) for index in range(min(size, len(source)))])
    if fetched.batch is None:
        return (), ()
    opened = open_task(predictor.origin)
    seen = opened.task.inspect(to_device(fetched.batch, predictor.device), Progress(0, opened.epoch))
    if seen is None:
        return (), ()
    clean = [record.clean[0] if record.clean else None for record in fetched.records]
    normalise = recipe.data.normalise
    negatives = negative_examples(seen, fetched.batch, tokenizer, normalise)
    if not isinstance(seen, AlbefInspection):
        return negatives, ()
    return negatives, teacher_examples(seen, fetched.batch, tokenizer, normalise, clean)


def write_judged(judged: EvaluatedTask) -> Path:
    """The report of a run that has been judged. Of the split, only the pictures shown are opened again."""
    opened, recipe = judged.opened, judged.opened.recipe
    transform = EvaluationTransform(recipe.data, recipe.model.image_size)

    def pictures(record: AnyRecord) -> tuple[Image, ...]:
        return pictures_of(judged.source, record, recipe.data)

    def placed(record: AnyRecord, image: Image) -> Any:
        batch = evaluation_batch([record], [[transform(image)]], opened.tokenizer, recipe.data)
        return to_device(batch, find_device(recipe.run.device))

    def heat(record: AnyRecord, image: Image) -> Tensor:
        return opened.task.heat(placed(record, image))[0]

    def views(record: AnyRecord) -> list[tuple[str, Image]]:
        shown = opened.task.views(placed(record, *pictures(record)))
        return [(name, to_picture(pixels[0], recipe.data.normalise)) for name, pixels in shown.items()]

    page = judgement(recipe.task, judged.split, judged.result, judged.records, pictures, heat, views)
    return write_report(opened.folder, collect(opened.folder, judgement=page))
