"""Counts of a recipe's step, simulated at two small batch sizes, from which those of any other size follow.

Everything in a step grows linearly with its pairs, but for the weights, which are constant, and the contrast, which
compares every pair with every candidate. Two sizes determine the slope and the offset of each line exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from diptych.pretrained.named import vocabulary
from diptych.schema import Recipe, VlmoConfig
from diptych.task import Task
from diptych.train.freeze import freeze
from diptych.train.loop import forward_backward
from diptych.train.muon import MOMENTUM, BatchedMuon
from diptych.train.optim import parameter_groups
from diptych.train.parallel import ParallelTask
from diptych.types import (
    KNOWN,
    SAID,
    AnyBatch,
    Batch,
    Claims,
    LabelledBatch,
    LabelledPicturePairs,
    Phrases,
    PictureBatch,
    Progress,
    QuestionBatch,
    Repeats,
    TextBatch,
    Texts,
)

LEAST, MOST = 4, 256
"""Least and largest number of pairs in the simulated steps. Each pair needs a negative."""
ANSWER = 3
"""Tokens of the one answer that a question has in a plan: [CLS], a word, [SEP]."""


@dataclass(frozen=True)
class Weights:
    """Sizes of a task, in parameters and in bytes."""

    parameters: int
    """Parameters of the model and its head, without the momentum encoder."""
    trained: int
    weights: int
    """Bytes of all parameters and buffers but those of momentum encoder and queue. All following fields are bytes."""
    momentum_encoder: int
    queue: int
    gradients: int
    optimizer: int
    """Adam's two moments, or Muon's one."""
    largest_block: int
    """The largest of the blocks, which FSDP gathers one at a time."""
    root: int
    """Weights that belong to no block."""
    by_muon: int = 0
    """Parameters, not bytes, that Muon trains."""


@dataclass(frozen=True)
class Counted:
    """A step at two batch sizes, with the sizes of the task."""

    weights: Weights
    sizes: tuple[int, int]
    small: Ledger
    large: Ledger
    muon: Ledger | None = None
    """Muon's step, if the recipe has one, but for its additions in place."""

    def sums(self, pairs: int, candidates: int | None = None) -> dict[Key, Sum]:
        """Computes the operations of a step. `candidates` for the contrast, beside the queue, default to `pairs`."""
        sums = {}
        for key in {*self.small.sums, *self.large.sums}:
            small, large = self.small.sums.get(key, Sum()), self.large.sums.get(key, Sum())
            if key[0] == CONTRAST:
                scale = self._contrast(pairs, candidates or pairs)
                scaled = {name: round(scale * getattr(large, name)) for name in ("flops", "moved", "elements")}
                sums[key] = replace(large, **scaled)
            else:
                fitted = {name: self._line(getattr(small, name), getattr(large, name), pairs) for name in vars(small)}
                sums[key] = Sum(**{name: round(value) for name, value in fitted.items()})
        return sums

    def flops(self, pairs: int) -> int:
        return sum(total.flops for total in self.sums(pairs).values())

    def peak(self, pairs: int, candidates: int | None = None, all_gradients: bool = False) -> tuple[int, int]:
        """Computes the bytes alive at the peak of a step, of gradients and of all else but the task itself.

        `all_gradients` allocates all gradients from the start, as DDP's buckets do.
        """
        assert len(self.small.moments) == len(self.large.moments), "both sizes train the same parameters"
        gradients, worst, whole = 0, (0, 0), sum(self.small.gradients)
        for place, (small, large) in enumerate(zip(self.small.moments, self.large.moments, strict=True)):
            allocated = whole if all_gradients else gradients
            alive = self._line(small.rest, large.rest, pairs)
            alive += self._contrast(pairs, candidates or pairs) * large.contrast
            worst = max(worst, (allocated, round(alive)), key=sum)
            gradients += self.small.gradients[place] if place < len(self.small.gradients) else 0
        return worst

    def kept(self, pairs: int) -> int:
        """Computes the bytes that the forward pass keeps for the backward pass."""
        return round(self._line(self.small.kept, self.large.kept, pairs))

    def states(self, pairs: int) -> int:
        """Computes the bytes of encoded images and texts."""
        return round(self._line(self.small.states, self.large.states, pairs))

    def _line(self, at_small: int, at_large: int, pairs: int) -> float:
        """Extends the line through the values at both sizes."""
        small, large = self.sizes
        return max(0.0, at_small + (at_large - at_small) * (pairs - small) / (large - small))

    def _contrast(self, pairs: int, candidates: int) -> float:
        """Computes the factor from the larger size's contrast to one of `pairs` and `candidates` beside the queue."""
        queue = self.large.candidates - self.large.pairs
        return pairs * (candidates + queue) / (self.large.pairs * self.large.candidates)


