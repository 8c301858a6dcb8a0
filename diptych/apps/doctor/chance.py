"""What a loss is for a model that knows nothing, term by term, from the recipe alone. Natural logarithms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from diptych.schema import (
    AlbefConfig,
    AlbefPretrainConfig,
    EntailmentConfig,
    LanguageStageConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TextAssignmentConfig,
    VisionStageConfig,
    VlmoConfig,
    VlmoPretrainConfig,
)


@dataclass(frozen=True)
class Chance:
    """A term of the loss for someone who guesses."""

    term: str
    """As in `losses.…` of the log."""
    nats: float
    words: str
    """Where the number comes from."""
    since: int = 0
    """Steps before which the term does not train."""


def chances(recipe: Recipe) -> Iterator[Chance]:
    """Of the terms that the recipe trains. A decoder's answers and a picture given back have no such level."""
    task = recipe.task
    if isinstance(task, RetrievalConfig | AlbefPretrainConfig | VlmoPretrainConfig):
        since = getattr(task, "fuse_start", 0)
        if task.itc:
            yield _contrast(recipe)
        if task.itm:
            always_no = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
            yield Chance("itm", always_no, "one pair of three matches, and saying so of each costs this", since)
        if getattr(task, "mlm", 0):
            yield _words(recipe, since)
    elif isinstance(task, LanguageStageConfig):
        yield _words(recipe, 0)
    elif isinstance(task, VisionStageConfig):
        codes = task.visual.codes
        yield Chance("masked_image", math.log(codes), f"log {codes}, the codes of the visual tokenizer")
    elif isinstance(task, EntailmentConfig):
        yield Chance("entailment", math.log(3), "log 3, the classes")
    elif isinstance(task, Nlvr2Config):
        yield Chance("nlvr2", math.log(2), "log 2, true or false")
    elif isinstance(task, TextAssignmentConfig):
        yield Chance("text_assignment", math.log(3), "log 3: the first picture, the second, neither")


def _contrast(recipe: Recipe) -> Chance:
    """With a full queue: the most candidates that there can be."""
    batch, queue = recipe.run.batch_size * recipe.optim.accumulate, getattr(recipe.task, "queue_size", 0)
    most = batch + queue
    made = f"{batch} pairs of a step" + (f" and up to {queue} in the queue" if queue else "")
    return Chance("itc", math.log(most), f"log {most}: {made}")


def _words(recipe: Recipe, since: int) -> Chance:
    model = recipe.model
    assert isinstance(model, AlbefConfig | VlmoConfig)
    own = model.text.vocab_size if isinstance(model, AlbefConfig) else model.vocab_size
    words = own if recipe.tokenizer.vocabulary else recipe.tokenizer.size
    return Chance("mlm", math.log(words), f"log {words}, the words of the vocabulary", since)
