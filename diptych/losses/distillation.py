"""Computes the losses of momentum distillation (ALBEF §3.3): labels mixed with the momentum encoder's pseudo-targets.

R masked tokens, V vocabulary, B samples, C classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.contrastive import soft_cross_entropy
from diptych.types import Term


def alpha_at(epoch: float, alpha: float, ramp: float = 1.0) -> float:
    """Returns the weight of the pseudo-targets, which rises linearly from 0 to `alpha` over `ramp` epochs."""
    return alpha * min(epoch / ramp, 1.0) if ramp else alpha  # ALBEF §3.5


def distilled_loss(
    hard: Term, logits: Float[Tensor, "R V"], momentum_logits: Float[Tensor, "R V"], alpha: float
) -> Term:
    """Computes (1 − α) · `hard`, the loss against labels, + α · KL(momentum encoder‖model) of R predictions.

    The KL is written as a soft cross-entropy: it lacks the entropy of the pseudo-targets, which has no gradient.
    """
    soft = soft_cross_entropy(logits.float(), torch.softmax(momentum_logits.float(), dim=1)).sum()
    return Term((1 - alpha) * hard.sum + alpha * soft, hard.count)  # ALBEF Eq. 7


def class_loss(
    logits: Float[Tensor, "B C"],
    labels: Int[Tensor, "B"],
    momentum_logits: Float[Tensor, "B C"] | None = None,
    alpha: float = 0.0,
) -> Term:
    """Computes cross-entropy to the label, distilled where a momentum encoder gives its logits (ALBEF §3.3)."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    hard = Term(loss, loss.new_tensor(len(labels)))
    return hard if momentum_logits is None else distilled_loss(hard, logits, momentum_logits, alpha)