# --------------------------------------------------------------------------- a step


def count(recipe: Recipe, pairs: int, tokens: int, step: int) -> Counted:
    """Counts step number `step` of one process, at sizes near `pairs`, with texts of `tokens` tokens."""
    recipe, fakes, words = plannable(recipe), Fakes(), plain_tokenizer(recipe)
    sizes, ledgers = counted_sizes(recipe, pairs, tokens), []
    for size in sizes:
        task = pretended_task(recipe, words, fakes)
        with Built(fakes):
            pixels = torch.empty(2, size, 3, recipe.model.image_size, recipe.model.image_size)
        batch = make_batch(recipe, pixels.unbind(), tokens, words)
        ledgers.append(counted_step(recipe, task.train(), fakes, batch, step))
    small, large = ledgers
    if recipe.optim.kind == "adamw":
        return Counted(weigh(task), sizes, small, large)
    matrices = muon_groups(task)
    return Counted(weigh(task, matrices), sizes, small, large, counted_muon(matrices, fakes, recipe.run.precision))


def pretended_task(recipe: Recipe, words: Tokenizer, fakes: Fakes) -> Task:
    """Builds the recipe's task with fake weights, which have only shapes."""
    with warnings.catch_warnings(), Built(fakes):
        warnings.filterwarnings(
            "ignore", message="Accessing the data pointer of FakeTensor"
        )  # copying a momentum encoder does so
        task = catalog.build_task(recipe, words)
    with_real_integers(task)
    if recipe.freeze:
        freeze(task, recipe.freeze)
    return task


