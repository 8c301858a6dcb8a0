"""From a recipe to a trained, evaluated model: the pieces put together in the order of a batch's way.

recipe → source → tokenizer → task → training → evaluation. Used by the commands; whoever builds something else puts the
same pieces together otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.progress import Progress as RichProgress
from rich.progress import TaskID
from torch import Tensor

from diptych import catalog
from diptych.checkpoints import store
from diptych.data.answers import answer_vocabulary
from diptych.data.cleanup import clean_caption, clean_text
from diptych.data.collate import pad_texts
from diptych.data.loader import (
    EvaluationBatch,
    Item,
    PairLoader,
    check_readable,
    evaluation_batches,
    items_at,
)
from diptych.data.record import AnyRecord, BadRecord, Picture, Question, Source
from diptych.data.sources.scenes import Scenes
from diptych.data.submissions import write_nlvr2, write_snli_ve, write_vqa
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.data.transforms import to_picture
from diptych.device import find_device
from diptych.evaluate import OnProgress, RetrievalResult, contrastive_recall, evaluate_retrieval, evaluate_task
from diptych.evaluate.tasks import JUDGES, has_label
from diptych.launched import restarted
from diptych.metrics.task_evaluation import MAIN, TaskResult
from diptych.predict import Predictor, load
from diptych.predict.loading import TEACHING
from diptych.recipes.override import override
from diptych.schema import (
    EntailmentConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    Split,
    VisionStageConfig,
    VisualTokenizerConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import from_dict
from diptych.synthetic.evaluation import noun_set_ceiling
from diptych.task import Model, Task
from diptych.train import loop
from diptych.train.distributed import World, joined
from diptych.train.freeze import freeze
from diptych.train.start import Start, borrow, record_start, start_from
from diptych.train.state import check_folder
from diptych.types import Texts

TEXTS_READ = 20_000
"""Records from which a vocabulary is learnt, at most."""
QUESTIONS_READ = 100_000
"""Made questions whose answers are counted, at most; of files all are."""
AnySource = Any
"""A Source of captions, or a TaskSource."""
MAXIMISED = "mean_recall"


@dataclass(frozen=True)
class Pictures:
    """The I pictures of a split, decoded anew at each walk, so that memory holds one batch of them."""

    recipe: Recipe
    source: Source
    places: tuple[int, ...]
    """Of a record of each picture."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Tensor]:
        """Batches [b, 3, H, W] in order. Raises ValueError naming every picture that is bad."""
        items = self._items(self.places)
        while chunk := list(islice(items, self.recipe.evaluation.batch_size)):
            yield torch.stack([item.views[0] for item in chunk])

    def __getitem__(self, index: int) -> Image:
        """One picture as a model sees it."""
        (item,) = self._items((self.places[index],))
        return to_picture(item.views[0], self.recipe.data.normalise)

    def check(self) -> None:
        """Raises ValueError naming every picture that is bad."""
        check_readable(self.source, self.places, self.recipe.data)

    def _items(self, places: Sequence[int]) -> Iterator[Item]:
        return items_at(self.source, places, self.recipe.data, self.recipe.model.image_size)


@dataclass(frozen=True)
class Retrieval:
    """An evaluation split: I pictures, T captions. Records of one picture, by its identity, share it."""

    pictures: Pictures
    captions: tuple[str, ...]
    texts: Texts
    image_of_text: Tensor


