"""The loss of a model that guesses, term by term, from the recipe alone. Logarithms are natural."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from diptych.schema import AlbefConfig, Recipe, VlmoConfig


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
    for guess in recipe.task.guesses:
        if guess.among == "candidates":
            yield _contrast(recipe)
        elif guess.among == "one match in three":
            always_no = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
            words = "one pair of three matches; this share as the prediction for all pairs costs this"
            yield Chance(guess.term, always_no, words, guess.since)
        elif guess.among == "words":
            yield _words(recipe, guess.since)
        else:
            yield Chance(guess.term, math.log(guess.among), guess.words, guess.since)


def _contrast(recipe: Recipe) -> Chance:
    """Counts the candidates of a full queue, which are the most that there can be."""
    assert recipe.task.contrast is not None
    batch, queue = recipe.run.batch_size * recipe.optim.accumulate, recipe.task.contrast.queue_size
    most = batch + queue
    origin = f"{batch} pairs of a step" + (f" and up to {queue} in the queue" if queue else "")
    return Chance("itc", math.log(most), f"log {most}: {origin}")


def _words(recipe: Recipe, since: int) -> Chance:
    model = recipe.model
    assert isinstance(model, AlbefConfig | VlmoConfig)
    model_words = model.text.vocab_size if isinstance(model, AlbefConfig) else model.vocab_size
    words = model_words if recipe.tokenizer.vocabulary else recipe.tokenizer.size
    return Chance("mlm", math.log(words), f"log {words}, the size of the vocabulary", since)
