"""The values that packages exchange: batches, fused states, losses. They are frozen and hold no logic.

B samples of a batch, L padded text length, D width, P pairs, R tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Movable = TypeVar("Movable")


def to_device(value: Movable, device: torch.device | str) -> Movable:
    """Copies a dataclass with every tensor, also those of nested dataclasses, on `device`."""
    assert is_dataclass(value)
    assert not isinstance(value, type)
    moved: dict[str, Any] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if isinstance(content, Tensor):
            moved[item.name] = content.to(device, non_blocking=True)
        elif is_dataclass(content) and not isinstance(content, type):
            moved[item.name] = to_device(content, device)
    return replace(value, **moved)


@dataclass(frozen=True)
class Texts:
    """Token ids, padded to the longest text of the batch. Padding is only storage: no result depends on it."""

    input_ids: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    rng_keys: Int[Tensor, "B"] | None = None
    """RNG key of each text, which makes its dropout independent of the batch (nn/counter_rng.py). None uses torch's
    global generator."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Texts:
        rng_keys = None if self.rng_keys is None else self.rng_keys[rows]
        return Texts(self.input_ids[rows], self.attention_mask[rows], rng_keys)

    @classmethod
    def cat(cls, parts: Sequence[Texts]) -> Texts:
        """Joins texts, padded to the longest. All have RNG keys or none has."""
        longest = max(part.input_ids.shape[1] for part in parts)
        ids, masks = (
            torch.cat([F.pad(tokens, (0, longest - tokens.shape[1])) for tokens in column])
            for column in zip(*((part.input_ids, part.attention_mask) for part in parts), strict=True)
        )
        keys = [part.rng_keys for part in parts if part.rng_keys is not None]
        return cls(ids, masks, torch.cat(keys) if keys else None)


NO_CLAIM = -1
"""Pads rows of claims."""


SAID, KNOWN = 4, 16
"""Widths of a batch's claims: the most claims of a text, and the most that are known of an image. Further claims of an
image are dropped, so that fewer texts are known to be true of it."""


@dataclass(frozen=True)
class Claims:
    """Holds what the texts of a batch claim, and which claims are known to be true of its images.

    A claim is the hash of a phrase such as `a fox`. Text b is known to be true of image k if every claim in `said[b]`
    is in `known[k]`. The claims of text b are known of its own image. Rows are padded with NO_CLAIM; the first claim
    of a text is never padding.
    """

    said: Int[Tensor, "B F"]
    """F = SAID."""
    known: Int[Tensor, "B H"]
    """H = KNOWN."""


@dataclass(frozen=True)
class Phrases:
    """One phrase of each pair's text, such as `a fox`."""

    texts: Texts
    said: Int[Tensor, "B 1"]
    """The claim that a phrase makes, as in `Claims.said`."""


@dataclass(frozen=True)
class Repeats:
    """Says which rows of a batch show equal pixels, so that each image can be encoded once."""

    rows: Int[Tensor, "I"]
    """The first row of each distinct image."""
    image_of: Int[Tensor, "B"]
    """The distinct image (0..I-1) of each row."""


@dataclass(frozen=True)
class Batch:
    """Image-text pairs: sample b is the image pixels[b] with the text texts[b]."""

    pixels: Float[Tensor, "B 3 H W"]
    texts: Texts
    image_ids: Int[Tensor, "B"]
    """Identity of each image: equal numbers mean the same image."""
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""
    rng_keys: Int[Tensor, "B"] | None = None
    """RNG key of each image, for dropout, as `Texts.rng_keys`."""
    claims: Claims | None = None
    """By which texts are known to be true of other images. None where the task does not need them."""
    phrases: Phrases | None = None
    """None where the task does not need them."""
    repeats: Repeats | None = None
    """None where no two rows are known to show equal pixels."""

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class PictureBatch:
    """Images without texts."""

    pixels: Float[Tensor, "B 3 H W"]
    image_ids: Int[Tensor, "B"]
    """As in `Batch`."""
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""
    rng_keys: Int[Tensor, "B"] | None = None
    """As in `Batch`."""

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class TextBatch:
    """Texts without images."""

    texts: Texts
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""

    def __len__(self) -> int:
        return len(self.texts)