def make_tokenizer(recipe: Recipe, source: AnySource) -> Tokenizer:
    """From the vocabulary that the recipe names, or learnt from the training texts."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(config.vocabulary, config.separator, config.lowercase)
    if catalog.record_kind(recipe.task) is Picture:
        return Tokenizer(SPECIAL, separator=config.separator, lowercase=config.lowercase)
    stride = max(1, len(source) // TEXTS_READ)
    records = (source.record(index) for index in range(0, len(source), stride))
    texts = [clean_text(text, record, recipe.data.max_words) for record in records for text in _words(record)]
    return Tokenizer.train(texts, config.size, separator=config.separator, lowercase=config.lowercase)


def _words(record: AnyRecord) -> tuple[str, ...]:
    """All that a record says, the answers to its question too."""
    return (*record.texts, *(dict.fromkeys(record.answers) if isinstance(record, Question) else ()))


def with_answers(recipe: Recipe, source: AnySource) -> Recipe:
    """The recipe with the answers to choose from, which are the commonest of the training data unless it has some."""
    task = recipe.task
    if not isinstance(task, VqaClosedSetConfig | VqaDecoderConfig) or task.answers:
        return recipe
    stride = max(1, len(source) // QUESTIONS_READ) if recipe.data.source == "scenes" else 1
    questions = (source.record(index) for index in range(0, len(source), stride))
    return replace(recipe, task=replace(task, answers=answer_vocabulary(questions, task.answer_count)))


def with_visual_tokenizer(recipe: Recipe) -> Recipe:
    """The recipe with what the visual tokenizer is that its task names. Raises ValueError where it names none."""
    task = recipe.task
    if not isinstance(task, VisionStageConfig):
        return recipe
    if not task.tokenizer:
        raise ValueError(
            "task.tokenizer names no visual tokenizer: train one, as with `diptych train visual_tokenizer_tiny`, and "
            "name its run: task.tokenizer=runs/visual_tokenizer_tiny"
        )
    origin = from_dict(store.load_from(task.tokenizer).recipe)
    if not isinstance(origin.model, VisualTokenizerConfig):
        raise ValueError(f"task.tokenizer={task.tokenizer} is a run of {origin.name}, which is no visual tokenizer")
    if origin.data.normalise != recipe.data.normalise:
        raise ValueError(
            f"the visual tokenizer was trained with data.normalise={origin.data.normalise}: set it so here too"
        )
    return replace(recipe, task=replace(task, visual=origin.model))


def read_retrieval(recipe: Recipe, source: Source, tokenizer: Tokenizer, limit: int | None = None) -> Retrieval:
    """The split in order, the first `limit` records at most."""
    records = [source.record(index) for index in range(len(source))[:limit]]
    places: dict[str, int] = {}
    for index, record in enumerate(records):
        places.setdefault(record.image_id, index)
    number = {identity: picture for picture, identity in enumerate(places)}
    captions = tuple(clean_caption(text, recipe.data.max_words) for record in records for text in record.captions)
    owner = torch.tensor([number[record.image_id] for record in records for _ in record.captions])
    ids = tokenizer.encode(captions, recipe.data.max_tokens_evaluation)
    pictures = Pictures(recipe, source, tuple(places.values()))
    return Retrieval(pictures, captions, pad_texts(ids, tokenizer.pad_id), owner)


def open_split(recipe: Recipe, split: Split) -> AnySource:
    """The records of the recipe's task; says by name what could not become one."""
    source: AnySource = catalog.open_source(recipe.data, split, catalog.record_kind(recipe.task))
    _say_skipped(split, source.skipped)
    return source


def ranks_pairs(recipe: Recipe) -> bool:
    """Whether the recipe is measured as retrieval: over all pictures and captions of a split at once."""
    return type(recipe.task) not in JUDGES


def make_validation(recipe: Recipe, task: Task, tokenizer: Tokenizer) -> loop.Validation | None:
    """Contrastive recall on the validation split, or the task's own measure."""
    if not recipe.run.validate_every:
        return None
    source = open_split(recipe, "validation")
    if ranks_pairs(recipe):
        split = read_retrieval(recipe, source, tokenizer, recipe.run.validation_items)
        split.pictures.check()
        device, model = find_device(recipe.run.device), task.model
        assert isinstance(model, Model), "only models are measured as retrieval"

        def measure() -> dict[str, float]:
            return contrastive_recall(model, split.pictures, split.texts, split.image_of_text, device=device)

        return loop.Validation(measure, MAXIMISED)

    items = min(len(source), recipe.run.validation_items)
    if not any(has_label(source.record(index)) for index in range(items)):
        raise ValueError("the validation split has no labels: name another, or set run.validate_every=0")

    def judge(count: int = items) -> dict[str, float]:
        found = evaluate_task(task, _asked(recipe, source, tokenizer, count), tokenizer, resamples=1)
        return {name: score.value for name, score in found.scores.items()} | dict(found.figures)

    if isinstance(recipe.task, GroundingTrainingConfig):  # a layer without attention shows now, not after training
        judge(1)
    return loop.Validation(judge, MAIN)


