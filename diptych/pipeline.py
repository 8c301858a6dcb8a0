"""From a recipe to a trained, evaluated model: the pieces put together in the order of a batch's way.

recipe → source → tokenizer → task → training → evaluation. Used by the commands; whoever builds something else puts the
same pieces together otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as RichProgress
from rich.progress import TaskID
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.data.answers import answer_vocabulary
from diptych.data.cleanup import clean_caption
from diptych.data.collate import pad_texts
from diptych.data.loader import Asked, PairDataset, PairLoader, cleaned, evaluation_batches, evaluation_items
from diptych.data.record import AnyRecord, BadRecord, Question, Record, Source, Split
from diptych.data.scenes.evaluation import noun_set_ceiling
from diptych.data.sources.scenes import Scenes
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import TrainTransform, to_picture
from diptych.device import find_device
from diptych.evaluate import OnProgress, RetrievalResult, contrastive_recall, evaluate_retrieval, evaluate_task
from diptych.evaluate.tasks import MAIN, TaskResult
from diptych.models.albef import AlbefPretraining
from diptych.predict import Predictor, load
from diptych.report import Examples, collect, negative_examples, query_examples, teacher_examples, write_report
from diptych.schema import (
    AlbefPretrainConfig,
    GroundingTrainingConfig,
    Recipe,
    RetrievalConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import from_dict
from diptych.task import Task
from diptych.train import loop
from diptych.train.start import start_from
from diptych.train.state import check_folder
from diptych.types import Progress, Texts, to_device

TEXTS_READ = 20_000
"""Records from which a vocabulary is learnt, at most."""
QUESTIONS_READ = 100_000
"""Questions whose answers are counted, at most."""
AnySource = Any
"""A Source of captions, or a TaskSource."""
MAXIMISED = "mean_recall"


@dataclass(frozen=True)
class Retrieval:
    """An evaluation split, decoded and encoded: I pictures, T captions."""

    records: tuple[Record, ...]
    pixels: tuple[Tensor, ...]
    """The pictures in batches [b, 3, H, W]."""
    captions: tuple[str, ...]
    texts: Texts
    image_of_text: Tensor


def make_tokenizer(recipe: Recipe, source: AnySource) -> Tokenizer:
    """From the vocabulary that the recipe names, or learnt from the training texts."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(config.vocabulary, config.separator, config.lowercase)
    stride = max(1, len(source) // TEXTS_READ)
    records = (source.record(index) for index in range(0, len(source), stride))
    texts = [cleaned(text, record, recipe.data.max_words) for record in records for text in _words(record)]
    return Tokenizer.train(texts, config.size, separator=config.separator, lowercase=config.lowercase)


def _words(record: AnyRecord) -> tuple[str, ...]:
    """All that a record says, the answers to its question too."""
    return (*record.texts, *(dict.fromkeys(record.answers) if isinstance(record, Question) else ()))


def with_answers(recipe: Recipe, source: AnySource) -> Recipe:
    """The recipe with the answers to choose from, which are the commonest of the training data unless it has some."""
    task = recipe.task
    if not isinstance(task, VqaClosedSetConfig | VqaDecoderConfig) or task.answers:
        return recipe
    stride = max(1, len(source) // QUESTIONS_READ)
    questions = (source.record(index) for index in range(0, len(source), stride))
    return replace(recipe, task=replace(task, answers=answer_vocabulary(questions, task.answer_count)))


def read_retrieval(recipe: Recipe, source: Source, tokenizer: Tokenizer, limit: int | None = None) -> Retrieval:
    """The split in order, the first `limit` records at most. Raises ValueError naming every record that is bad."""
    items = list(evaluation_items(source, recipe.data, recipe.model.vision.image_size, limit))
    records = tuple(item.record for item in items)
    pixels = torch.stack([item.views[0] for item in items]).split(recipe.evaluation.batch_size)
    captions = tuple(clean_caption(text, recipe.data.max_words) for record in records for text in record.captions)
    owner = torch.tensor([index for index, record in enumerate(records) for _ in record.captions])
    ids = tokenizer.encode(captions, recipe.data.max_tokens_evaluation)
    return Retrieval(records, pixels, captions, pad_texts(ids, tokenizer.pad_id), owner)


def open_split(recipe: Recipe, split: Split) -> AnySource:
    """The records of the recipe's task; says by name what could not become one."""
    source: AnySource = catalog.open_source(recipe.data, split, catalog.record_kind(recipe.task))
    _say_skipped(split, source.skipped)
    return source


def ranks_pairs(recipe: Recipe) -> bool:
    """Whether the recipe is measured as retrieval: over all pictures and captions of a split at once."""
    return isinstance(recipe.task, AlbefPretrainConfig | RetrievalConfig) and not isinstance(
        recipe.task, GroundingTrainingConfig
    )


def make_validation(recipe: Recipe, task: Task, tokenizer: Tokenizer) -> loop.Validation | None:
    """Contrastive recall on the validation split, or the task's own measure."""
    if not recipe.run.validate_every:
        return None
    source = open_split(recipe, "validation")
    if ranks_pairs(recipe):
        split = read_retrieval(recipe, source, tokenizer, recipe.run.validation_items)
        device = find_device(recipe.run.device)

        def measure() -> dict[str, float]:
            return contrastive_recall(task.model, split.pixels, split.texts, split.image_of_text, device=device)

        return loop.Validation(measure, MAXIMISED)

    def judge() -> dict[str, float]:
        found = evaluate_task(task, _asked(recipe, source, tokenizer, recipe.run.validation_items), tokenizer, 1)
        if not found.scores:
            raise ValueError("the validation split has no labels: name another, or set run.validate_every=0")
        return {name: score.value for name, score in found.scores.items()}

    return loop.Validation(judge, MAIN)


def _asked(recipe: Recipe, source: AnySource, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Asked]:
    size, batch = recipe.model.vision.image_size, recipe.evaluation.batch_size
    return evaluation_batches(source, tokenizer, recipe.data, size, batch, limit)


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """Trains a recipe in its run folder. Returns that folder."""
    check_folder(folder, resume)
    source = open_split(recipe, "train")
    recipe = with_answers(recipe, source)
    tokenizer = _first_tokenizer(recipe, source)
    task = catalog.build_task(recipe, tokenizer).to(find_device(recipe.run.device))
    if recipe.init_from and not resume:
        print(f"starting from {start_from(task, recipe.init_from, tokenizer)}")
    answers = recipe.task.answers if isinstance(recipe.task, VqaClosedSetConfig) else ()
    size, run = recipe.model.vision.image_size, recipe.run
    loader = PairLoader(source, tokenizer, recipe.data, size, run.batch_size, run.seed, answers)
    validation = make_validation(recipe, task, tokenizer)
    loop.train(task, loader, recipe, folder, validation=validation, save_tokenizer=tokenizer.save, resume=resume)
    return folder


def _first_tokenizer(recipe: Recipe, source: AnySource) -> Tokenizer:
    """The tokenizer of the checkpoint that the run starts from, where it has one; else the recipe's."""
    if recipe.init_from and not recipe.tokenizer.vocabulary:
        return Tokenizer.load(store.load(store.find(recipe.init_from)).tokenizer)
    return make_tokenizer(recipe, source)


def _say_skipped(split: str, skipped: Sequence[BadRecord], shown: int = 5) -> None:
    """What could not become a record, by name."""
    if not skipped:
        return
    print(f"left out of the {split} data, {len(skipped)} in all:")
    for error in skipped[:shown]:
        print(f"  {error}")
    if len(skipped) > shown:
        print(f"  and {len(skipped) - shown} more")


# --------------------------------------------------------------------------- evaluation and report


@dataclass(frozen=True)
class Evaluated:
    """A run's model, measured on its test split."""

    folder: Path
    predictor: Predictor
    split: Retrieval
    result: RetrievalResult
    ceiling: dict[str, float]
    """Recalls of a matcher that knows only the set of nouns; empty for data other than scenes."""

    def to_json(self) -> dict[str, Any]:
        ceiling = {f"nouns_only.{name}": value for name, value in self.ceiling.items()}
        return {"checkpoint": self.predictor.origin.name} | self.result.to_json() | ceiling


def measure(path: Path) -> Evaluated:
    """Measures a run's best checkpoint, or the checkpoint given, and writes `eval.json` into the run's folder."""
    predictor = load(path)
    recipe = predictor.recipe
    source = catalog.open_source(recipe.data, "test")
    _say_skipped("test", source.skipped)
    split = read_retrieval(recipe, source, predictor.tokenizer)
    with RichProgress(transient=True) as bars:
        result = evaluate_retrieval(
            predictor.model, split.pixels, split.texts, split.image_of_text, recipe.evaluation, predictor.device,
            on_progress=_bars(bars),
        )  # fmt: skip
    ceiling = {}
    if isinstance(source, Scenes):
        shares = noun_set_ceiling(source.evaluation.scenes, source.evaluation.captions)
        ceiling = {name: 100 * share for name, share in shares.items()}
    evaluated = Evaluated(predictor.origin.parent.parent, predictor, split, result, ceiling)
    (evaluated.folder / "eval.json").write_text(json.dumps(evaluated.to_json(), indent=1))
    return evaluated


def _bars(bars: RichProgress) -> OnProgress:
    """A bar a stage."""
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int | None) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    return show


@dataclass(frozen=True)
class Opened:
    """A checkpoint with its whole task, for whoever wants more of it than a `Predictor` gives."""

    checkpoint: Path
    recipe: Recipe
    tokenizer: Tokenizer
    task: Task
    epoch: float
    """Epochs that it was trained for."""

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.checkpoint.parent.parent


def open_task(path: Path) -> Opened:
    """The task of a run's best checkpoint, or of the checkpoint given, in evaluation mode. Raises ValueError."""
    checkpoint = store.load(store.find(path))
    recipe, tokenizer = from_dict(checkpoint.recipe), Tokenizer.load(checkpoint.tokenizer)
    task = catalog.build_task(recipe, tokenizer)
    store.load_into(task, checkpoint.weights(), checkpoint.folder)
    task = task.to(find_device(recipe.run.device)).eval()
    return Opened(checkpoint.folder, recipe, tokenizer, task, checkpoint.state["epoch"])


@dataclass(frozen=True)
class Judged:
    """A run's model, judged record by record."""

    opened: Opened
    split: Split
    result: TaskResult

    def to_json(self) -> dict[str, Any]:
        opened = self.opened
        origin = {"checkpoint": opened.checkpoint.name, "task": type(opened.recipe.task).__name__, "split": self.split}
        return origin | self.result.to_json()


def judge(path: Path, split: Split = "test") -> Judged:
    """Measures a run's best checkpoint, or the checkpoint given, by its task's own measure.

    Writes `eval.json` (`eval-validation.json` for that split) into the run's folder, and beside it what the model said
    of each record, as `predictions.jsonl` likewise.
    """
    opened = open_task(path)
    source = open_split(opened.recipe, split)
    asked = _asked(opened.recipe, source, opened.tokenizer)
    result = evaluate_task(opened.task, asked, opened.tokenizer, opened.recipe.evaluation.bootstrap)
    judged = Judged(opened, split, result)
    suffix = "" if split == "test" else f"-{split}"
    (opened.folder / f"eval{suffix}.json").write_text(json.dumps(judged.to_json(), indent=1))
    lines = (json.dumps(asdict(decision), ensure_ascii=False) for decision in result.decisions)
    (opened.folder / f"predictions{suffix}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return judged


def evaluate(path: Path) -> dict[str, Any]:
    """`measure` or `judge`, as the task is measured: the numbers of eval.json."""
    recipe = from_dict(store.load(store.find(path)).recipe)
    return measure(path).to_json() if ranks_pairs(recipe) else judge(path).to_json()


def report(folder: Path) -> Path:
    """Measures a run and writes its `report.html` with examples. Returns the page."""
    return write(measure(folder))


def write(evaluated: Evaluated) -> Path:
    """The report of a run that has been measured."""
    split, result = evaluated.split, evaluated.result
    picture = [to_picture(pixels) for batch in split.pixels for pixels in batch]
    found = result.text_to_image
    queries = query_examples(
        split.captions, split.image_of_text, found.ranks, found.contrastive_ranks, found.reranked,
        picture.__getitem__, len(picture),
    )  # fmt: skip
    negatives, teacher = _looks_inside(evaluated)
    examples = Examples(queries, negatives, teacher)
    folder = evaluated.folder
    return write_report(folder, collect(folder, ceiling=evaluated.ceiling, examples=examples))


def _looks_inside(evaluated: Evaluated, size: int = 64) -> tuple[Any, Any]:
    """Hard negatives and the teacher's answers for the first training pairs, with the whole task of the checkpoint."""
    predictor = evaluated.predictor
    recipe, tokenizer = predictor.recipe, predictor.tokenizer
    source = catalog.open_source(recipe.data, "train")
    dataset = PairDataset(
        source, TrainTransform(recipe.data, recipe.model.vision.image_size), tokenizer, recipe.data, 0
    )
    fetched = dataset.__getitems__([(0, index) for index in range(min(size, len(source)))])
    if fetched.batch is None:
        return (), ()
    opened = open_task(predictor.origin)
    assert isinstance(opened.task, AlbefPretraining)
    seen = opened.task.inspect(to_device(fetched.batch, predictor.device), Progress(0, opened.epoch))
    clean = [record.clean[0] if record.clean else None for record in fetched.records]
    return (
        negative_examples(seen, fetched.batch, tokenizer),
        teacher_examples(seen, fetched.batch, tokenizer, clean),
    )