AnyBatch = Batch | PictureBatch | TextBatch
"""The batches that a loader makes; which one depends on the kind of its records."""


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Samples of which each belongs to one of several classes."""

    labels: Int[Tensor, "B"] = field(kw_only=True)
    """The class of each sample, counted from 0 in the order that the task states."""


@dataclass(frozen=True)
class PicturePairs(Batch):
    """Statements about two images: sample b is pixels[b] and second_pixels[b] with texts[b]."""

    second_pixels: Float[Tensor, "B 3 H W"] = field(kw_only=True)


@dataclass(frozen=True)
class LabelledPicturePairs(LabelledBatch, PicturePairs):
    """Statements about two images, each of a known class."""


Kind = TypeVar("Kind", bound=AnyBatch)


def expect(batch: AnyBatch, kind: type[Kind], needs: str) -> Kind:
    """Returns `batch` if a task can train on its kind. Raises ValueError otherwise; `needs` names what is missing."""
    if not isinstance(batch, kind):
        raise ValueError(f"this task needs {needs}, which the data does not have: choose a data.source that does")
    return batch


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Questions about images: sample b asks texts[b] about pixels[b]. Training needs answers or scores."""

    answers: Texts | None = None
    """N answers, [CLS] … [SEP]; each belongs to a question and has a weight."""
    answer_of: Int[Tensor, "N"] | None = None
    """The question (0..B-1) of each answer."""
    weights: Float[Tensor, "N"] | None = None
    """Weight of each answer: the share of annotators who gave it."""
    scores: Float[Tensor, "B A"] | None = None
    """Target score of each answer of a closed set, in 0..1."""


@dataclass(frozen=True)
class TokenPositions:
    """A list of text tokens: token r stands at `position[r]` (0 is [CLS]) of the text of pair `pair[r]`."""

    pair: Int[Tensor, "R"]
    position: Int[Tensor, "R"]


OutputPositions = TokenPositions | Literal["all"] | None
"""The tokens whose hidden states `fuse` returns beside the pooled vectors: those listed, all, or none."""


@dataclass(frozen=True)
class Joint:
    """The output of the fusion encoder for P pairs."""

    pooled: Float[Tensor, "P D"]
    """One vector a pair, for heads. ALBEF: the hidden state of [CLS]; VLMo: the pooler's output."""
    hidden: Float[Tensor, "R D"] | Float[Tensor, "P L D"] | None
    """Hidden states of the requested tokens. With `positions="all"` they are padded to the longest pair."""
    mask: Bool[Tensor, "P L"] | None = None
    """With `positions="all"`: which tokens are real."""
    text_mask: Bool[Tensor, "P L"] | None = None
    """With `positions="all"`: which tokens are text. ALBEF: all real ones."""
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    """Attention maps [P, heads, text, patches] by layer, within the autograd graph."""


@dataclass(frozen=True)
class Term:
    """A mean that can be accumulated: `sum` over `count` items, both tensors without dimensions."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean; 0 when nothing was counted."""
        return self.sum / self.count.clamp(min=1)

    @classmethod
    def over(cls, values: Float[Tensor, "n"]) -> Term:
        """Makes the mean of n values."""
        return cls(values.sum(), values.new_tensor(len(values)))

    def plus(self, other: Term) -> Term:
        """Combines two terms to the mean over the items of both."""
        return replace(self, sum=self.sum + other.sum, count=self.count + other.count)

    def detach(self) -> Term:
        """Detaches the term from the autograd graph."""
        return replace(self, sum=self.sum.detach(), count=self.count.detach())


@dataclass(frozen=True)
class Exponential(Term):
    """The exponential of a mean, such as a perplexity. It is that of all items, not the mean over batches."""

    @property
    def mean(self) -> Tensor:
        return super().mean.exp()


@dataclass(frozen=True)
class Progress:
    """Where training stands when a batch is computed."""

    step: int
    """Optimiser steps done."""
    epoch: float
    """Epochs done, with their fraction."""
    seed: int = 0

    def epoch_since(self, step: int) -> float:
        """Returns the epochs done since an earlier step."""
        return self.epoch * (1 - step / self.step) if step else self.epoch


@dataclass(frozen=True)
class Losses:
    """Weighted loss terms, measures to log, and what `Task.after_step` needs (`carry`), such as features to queue."""

    terms: Mapping[str, tuple[float, Term]]
    measures: Mapping[str, Term] = field(default_factory=dict)
    carry: Any = None

    @classmethod
    def weighted(
        cls, *, measures: Mapping[str, Term] | None = None, carry: Any = None, **terms: tuple[float, Term]
    ) -> Losses:
        return cls(terms=terms, measures=measures or {}, carry=carry)

    @property
    def total(self) -> Tensor:
        """The number to differentiate: the weighted sum of the means of the terms."""
        return torch.stack([weight * term.mean for weight, term in self.terms.values()]).sum()