def _asked(
    recipe: Recipe, source: AnySource, tokenizer: Tokenizer, limit: int | None = None
) -> Iterator[EvaluationBatch]:
    size, batch = recipe.model.image_size, recipe.evaluation.batch_size
    return evaluation_batches(source, tokenizer, recipe.data, size, batch, limit)


def check_lengths(recipe: Recipe) -> None:
    """Raises ValueError where texts may be longer than the model's positions: at once, not at the first such text."""
    longest = recipe.model.max_positions
    if longest is None or catalog.record_kind(recipe.task) is Picture:
        return
    for name in ("max_tokens", "max_tokens_evaluation"):
        length = getattr(recipe.data, name)
        if length > longest:
            raise ValueError(
                f"data.{name}={length}: the model has positions for texts of {longest} tokens. "
                f"Set data.{name}={longest} or less, so that longer ones are cut, or build it with more positions"
            )


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """Trains a recipe in its run folder, together with the other processes if `torchrun` has started some.

    Returns that folder. Where `torchrun` has started them anew after a fault, the run goes on.
    """
    resume = resume or (restarted() and (folder / "recipe.json").exists())
    with joined(recipe.run) as world, contextlib.ExitStack() as quiet:
        if not world.first:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        return _train(recipe, folder, resume, world)


def _train(recipe: Recipe, folder: Path, resume: bool, world: World) -> Path:
    world.on_first(lambda: check_folder(folder, resume))
    check_lengths(recipe)
    begun = resume and store.latest(folder / "checkpoints") is not None
    if not begun:
        recipe = with_visual_tokenizer(recipe)
    source = open_split(recipe, "train")
    recipe = with_answers(recipe, source)
    tokenizer = _first_tokenizer(recipe, source, folder)
    task = catalog.build_task(recipe, tokenizer).to(find_device(recipe.run.device))
    started = None if begun else _start(task, recipe, tokenizer)
    if recipe.freeze:
        print(f"frozen: {freeze(task, recipe.freeze)}")
    answers = recipe.task.answers if isinstance(recipe.task, VqaClosedSetConfig) else ()
    size, run = recipe.model.image_size, recipe.run
    loader = PairLoader(
        source, tokenizer, recipe.data, size, run.batch_size * recipe.optim.accumulate, run.seed, answers,
        rank=world.rank, size=world.size, released=recipe.released,
    )  # fmt: skip
    validation = make_validation(recipe, task, tokenizer)
    if started and world.first:
        record_start(folder, task, *started)
    loop.train(
        task, loader, recipe, folder,
        validation=validation, save_tokenizer=tokenizer.save, resume=resume, world=world,
    )  # fmt: skip
    return folder


def _start(task: Task, recipe: Recipe, tokenizer: Tokenizer) -> tuple[Start | None, str]:
    """Brings what other runs learnt, says what, and returns it."""
    if borrowed := borrow(task):
        print(borrowed)
    start = start_from(task, recipe.init_from, tokenizer) if recipe.init_from else None
    if start:
        print(f"starting from {start}")
    return start, borrowed