def counted_sizes(recipe: Recipe, pairs: int, tokens: int) -> tuple[int, int]:
    """Chooses two sizes near `pairs` that are quick, since attention with a learnt bias is computed in pieces."""
    most, model = MOST, recipe.model
    if isinstance(model, VlmoConfig) and model.positions == "relative":
        length = tokens + (model.image_size // model.patch_size) ** 2 + 1
        most = min(most, 2 * CHUNK // (4 * model.heads * length**2))
    large = max(2 * LEAST, min(pairs, most))
    return large // 2, large


def counted_step(recipe: Recipe, task: Task, fakes: Fakes, batch: AnyBatch, step: int) -> Ledger:
    """Simulates a step, forward and backward."""
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
        forward_backward(ParallelTask(task), batch, progress, recipe.run)
    return ledger


def muon_groups(task: Task) -> list[dict[str, Any]]:
    """Groups the weights that Muon trains."""
    groups = parameter_groups(task, weight_decay=0.0, rule="repaired", muon=True)
    return [group for group in groups if "muon_pieces" in group]


def counted_muon(groups: list[dict[str, Any]], fakes: Fakes, precision: str) -> Ledger:
    """Simulates a step of Muon. torch reports no result of additions in place (`_foreach_…_`), so they do not count."""
    ledger = Ledger(0, 0)
    muon = BatchedMuon(groups, bf16=precision == "bf16")
    with fakes:
        for group in groups:
            for weight in group["params"]:
                weight.grad = torch.empty_like(weight)
                muon.state[weight][MOMENTUM] = torch.empty_like(weight)
                for tensor in (weight, weight.grad, muon.state[weight][MOMENTUM]):
                    ledger.known_tensor(tensor)
    with Pretended(fakes, ledger.on_operation):
        muon.step()
    return ledger


def checkpoint_blocks(task: Task, watched: Callable[[Any], Any]) -> None:
    """Recomputes each trained block in the backward pass from its input. `watched` wraps the recomputed call."""
    for block in task.modules():
        if isinstance(block, Block) and any(parameter.requires_grad for parameter in block.parameters()):
            forward = watched(block.forward)
            block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


# --------------------------------------------------------------------------- recipe, batch and weights


def plannable(recipe: Recipe) -> Recipe:
    """Completes a recipe with made-up names of a closed set's answers, which only its data would tell."""
    return replace(recipe, task=catalog.task_class(recipe.task).with_placeholders(recipe.task))


def plain_tokenizer(recipe: Recipe) -> Tokenizer:
    """Builds a tokenizer of the recipe's size, with its vocabulary or with made-up words."""
    config = recipe.tokenizer
    if config.vocabulary:
        return Tokenizer.from_vocabulary(vocabulary(config.vocabulary), config.separator, config.lowercase)
    return Tokenizer([*SPECIAL, *(f"w{number}" for number in range(config.size - len(SPECIAL)))])


def make_batch(recipe: Recipe, pixels: Sequence[Tensor], tokens: int, words: Tokenizer) -> AnyBatch:
    """Builds a batch for the recipe's task from `pixels` and from texts of `tokens` random words."""
    size, task, generator = len(pixels[0]), recipe.task, torch.Generator().manual_seed(recipe.run.seed)
    ids = torch.randint(len(SPECIAL), words.vocab_size, (size, tokens), generator=generator)
    ids[:, 0] = words.cls_id
    texts, numbers = Texts(ids, torch.ones_like(ids, dtype=torch.bool)), torch.arange(size)
    kind, together = catalog.record_kind(task), recipe.data.texts_per_image
    repeats = Repeats(numbers[::together], numbers // together) if together > 1 else None
    if kind is Picture:
        return PictureBatch(pixels[0], numbers)
    if kind is PlainText:
        return TextBatch(texts)
    if kind is Entailment:
        return LabelledBatch(pixels[0], texts, numbers, labels=numbers % 3, repeats=repeats)
    if kind is PairStatement:
        return LabelledPicturePairs(pixels[0], texts, numbers, labels=numbers % 2, second_pixels=pixels[1])
    if kind is Question and (closed_set := catalog.task_class(task).closed_set(task)):
        scores = (numbers[:, None] % len(closed_set) == torch.arange(len(closed_set))).float()
        return QuestionBatch(pixels[0], texts, numbers, scores=scores, repeats=repeats)
    if kind is Question:
        answers = torch.tensor([[words.cls_id, len(SPECIAL), words.sep_id]]).expand(size, -1)
        answer_texts = Texts(answers, torch.ones_like(answers, dtype=torch.bool))
        return QuestionBatch(
            pixels[0],
            texts,
            numbers,
            answers=answer_texts,
            answer_of=numbers,
            weights=torch.ones(size),
            repeats=repeats,
        )
    claims = phrases = None
    if task.needs_claims:
        claims = Claims(numbers[:, None].expand(-1, SAID), numbers[:, None].expand(-1, KNOWN))
    if task.needs_phrases:  # [CLS], an article, a noun and [SEP]
        phrases = Phrases(Texts(ids[:, :4], texts.attention_mask[:, :4]), numbers[:, None])
    return Batch(pixels[0], texts, numbers, claims=claims, phrases=phrases)


def queued(task: Task) -> int:
    """Counts the candidates that a full queue holds."""
    return sum(part.size for part in task.modules() if isinstance(part, FeatureQueue))


def weigh(task: Task, by_muon: Sequence[Mapping[str, Any]] = ()) -> Weights:
    """Counts the bytes that stay from step to step. `by_muon` are the groups that Muon trains."""
    queue = [buffer for part in task.modules() if isinstance(part, FeatureQueue) for buffer in part.buffers()]
    momentum_encoder = [value for name, value in task.named_parameters() if name.startswith("momentum_")]
    student = [value for name, value in task.named_parameters() if not name.startswith("momentum_")]
    trained = [value for value in student if value.requires_grad]
    queued = {id(buffer) for buffer in queue}
    buffers = [buffer for buffer in task.buffers() if id(buffer) not in queued]
    blocks = {name: _nbytes(part.parameters()) for name, part in task.named_modules() if isinstance(part, Block)}
    matrices = [weight for group in by_muon for weight in group["params"]]
    student_blocks = [size for name, size in blocks.items() if not name.startswith("momentum_")]
    return Weights(
        parameters=sum(value.numel() for value in student),
        trained=sum(value.numel() for value in trained),
        weights=_nbytes(student) + _nbytes(buffers),
        momentum_encoder=_nbytes(momentum_encoder),
        queue=_nbytes(queue),
        gradients=_nbytes(trained),
        optimizer=2 * _nbytes(trained) - _nbytes(matrices),
        largest_block=max(blocks.values(), default=0),
        root=_nbytes(student) - sum(student_blocks),
        by_muon=sum(weight.numel() for weight in matrices),
    )


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
