"""What a loss is for a model that knows nothing, term by term, from the recipe alone. Natural logarithms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from diptych.schema import AlbefConfig, Recipe, VlmoConfig


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
    for guess in recipe.task.guesses:
        if guess.among == "candidates":
            yield _contrast(recipe)
        elif guess.among == "one match in three":
            always_no = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
            words = "one pair of three matches, and saying so of each costs this"
            yield Chance(guess.term, always_no, words, guess.since)
        elif guess.among == "words":
            yield _words(recipe, guess.since)
        else:
            yield Chance(guess.term, math.log(guess.among), guess.words, guess.since)


def _contrast(recipe: Recipe) -> Chance:
    """With a full queue: the most candidates that there can be."""
    assert recipe.task.contrast is not None
    batch, queue = recipe.run.batch_size * recipe.optim.accumulate, recipe.task.contrast.queue_size
    most = batch + queue
    made = f"{batch} pairs of a step" + (f" and up to {queue} in the queue" if queue else "")
    return Chance("itc", math.log(most), f"log {most}: {made}")


def _words(recipe: Recipe, since: int) -> Chance:
    model = recipe.model
    assert isinstance(model, AlbefConfig | VlmoConfig)
    own = model.text.vocab_size if isinstance(model, AlbefConfig) else model.vocab_size
    words = own if recipe.tokenizer.vocabulary else recipe.tokenizer.size
    return Chance("mlm", math.log(words), f"log {words}, the words of the vocabulary", since)