def _first_tokenizer(recipe: Recipe, source: AnySource, folder: Path) -> Tokenizer:
    """The tokenizer of the run's own checkpoint, of the one that it starts from, or the recipe's: the first there is.

    So a run can be resumed where what it started from is gone. What has only seen pictures knows no words to go by.
    """
    own, _ = store.newest_whole(folder / "checkpoints")
    if own:
        return Tokenizer.load(own.tokenizer)
    if recipe.init_from and not recipe.tokenizer.vocabulary:
        origin = store.load_from(recipe.init_from)
        if catalog.record_kind(from_dict(origin.recipe).task) is not Picture:
            return Tokenizer.load(origin.tokenizer)
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
    """A run's model, measured as retrieval."""

    folder: Path
    predictor: Predictor
    split: Retrieval
    result: RetrievalResult
    ceiling: dict[str, float]
    """Recalls of a matcher that knows only the set of nouns; empty for data other than scenes."""
    split_name: Split = "test"
    changes: Changes = field(default_factory=dict)

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that hold what was found."""
        return (self.folder / f"eval{_suffix(self.split_name, self.changes)}.json",)

    def to_json(self) -> dict[str, Any]:
        ceiling = {f"nouns_only.{name}": value for name, value in self.ceiling.items()}
        origin = {"checkpoint": self.predictor.origin.name, "split": self.split_name}
        return origin | _changed(self.changes) | self.result.to_json() | ceiling


Changes = Mapping[str, Any]
"""Fields of a stored recipe by their dotted names, with what stands for them in an evaluation."""
CHANGEABLE = (
    "data.", "evaluation.", "task.boxes.", "released.heat_map_averages_padding", "released.iou_in_whole_pixels",
)  # fmt: skip
ANSWERING = ("answers", "inference", "score", "candidates", "beams", "max_answer_tokens")
"""Fields of `VqaDecoderConfig` of which no weight depends."""


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with other data or another way to ask the same model. Raises ValueError for any other change."""
    allowed: tuple[str, ...] = CHANGEABLE
    if isinstance(recipe.task, VqaDecoderConfig):
        allowed += (*(f"task.{name}" for name in ANSWERING), "released.count_first_answer_token_twice")
    for name in changes:
        if not name.startswith(allowed):
            raise ValueError(f"{name} was settled by training; what can be changed: {', '.join(allowed)}")
    found = override(recipe, changes)
    check_lengths(found)
    return found


def evaluate(
    path: Path, split: Split = "test", submission: Path | None = None, changes: Changes | None = None
) -> Evaluated | Judged:
    """`measure` or `judge`, as the run's task is measured, and the file for an evaluation server if one is named.

    Raises ValueError, before anything is measured, for a submission that the task has no format for or that could not
    be complete.
    """
    changes = changes or {}
    checkpoint = store.load_from(path)
    recipe = changed(from_dict(checkpoint.recipe), changes)
    if submission is not None:
        _check_submission(recipe, split, submission)
    if ranks_pairs(recipe):
        return measure(checkpoint.folder, split, changes)
    judged = judge(checkpoint.folder, split, changes)
    if submission is not None:
        submit(judged, submission)
    return judged


def measure(path: Path, split: Split = "test", changes: Changes | None = None) -> Evaluated:
    """Measures a run's best checkpoint, or the checkpoint given, as retrieval.

    Writes `eval.json` into the run's folder; `eval-validation.json` for that split, `eval-changed.json` with `changes`.
    """
    changes = changes or {}
    predictor = load(path)
    predictor = replace(predictor, recipe=changed(predictor.recipe, changes))
    recipe = predictor.recipe
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
    evaluated = Evaluated(_folder_of(predictor.origin), predictor, read, result, ceiling, split, changes)
    evaluated.written[0].write_text(json.dumps(evaluated.to_json(), indent=1))
    return evaluated


def _bars(bars: RichProgress) -> OnProgress:
    """A bar a stage."""
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int | None) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    return show


