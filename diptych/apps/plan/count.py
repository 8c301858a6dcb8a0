"""A step of a recipe, counted without being run: at two small sizes, from which any other follows.

All that a step does is in proportion to its pairs, but for what is there once (weights) and for the contrast, which
compares every pair with every candidate. Two sizes give both numbers of each straight line exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych import catalog
from diptych.apps.plan.ledger import CONTRAST, Key, Ledger, Sum
from diptych.apps.plan.pretend import Built, Fakes, Pretended, with_real_integers
from diptych.data.record import Entailment, PairStatement, Picture, PlainText, Question
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.nn.attention import CHUNK
from diptych.nn.blocks import Block
from diptych.nn.queue import FeatureQueue
from diptych.schema import Recipe, VlmoConfig
from diptych.task import Task
from diptych.train.distributed import Shared
from diptych.train.freeze import freeze
from diptych.train.loop import forward_backward
from diptych.types import (
    AnyBatch,
    Batch,
    LabelledBatch,
    LabelledPicturePairs,
    PictureBatch,
    Progress,
    QuestionBatch,
    TextBatch,
    Texts,
)

LEAST, MOST = 4, 256
"""Pairs of the steps that are counted, at least (a negative for each) and at most."""
ANSWER = 3
"""Tokens of a question's one answer in a plan: [CLS], a word, [SEP]."""


@dataclass(frozen=True)
class Weights:
    """What a task holds, in parameters (whatever trains) and in bytes."""

    parameters: int
    """Of the model and its head, teacher apart."""
    trained: int
    weights: int
    """Bytes, as are the following; here all but teacher and queue."""
    teacher: int
    queue: int
    gradients: int
    optimizer: int
    """Adam's two moments."""
    largest_block: int
    """Of the units that FSDP gathers one at a time."""
    root: int
    """What of the weights belongs to no block."""


@dataclass(frozen=True)
class Counted:
    """A step at two sizes, and what the task holds."""

    weights: Weights
    sizes: tuple[int, int]
    small: Ledger
    large: Ledger

    def sums(self, pairs: int, candidates: int | None = None) -> dict[Key, Sum]:
        """Operations of a step of so many pairs, each contrasted with so many (None: these), the queue apart."""
        found = {}
        for key in {*self.small.sums, *self.large.sums}:
            one, other = self.small.sums.get(key, Sum()), self.large.sums.get(key, Sum())
            if key[0] == CONTRAST:
                scale = self._contrast(pairs, candidates or pairs)
                grown = {name: round(scale * getattr(other, name)) for name in ("flops", "moved", "elements")}
                found[key] = replace(other, **grown)
            else:
                fitted = {name: self._line(getattr(one, name), getattr(other, name), pairs) for name in vars(one)}
                found[key] = Sum(**{name: round(value) for name, value in fitted.items()})
        return found

    def flops(self, pairs: int) -> int:
        return sum(one.flops for one in self.sums(pairs).values())

    def peak(self, pairs: int, candidates: int | None = None, all_gradients: bool = False) -> tuple[int, int]:
        """Bytes alive at the worst moment beside what lasts: of gradients, and of all else.

        `all_gradients`: they have their place from the start, as in DDP's buckets.
        """
        assert len(self.small.moments) == len(self.large.moments), "both sizes train the same parameters"
        gradients, worst, whole = 0, (0, 0), sum(self.small.gradients)
        for place, (one, other) in enumerate(zip(self.small.moments, self.large.moments, strict=True)):
            there = whole if all_gradients else gradients
            alive = self._line(one.rest, other.rest, pairs)
            alive += self._contrast(pairs, candidates or pairs) * other.contrast
            worst = max(worst, (there, round(alive)), key=sum)
            gradients += self.small.gradients[place] if place < len(self.small.gradients) else 0
        return worst

    def kept(self, pairs: int) -> int:
        """Bytes that the forward keeps for the way back."""
        return round(self._line(self.small.kept, self.large.kept, pairs))

    def states(self, pairs: int) -> int:
        """Bytes of encoded images and texts."""
        return round(self._line(self.small.states, self.large.states, pairs))

    def _line(self, one: int, other: int, pairs: int) -> float:
        """Through the values at both sizes."""
        small, large = self.sizes
        return max(0.0, one + (other - one) * (pairs - small) / (large - small))

    def _contrast(self, pairs: int, candidates: int) -> float:
        """How many times the larger size's contrast one is of so many pairs and candidates, the queue beside these."""
        queue = self.large.candidates - self.large.pairs
        return pairs * (candidates + queue) / (self.large.pairs * self.large.candidates)


# --------------------------------------------------------------------------- a step


def count(recipe: Recipe, pairs: int, tokens: int, step: int) -> Counted:
    """One process's step number `step`, of about so many pairs with texts of so many tokens."""
    recipe, fakes, words = plannable(recipe), Fakes(), plain_tokenizer(recipe)
    sizes, ledgers = counted_sizes(recipe, pairs, tokens), []
    for size in sizes:
        task = pretended_task(recipe, words, fakes)
        with Built(fakes):
            pixels = torch.empty(2, size, 3, recipe.model.image_size, recipe.model.image_size)
        batch = make_batch(recipe, pixels.unbind(), tokens, words)
        ledgers.append(counted_step(recipe, task.train(), fakes, batch, step))
    return Counted(weigh(task), sizes, *ledgers)


def pretended_task(recipe: Recipe, words: Tokenizer, fakes: Fakes) -> Task:
    """The recipe's task, of whose weights there is nothing but the shapes."""
    with warnings.catch_warnings(), Built(fakes):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copying a teacher does
        task = catalog.build_task(recipe, words)
    with_real_integers(task)
    if recipe.freeze:
        freeze(task, recipe.freeze)
    return task


