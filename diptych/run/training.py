"""Trains a recipe in its run folder: source, tokenizer, task, starting weights, then the loop."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from diptych import catalog
from diptych.checkpoints import store
from diptych.console import say
from diptych.data.cleanup import clean_text
from diptych.data.files import split_paths
from diptych.data.loader import PairLoader
from diptych.data.record import AnyRecord, Picture, Question
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.device import find_device
from diptych.launched import restarted
from diptych.places import remember
from diptych.pretrained import locate
from diptych.pretrained.named import vocabulary, with_start
from diptych.reading import expand_home
from diptych.run.known_data import describe, note_data
from diptych.run.splits import (
    AnySource,
    accepted_records,
    check_lengths,
    check_partial,
    open_split,
    warn_of_faults,
    with_answers,
)
from diptych.run.validation import make_validation
from diptych.schema import Recipe
from diptych.serialize import from_dict, places_of
from diptych.task import Task
from diptych.train import loop
from diptych.train.distributed import World, joined
from diptych.train.freeze import freeze
from diptych.train.optim import check_optimizer
from diptych.train.start import Start, borrow, record_start, start_from
from diptych.train.state import check_folder

TEXTS_READ = 20_000
"""The most records from which a vocabulary is learnt."""


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """Trains a recipe in its run folder, together with the other processes if `torchrun` has started some.

    Returns that folder. If `torchrun` has started the processes again after a fault, the run goes on.
    """
    folder = expand_home(folder)
    resume = resume or (restarted() and (folder / "recipe.json").exists())
    with joined(recipe.run) as world, contextlib.ExitStack() as quiet:
        if not world.first:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        new = world.first and not folder.exists()
        try:
            return _train(recipe, folder, resume, world)
        except BaseException:
            if new and not (folder / "recipe.json").exists():  # no run has begun: the name is free again
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _train(recipe: Recipe, folder: Path, resume: bool, world: World) -> Path:
    world.on_first(lambda: check_folder(folder, resume))
    check_lengths(recipe)
    check_optimizer(recipe)
    check_partial(recipe)
    kind = catalog.task_class(recipe.task)
    begun = store.latest(folder / "checkpoints") if resume else None
    # Complete the recipe by what other runs and the training data determine.
    if not begun:
        recipe = with_start(given := kind.resolved(recipe))
        if recipe.model != given.model:
            say(f"the encoders are built as {recipe.init_from} has them: {recipe.model}")
    source = _open_training(recipe, folder, resume)
    if world.first:
        warn_of_faults(recipe, source)
    recipe = with_answers(recipe, source)
    # Build the task and give it its starting weights.
    tokenizer = _first_tokenizer(recipe, source, folder)
    task = catalog.build_task(recipe, tokenizer).to(find_device(recipe.run.device))
    started = None if begun else _start(task, recipe, tokenizer)
    if recipe.freeze:
        say(f"frozen: {freeze(task, recipe.freeze)}")
    size, run = recipe.model.image_size, recipe.run
    loader = PairLoader(
        source, tokenizer, recipe.data, size, run.batch_size * recipe.optim.accumulate, run.seed,
        kind.closed_set(recipe.task), rank=world.rank, size=world.size, released=recipe.released,
        claims=recipe.task.needs_claims, phrases=recipe.task.needs_phrases, timeout=run.timeout,
    )  # fmt: skip
    validation = make_validation(recipe, task, tokenizer, source)
    if world.first:
        if started:
            record_start(folder, task, *started)
        note_data(folder, describe(recipe, source, tokenizer), recipe, step=store.step_of(begun) if begun else 0)
    world.on_first(lambda: remember(places_of(recipe).values()))
    loop.train(
        task, loader, recipe, folder,
        validation=validation, save_tokenizer=tokenizer.save, resume=resume, world=world,
    )  # fmt: skip
    return folder


def _open_training(recipe: Recipe, folder: Path, resume: bool) -> AnySource:
    """Opens the training data. Raises ValueError, which says how to name data that have moved."""
    try:
        return open_split(recipe, "train")
    except (ValueError, OSError) as error:
        missing = [path for path in split_paths(recipe.data.path or "") if not Path(path).exists()]
        if not resume or not missing:
            raise
        raise ValueError(
            f"{error}. If the data have moved, say where they are: diptych resume {folder} data.path=NEW"
        ) from error


def _start(task: Task, recipe: Recipe, tokenizer: Tokenizer) -> tuple[Start | None, str]:
    """Loads the weights of other runs, prints their origin, and returns it."""
    if borrowed := borrow(task):
        say(borrowed)
    start = start_from(task, locate(recipe.init_from), tokenizer) if recipe.init_from else None
    if start:
        say(f"starting from {start}")
    return start, borrowed


# --------------------------------------------------------------------------- tokenizer


def make_tokenizer(recipe: Recipe, source: AnySource) -> Tokenizer:
    """Loads the vocabulary that the recipe names, or learns one from the training texts."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(vocabulary(config.vocabulary), config.separator, config.lowercase)
    if catalog.record_kind(recipe.task) is Picture:
        return Tokenizer(SPECIAL, separator=config.separator, lowercase=config.lowercase)
    stride = max(1, len(source) // TEXTS_READ)
    records = accepted_records(source, range(0, len(source), stride))
    texts = [clean_text(text, record, recipe.data.max_words) for record in records for text in _texts(record)]
    return Tokenizer.train(texts, config.size, separator=config.separator, lowercase=config.lowercase)


def _texts(record: AnyRecord) -> tuple[str, ...]:
    """Collects all texts of a record, with the answers to its question."""
    return (*record.texts, *(dict.fromkeys(record.answers) if isinstance(record, Question) else ()))


def _first_tokenizer(recipe: Recipe, source: AnySource, folder: Path) -> Tokenizer:
    """Takes the tokenizer of the run's own checkpoint, else that of the run it starts from, else the recipe's.

    So a run can be resumed after its starting point is gone. A run on pictures alone has no vocabulary to start from.
    """
    own, _ = store.newest_whole(folder / "checkpoints")
    if own:
        return Tokenizer.load(own.tokenizer)
    if recipe.init_from and not recipe.tokenizer.vocabulary:
        origin = store.load_from(locate(recipe.init_from))
        theirs = from_dict(origin.recipe)
        if catalog.record_kind(theirs.task) is not Picture:
            tokenizer = Tokenizer.load(origin.tokenizer)
            for line in _unused_settings(recipe, tokenizer, theirs.tokenizer.size):
                say(line)
            return tokenizer
    return make_tokenizer(recipe, source)


def _unused_settings(recipe: Recipe, tokenizer: Tokenizer, size: int) -> Iterator[str]:
    """Names what the recipe says of the tokenizer and the one that is taken from another run contradicts."""
    own = recipe.tokenizer
    differs = {
        "size": own.size not in (size, tokenizer.vocab_size),
        "separator": own.separator != tokenizer.separator,
        "lowercase": own.lowercase != tokenizer.lowercase,
    }
    for name in (name for name, differ in differs.items() if differ):
        value = str(getattr(own, name)).lower()
        yield f"tokenizer.{name}={value} has no effect: the tokenizer of {recipe.init_from} is taken as it is"