def _folder_of(checkpoint: Path) -> Path:
    """The run's folder; that of the checkpoint where it belongs to no run, such as a converted one."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def _suffix(split: Split, changes: Changes) -> str:
    return ("" if split == "test" else f"-{split}") + ("-changed" if changes else "")


def _changed(changes: Changes) -> dict[str, Any]:
    return {"changed": dict(changes)} if changes else {}


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
        return _folder_of(self.checkpoint)


def open_task(path: Path, changes: Changes | None = None) -> Opened:
    """The task of a run's best checkpoint, or of the checkpoint given, in evaluation mode. Raises ValueError.

    Of a checkpoint that was handed on, teacher and queue are new: what is trained from them is not asked of it.
    """
    checkpoint = store.load_from(path)
    recipe = changed(from_dict(checkpoint.recipe), changes or {})
    tokenizer = Tokenizer.load(checkpoint.tokenizer)
    task = catalog.build_task(recipe, tokenizer)
    weights = checkpoint.weights()
    if checkpoint.state.get("shared"):
        weights |= {name: own for name, own in task.state_dict().items() if name.startswith(TEACHING)}
    store.load_into(task, weights, checkpoint.folder)
    task = task.to(find_device(recipe.run.device)).eval()
    return Opened(checkpoint.folder, recipe, tokenizer, task, checkpoint.state["epoch"])


@dataclass(frozen=True)
class Judged:
    """A run's model, judged record by record."""

    opened: Opened
    split: Split
    result: TaskResult
    source: AnySource
    records: Mapping[str, AnyRecord]
    """What was judged, by its id, in order."""
    changes: Changes = field(default_factory=dict)

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that hold what was found: the measures, and what the model said of each record."""
        suffix = _suffix(self.split, self.changes)
        return self.opened.folder / f"eval{suffix}.json", self.opened.folder / f"predictions{suffix}.jsonl"

    def to_json(self) -> dict[str, Any]:
        opened = self.opened
        origin = {"checkpoint": opened.checkpoint.name, "task": type(opened.recipe.task).__name__, "split": self.split}
        return origin | _changed(self.changes) | self.result.to_json()


def judge(path: Path, split: Split = "test", changes: Changes | None = None) -> Judged:
    """Measures a run's best checkpoint, or the checkpoint given, by its task's own measure.

    Writes `eval.json` into the run's folder, named as `measure` says, and beside it what the model said of each record,
    as `predictions.jsonl` likewise.
    """
    changes = changes or {}
    opened = open_task(path, changes)
    source = open_split(opened.recipe, split)
    records: dict[str, AnyRecord] = {}
    asked = _noted(_asked(opened.recipe, source, opened.tokenizer), records)
    result = evaluate_task(opened.task, asked, opened.tokenizer, opened.recipe.evaluation.bootstrap)
    judged = Judged(opened, split, result, source, records, changes)
    measures, predictions = judged.written
    measures.write_text(json.dumps(judged.to_json(), indent=1))
    lines = (json.dumps(asdict(decision), ensure_ascii=False) for decision in result.decisions)
    predictions.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return judged


def _noted(asked: Iterable[EvaluationBatch], records: dict[str, AnyRecord]) -> Iterator[EvaluationBatch]:
    """The batches as they are; their records, without the pixels, are kept in `records`."""
    for one in asked:
        records.update((record.id, record) for record in one.records)
        yield one


# --------------------------------------------------------------------------- submissions

SUBMISSIONS: dict[type, Callable[..., None]] = {
    VqaDecoderConfig: write_vqa,
    VqaClosedSetConfig: write_vqa,
    Nlvr2Config: write_nlvr2,
    EntailmentConfig: write_snli_ve,
}
"""What writes the file that an evaluation server takes, by the type of a recipe's `task`."""


def submit(judged: Judged, file: Path) -> None:
    """Writes what the model said as an evaluation server takes it. Raises ValueError; then nothing is written."""
    task = judged.opened.recipe.task
    said = [
        (one.record, one.said.capitalize() if isinstance(task, Nlvr2Config) else one.said)
        for one in judged.result.decisions
    ]
    SUBMISSIONS[type(task)](file, said, list(judged.records))


def _check_submission(recipe: Recipe, split: Split, file: Path) -> None:
    """Raises ValueError where a submission could be known from the start not to be accepted."""
    if type(recipe.task) not in SUBMISSIONS:
        raise ValueError(f"{recipe.name} has no submission file: visual question answering, NLVR2 and SNLI-VE have one")
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
