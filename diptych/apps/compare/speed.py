"""Speed of runs: training as their logs have it, embedding and searching as measured now, model by model in turns.

K candidates of a query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from diptych.apps.report.compared import Rate, Speed
from diptych.apps.report.stages import training_rate
from diptych.predict import Predictor
from diptych.run.splits import open_split, read_retrieval
from diptych.search.contract import State, evaluating
from diptych.search.index import CosineIndex
from diptych.search.rerank import match_logits, plan_calls
from diptych.types import Texts, to_device

ROUNDS = 5
SECONDS = 0.5
"""Least duration of one measurement in a round."""
PICTURES = 256
"""Number of test pictures that are embedded and searched."""
CANDIDATES = 64
"""Number of pictures that are re-ranked for a query. It is the same for every model."""


def training(runs: Sequence[Path]) -> Speed:
    """Reads the training speed of each run, without its validations."""
    rates = [training_rate(run) for run in runs]
    return Speed("training", "pairs/s", tuple(None if rate is None else Rate(rate, rate, rate) for rate in rates))


@dataclass(frozen=True)
class Subject:
    """A model, with encoded test pictures to search in."""

    predictor: Predictor
    pixels: Sequence[Tensor]
    """Batches of pictures, [b, 3, H, W] each."""
    texts: Texts
    states: State
    index: CosineIndex
    turns: count[int] = field(default_factory=count)

    def embed(self) -> int:
        """Embeds a batch of pictures and returns its size."""
        model, batch = self.predictor.model, self.pixels[next(self.turns) % len(self.pixels)]
        model.embed_image(model.image_state(batch))["main"].cpu()
        return len(batch)

    def search(self) -> int:
        """Answers one query by similarity."""
        self._nearest(self._query())
        return 1

    def rerank(self) -> int:
        """Answers one query and re-ranks its candidates by the fusion encoder."""
        predictor, query = self.predictor, self._query()
        near = self._nearest(query).sort().values
        rows = query.attention_mask.sum().cpu() + near.new_full((len(near),), predictor.model.fused_image_tokens)
        state = predictor.model.text_state(query)
        for call in plan_calls(near, rows, predictor.recipe.evaluation.tokens_per_call):
            only_text = torch.zeros(len(call), dtype=torch.long)
            match_logits(predictor.model, state, self.states, only_text, near[call], predictor.device)
        return 1

    def _query(self) -> Texts:
        place = next(self.turns) % len(self.texts)
        length = int(self.texts.attention_mask[place].sum())
        row = slice(place, place + 1)
        return Texts(self.texts.input_ids[row, :length], self.texts.attention_mask[row, :length])

    def _nearest(self, query: Texts) -> Tensor:
        """Finds the K nearest pictures, as indices [K]."""
        vector = self.predictor.model.embed_text(self.predictor.model.text_state(query))["main"]
        return self.index.search(vector, CANDIDATES).indices[0].cpu()


MEASURED: tuple[tuple[str, str, Callable[[Subject], int]], ...] = (
    ("embedding pictures", "pictures/s", Subject.embed),
    ("search, dual encoder", "queries/s", Subject.search),
    ("search, re-ranked", "queries/s", Subject.rerank),
)


def measured(predictors: Sequence[Predictor | None], rounds: int = ROUNDS) -> tuple[Speed, ...]:
    """Measures pictures embedded and queries answered a second. Each round measures every model in turn.

    A query is one text among `PICTURES` encoded test pictures, of which `CANDIDATES` are re-ranked. Raises ValueError
    for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"--rounds is {rounds}: it must be at least 1")
    subjects = [None if predictor is None else _subject(predictor) for predictor in predictors]
    return tuple(Speed(what, unit, _rates(subjects, call, rounds)) for what, unit, call in MEASURED)


def _subject(predictor: Predictor) -> Subject:
    recipe, model = predictor.recipe, predictor.model
    split = read_retrieval(recipe, open_split(recipe, "test"), predictor.tokenizer, PICTURES)
    pixels = [batch.to(predictor.device) for batch in split.pictures]
    with evaluating(model):
        encoded = [model.image_state(batch) for batch in pixels]
        vectors = torch.cat([model.embed_image(state)["main"] for state in encoded])
    states: State = type(encoded[0]).cat(encoded)
    return Subject(predictor, pixels, to_device(split.texts, predictor.device), states, CosineIndex(vectors))


def _rates(subjects: Sequence[Subject | None], call: Callable[[Subject], int], rounds: int) -> tuple[Rate | None, ...]:
    measured_rates: list[list[float]] = [[] for _ in subjects]
    for turn in range(-1, rounds):  # the first round warms up and does not count
        for place, subject in list(enumerate(subjects))[:: 1 if turn % 2 else -1]:
            if subject is not None:
                rate = _rate(subject, call, SECONDS if turn >= 0 else 0.0)
                measured_rates[place] += [rate] * (turn >= 0)
    return tuple(Rate(median(rates), min(rates), max(rates)) if rates else None for rates in measured_rates)


def _rate(subject: Subject, call: Callable[[Subject], int], seconds: float) -> float:
    """Measures items a second, over `seconds` at least."""
    items, start = 0, time.perf_counter()
    with evaluating(subject.predictor.model):
        while True:
            items += call(subject)
            if (elapsed := time.perf_counter() - start) >= seconds:
                return items / elapsed
