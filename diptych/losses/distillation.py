"""Momentum distillation (ALBEF §3.3): when the teacher counts, and its word distribution as a target.

R hidden words, V vocabulary, B samples, C classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.contrastive import soft_cross_entropy
from diptych.types import Term


def alpha_at(epoch: float, alpha: float, ramp: float = 1.0) -> float:
    """The teacher's weight so many epochs after it was let in: linear from 0 to `alpha` over `ramp` epochs."""
    return alpha * min(epoch / ramp, 1.0) if ramp else alpha


def mixed_word_loss(
    hard: Term, logits: Float[Tensor, "R V"], teacher_logits: Float[Tensor, "R V"], alpha: float
) -> Term:
    """(1 − α)·MLM + α·KL(teacher‖student) at the hidden words, the KL without the teacher's constant entropy."""
    soft = soft_cross_entropy(logits.float(), torch.softmax(teacher_logits.float(), dim=1)).sum()
    return Term((1 - alpha) * hard.sum + alpha * soft, hard.count)  # ALBEF Eq. 7


def class_loss(
    logits: Float[Tensor, "B C"],
    labels: Int[Tensor, "B"],
    teacher_logits: Float[Tensor, "B C"] | None = None,
    alpha: float = 0.0,
) -> Term:
    """Cross-entropy to the right class; with a teacher, mixed with its distribution as words are (ALBEF §3.3)."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    hard = Term(loss, loss.new_tensor(len(labels)))
    return hard if teacher_logits is None else mixed_word_loss(hard, logits, teacher_logits, alpha)
