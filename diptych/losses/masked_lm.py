"""Masked language modelling (MLM): which words to hide, and the loss at the hidden ones.

B texts, L padded length, R hidden words, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.types import Term

IGNORED = -100
"""The label of a position that is not predicted."""


@dataclass(frozen=True)
class MaskDraws:
    """The random part of masking, one draw a position."""

    select: Bool[Tensor, "B L"]
    replace: Bool[Tensor, "B L"]
    randomise: Bool[Tensor, "B L"]
    words: Int[Tensor, "B L"]

    @classmethod
    def make(
        cls, texts: int, length: int, probability: float, vocab_size: int, generator: torch.Generator
    ) -> MaskDraws:
        """A share selected; of these 80 % replaced by [MASK], half of the rest randomised (ALBEF §3.2)."""
        select, replace, randomise = torch.rand(3, texts, length, generator=generator)
        words = torch.randint(vocab_size, (texts, length), generator=generator)
        return cls(select < probability, replace < 0.8, randomise < 0.5, words)


def mask_words(
    ids: Int[Tensor, "B L"], maskable: Bool[Tensor, "B L"], mask_id: int, draws: MaskDraws
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Ids with words hidden, and labels (the original id where hidden, IGNORED elsewhere)."""
    selected = draws.select & maskable
    labels = ids.masked_fill(~selected, IGNORED)
    masked = torch.where(selected & draws.replace, mask_id, ids)
    masked = torch.where(selected & ~draws.replace & draws.randomise, draws.words, masked)
    return masked, labels


def masked_lm_loss(logits: Float[Tensor, "R V"], labels: Int[Tensor, "R"]) -> Term:
    """Cross-entropy at the hidden words. No hidden word: sum 0, count 0, mean 0 (the released code gives NaN)."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")  # ALBEF Eq. 3
    return Term(loss, loss.new_tensor(len(labels)))
