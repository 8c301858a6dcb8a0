"""The loss of a model that guesses, term by term, from the recipe alone. Logarithms are natural."""

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
    """A term of the loss of a model that guesses."""

    term: str
    """Name of the term, as in `losses.…` of the log."""
    nats: float
    words: str
    """The origin of the number, in words."""
    since: int = 0
    """Step from which on the term is trained."""


def chances(recipe: Recipe) -> Iterator[Chance]:
    """Gives the level of each term of a recipe. Decoded answers and reconstructed pictures have none."""
    task = recipe.task
    if isinstance(task, RetrievalConfig | AlbefPretrainConfig | VlmoPretrainConfig):
        since = getattr(task, "fuse_start", 0)
        if task.itc:
            yield _contrast(recipe)
        if task.itm:
            always_no = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
            yield Chance(
                "itm",
                always_no,
                "one pair of three matches; this share as the prediction for all pairs costs this",
                since,
            )
        if getattr(task, "mlm", 0):
            yield _words(recipe, since)
    elif isinstance(task, LanguageStageConfig):
        yield _words(recipe, 0)
    elif isinstance(task, VisionStageConfig):
        codes = task.visual.codes
        yield Chance("masked_image", math.log(codes), f"log {codes}, the number of codes of the visual tokenizer")
    elif isinstance(task, EntailmentConfig):
        yield Chance("entailment", math.log(3), "log 3, the number of classes")
    elif isinstance(task, Nlvr2Config):
        yield Chance("nlvr2", math.log(2), "log 2, for true and false")
    elif isinstance(task, TextAssignmentConfig):
        yield Chance("text_assignment", math.log(3), "log 3, for the first picture, the second, and neither")


def _contrast(recipe: Recipe) -> Chance:
    """Counts the candidates of a full queue, which are the most that there can be."""
    batch, queue = recipe.run.batch_size * recipe.optim.accumulate, getattr(recipe.task, "queue_size", 0)
    most = batch + queue
    origin = f"{batch} pairs of a step" + (f" and up to {queue} in the queue" if queue else "")
    return Chance("itc", math.log(most), f"log {most}: {origin}")


def _words(recipe: Recipe, since: int) -> Chance:
    model = recipe.model
    assert isinstance(model, AlbefConfig | VlmoConfig)
    model_words = model.text.vocab_size if isinstance(model, AlbefConfig) else model.vocab_size
    words = model_words if recipe.tokenizer.vocabulary else recipe.tokenizer.size
    return Chance("mlm", math.log(words), f"log {words}, the size of the vocabulary", since)
