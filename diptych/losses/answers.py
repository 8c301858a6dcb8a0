"""Computes the losses of VQA, for answers that a decoder writes (ALBEF §5) or a classifier chooses (VLMo §4).

B questions, A answers of a closed set, N answers to all questions, R their tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.contrastive import soft_cross_entropy
from diptych.types import Term


def answer_losses(
    logits: Float[Tensor, "R V"],
    labels: Int[Tensor, "R"],
    answer: Int[Tensor, "R"],
    answers: int,
    momentum_logits: Float[Tensor, "R V"] | None = None,
    alpha: float = 0.0,
) -> Float[Tensor, "N"]:
    """Computes −log P(answer) of each answer in nats, the sum over its tokens.

    `answer` is the answer that each token belongs to. With logits of the momentum encoder, the loss of each token is
    mixed with its pseudo-target as in MLM (ALBEF §3.3).
    """
    words = F.cross_entropy(logits.float(), labels, reduction="none")
    if momentum_logits is not None:
        soft = soft_cross_entropy(logits.float(), torch.softmax(momentum_logits.float(), dim=1))
        words = (1 - alpha) * words + alpha * soft
    return words.new_zeros(answers).index_add(0, answer, words)


def weighted_answer_loss(losses: Float[Tensor, "N"], weights: Float[Tensor, "N"], questions: int) -> Term:
    """Sums the losses of each question's answers by their weights, and averages over questions."""
    return Term((losses * weights).sum(), losses.new_tensor(questions))


def closed_set_loss(
    logits: Float[Tensor, "B A"],
    scores: Float[Tensor, "B A"],
    momentum_logits: Float[Tensor, "B A"] | None = None,
    alpha: float = 0.0,
) -> Term:
    """Computes binary cross-entropy to soft scores in 0..1, summed over answers and averaged over questions.

    With logits of the momentum encoder, its probabilities are mixed into the scores. The loss is linear in the scores,
    so that this equals mixing the losses (ALBEF §3.3).
    """
    if momentum_logits is not None:
        scores = (1 - alpha) * scores + alpha * torch.sigmoid(momentum_logits.float())
    loss = F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="sum")
    return Term(loss, loss.new_tensor(len(logits)))


@torch.no_grad()
def closed_set_score(logits: Float[Tensor, "B A"], scores: Float[Tensor, "B A"]) -> Term:
    """Averages the soft score of each question's likeliest answer. Higher is better."""
    return Term.over(scores.gather(1, logits.argmax(1, keepdim=True)).squeeze(1))