def counted_sizes(recipe: Recipe, pairs: int, tokens: int) -> tuple[int, int]:
    """As near to `pairs` as is quick: a learnt bias of attention is gone through in pieces, one after the other."""
    most, model = MOST, recipe.model
    if isinstance(model, VlmoConfig) and model.positions == "relative":
        length = tokens + (model.image_size // model.patch_size) ** 2 + 1
        most = min(most, 2 * CHUNK // (4 * model.heads * length**2))
    large = max(2 * LEAST, min(pairs, most))
    return large // 2, large


def counted_step(recipe: Recipe, task: Task, fakes: Fakes, batch: AnyBatch, step: int) -> Ledger:
    """A pretended step, forward and back."""
    ledger = Ledger(len(batch), len(batch) + queued(task))
    ledger.known(task)
    for tensor in vars(batch).values():
        if isinstance(tensor, Tensor):
            ledger.known_tensor(tensor)
    ledger.watch(task)
    task.register_forward_hook(lambda *_: ledger.begin_backward())
    if recipe.run.activation_checkpointing:
        checkpoint_blocks(task, ledger.repeated)
    progress = Progress(step, float(step), recipe.run.seed)
    with Pretended(fakes, ledger.on_operation):
        forward_backward(Shared(task), batch, progress, recipe.run)
    return ledger


def checkpoint_blocks(task: Task, watched: Callable[[Any], Any]) -> None:
    """Keeps what enters each block that trains, and computes the block again on the way back.

    `watched` wraps what is computed again.
    """
    for block in task.modules():
        if isinstance(block, Block) and any(parameter.requires_grad for parameter in block.parameters()):
            forward = watched(block.forward)
            block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


# --------------------------------------------------------------------------- what is counted


def plannable(recipe: Recipe) -> Recipe:
    """The recipe with what only its data would tell: the names of a closed set's answers."""
    return replace(recipe, task=catalog.task_class(recipe.task).sketched(recipe.task))


def plain_tokenizer(recipe: Recipe) -> Tokenizer:
    """Of as many words as the recipe's: those of its vocabulary, or made-up ones in the number that it learns."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(config.vocabulary, config.separator, config.lowercase)
    return Tokenizer([*SPECIAL, *(f"w{number}" for number in range(config.size - len(SPECIAL)))])


def make_batch(recipe: Recipe, pixels: Sequence[Tensor], tokens: int, words: Tokenizer) -> AnyBatch:
    """Pairs of the kind that the recipe's task trains on: pictures as given, drawn words in texts of so many tokens."""
    size, task, generator = len(pixels[0]), recipe.task, torch.Generator().manual_seed(recipe.run.seed)
    ids = torch.randint(len(SPECIAL), words.vocab_size, (size, tokens), generator=generator)
    ids[:, 0] = words.cls_id
    texts, numbers = Texts(ids, torch.ones_like(ids, dtype=torch.bool)), torch.arange(size)
    kind = catalog.record_kind(task)
    if kind is Picture:
        return PictureBatch(pixels[0], numbers)
    if kind is PlainText:
        return TextBatch(texts)
    if kind is Entailment:
        return LabelledBatch(pixels[0], texts, numbers, labels=numbers % 3)
    if kind is PairStatement:
        return LabelledPicturePairs(pixels[0], texts, numbers, labels=numbers % 2, second_pixels=pixels[1])
    if kind is Question and (closed_set := catalog.task_class(task).closed_set(task)):
        scores = (numbers[:, None] % len(closed_set) == torch.arange(len(closed_set))).float()
        return QuestionBatch(pixels[0], texts, numbers, scores=scores)
    if kind is Question:
        answers = torch.tensor([[words.cls_id, len(SPECIAL), words.sep_id]]).expand(size, -1)
        given = Texts(answers, torch.ones_like(answers, dtype=torch.bool))
        return QuestionBatch(pixels[0], texts, numbers, answers=given, answer_of=numbers, weights=torch.ones(size))
    return Batch(pixels[0], texts, numbers)


def queued(task: Task) -> int:
    """Candidates that a full queue holds."""
    return sum(part.size for part in task.modules() if isinstance(part, FeatureQueue))


def weigh(task: Task) -> Weights:
    """Bytes of what lasts from step to step."""
    queue = [buffer for part in task.modules() if isinstance(part, FeatureQueue) for buffer in part.buffers()]
    taught = [value for name, value in task.named_parameters() if name.startswith("teacher")]
    own = [value for name, value in task.named_parameters() if not name.startswith("teacher")]
    trained = [value for value in own if value.requires_grad]
    queued = {id(buffer) for buffer in queue}
    buffers = [buffer for buffer in task.buffers() if id(buffer) not in queued]
    blocks = [_nbytes(part.parameters()) for name, part in task.named_modules() if isinstance(part, Block)]
    own_blocks = [
        _nbytes(part.parameters())
        for name, part in task.named_modules()
        if isinstance(part, Block) and not name.startswith("teacher")
    ]
    return Weights(
        parameters=sum(value.numel() for value in own),
        trained=sum(value.numel() for value in trained),
        weights=_nbytes(own) + _nbytes(buffers),
        teacher=_nbytes(taught),
        queue=_nbytes(queue),
        gradients=_nbytes(trained),
        optimizer=2 * _nbytes(trained),
        largest_block=max(blocks, default=0),
        root=_nbytes(own) - sum(own_blocks),
    )


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
