"""The values that pass between rooms: batches, states, losses. Frozen; nothing here computes.

B samples of a batch, L padded text length, T image tokens, D width, P pairs, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Movable = TypeVar("Movable")


def to_device(value: Movable, device: torch.device | str) -> Movable:
    """The same dataclass with every tensor (also of nested dataclasses) on `device`."""
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
    """Token ids padded to the longest text of the batch. Padding is only storage: no result depends on it."""

    input_ids: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    keys: Int[Tensor, "B"] | None = None
    """Of each text, for dropout that depends on nothing else (nn/draws.py); None: as it is drawn."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Texts:
        return Texts(self.input_ids[rows], self.attention_mask[rows], None if self.keys is None else self.keys[rows])


@dataclass(frozen=True)
class Batch:
    """Image-text pairs: sample b is pixels[b] with texts[b]."""

    pixels: Float[Tensor, "B 3 H W"]
    texts: Texts
    image_ids: Int[Tensor, "B"]
    """Identity of each picture: equal numbers mean the same picture."""
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""
    keys: Int[Tensor, "B"] | None = None
    """Of each picture, for dropout, as `Texts.keys`."""

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures without texts."""

    pixels: Float[Tensor, "B 3 H W"]
    image_ids: Int[Tensor, "B"]
    """As in `Batch`."""
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""
    keys: Int[Tensor, "B"] | None = None
    """As in `Batch`."""

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class TextBatch:
    """Texts without pictures."""

    texts: Texts
    records: tuple[str, ...] = ()
    """Names of the records, for messages."""

    def __len__(self) -> int:
        return len(self.texts)


AnyBatch = Batch | PictureBatch | TextBatch
"""What a loader can give, by the kind of its records."""


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Samples of which each belongs to one of several classes."""

    labels: Int[Tensor, "B"] = field(kw_only=True)
    """The class of each sample, counted from 0 in the order that the task states."""


@dataclass(frozen=True)
class PicturePairs(Batch):
    """Statements about two pictures: sample b is pixels[b] and second_pixels[b] with texts[b]."""

    second_pixels: Float[Tensor, "B 3 H W"] = field(kw_only=True)


@dataclass(frozen=True)
class LabelledPicturePairs(LabelledBatch, PicturePairs):
    """Statements about two pictures, each of a known class."""


Kind = TypeVar("Kind", bound=AnyBatch)


def expect(batch: AnyBatch, kind: type[Kind], needs: str) -> Kind:
    """`batch`, if it is of the kind that a task trains on. Raises ValueError if not; `needs` says what is missing."""
    if not isinstance(batch, kind):
        raise ValueError(f"this task needs {needs}, which the data does not have: choose a data.source that does")
    return batch


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Questions about images: sample b asks texts[b] of pixels[b]. To be trained on, they need answers or scores."""

    answers: Texts | None = None
    """N answers, [CLS] … [SEP], with their owners and weights."""
    answer_of: Int[Tensor, "N"] | None = None
    """The question (0..B-1) of each answer."""
    weights: Float[Tensor, "N"] | None = None
    """How much each answer counts: the share of annotators who gave it."""
    scores: Float[Tensor, "B A"] | None = None
    """How right each answer of a closed set is, in 0..1."""


@dataclass(frozen=True)
class RowList:
    """Rows asked of `fuse`: row r is position `position[r]` of pair `pair[r]` (position 0 is [CLS])."""

    pair: Int[Tensor, "R"]
    position: Int[Tensor, "R"]


Rows = RowList | Literal["all"] | None
"""What `fuse` returns beside the pooled [CLS] of each pair: listed rows, all rows, or nothing more."""


@dataclass(frozen=True)
class Joint:
    """What the fusion encoder made of P pairs."""

    pooled: Float[Tensor, "P D"]
    """One vector a pair for heads (ALBEF: the [CLS] row; VLMo: the pooler's output)."""
    rows: Float[Tensor, "R D"] | Float[Tensor, "P L D"] | None
    """The rows asked for; with `rows="all"` padded to the longest pair, `mask` says which are real."""
    mask: Bool[Tensor, "P L"] | None = None
    text_rows: Bool[Tensor, "P L"] | None = None
    """Which rows are text (ALBEF: all real ones)."""
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    """Attention maps by layer [P, heads, text, patches], in the graph."""


@dataclass(frozen=True)
class Term:
    """A mean that can be added up: `sum` over `count` items. Both are tensors without dimensions."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean, 0 when nothing was counted."""
        return self.sum / self.count.clamp(min=1)

    @classmethod
    def over(cls, values: Float[Tensor, "n"]) -> Term:
        """The mean of n values."""
        return cls(values.sum(), values.new_tensor(len(values)))

    def plus(self, other: Term) -> Term:
        """The same mean over the items of both."""
        return replace(self, sum=self.sum + other.sum, count=self.count + other.count)

    def detach(self) -> Term:
        """The same number without the graph."""
        return replace(self, sum=self.sum.detach(), count=self.count.detach())


@dataclass(frozen=True)
class Exponential(Term):
    """The exponential of a mean, such as a perplexity: of all items together, not the mean of each batch's."""

    @property
    def mean(self) -> Tensor:
        return super().mean.exp()


@dataclass(frozen=True)
class Progress:
    """Where the training stands when a batch is seen."""

    step: int
    """Optimiser steps done."""
    epoch: float
    """Epochs done, with their fraction."""
    seed: int = 0

    def epoch_since(self, step: int) -> float:
        """Epochs done since an earlier step."""
        return self.epoch * (1 - step / self.step) if step else self.epoch


@dataclass(frozen=True)
class Losses:
    """Weighted loss terms, measures to log, and what the task must remember after the step."""

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
        """The number to differentiate: the weighted sum of the terms' means."""
        return torch.stack([weight * term.mean for weight, term in self.terms.values()]).sum()
