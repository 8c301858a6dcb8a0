"""Visual question answering, with answers that are written (ALBEF §5) or chosen from a closed set (VLMo §4).

B questions, A answers of a closed set, N answers to all questions, R their words, V vocabulary.
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
    teacher_logits: Float[Tensor, "R V"] | None = None,
    alpha: float = 0.0,
) -> Float[Tensor, "N"]:
    """−log P(answer) in nats, the sum over its words; with a teacher, each word's loss is mixed as in MLM (ALBEF §3.3).

    `answer` leads from a word to its answer.
    """
    words = F.cross_entropy(logits.float(), labels, reduction="none")
    if teacher_logits is not None:
        soft = soft_cross_entropy(logits.float(), torch.softmax(teacher_logits.float(), dim=1))
        words = (1 - alpha) * words + alpha * soft
    return words.new_zeros(answers).index_add(0, answer, words)


def weighted_answer_loss(losses: Float[Tensor, "N"], weights: Float[Tensor, "N"], questions: int) -> Term:
    """Each question counts once, each of its answers by its weight."""
    return Term((losses * weights).sum(), losses.new_tensor(questions))


def closed_set_loss(
    logits: Float[Tensor, "B A"],
    scores: Float[Tensor, "B A"],
    teacher_logits: Float[Tensor, "B A"] | None = None,
    alpha: float = 0.0,
) -> Term:
    """Binary cross-entropy to soft scores in 0..1, summed over answers, the mean over questions.

    With a teacher, its probabilities are mixed into the scores (ALBEF §3.3; the loss is linear in them).
    """
    if teacher_logits is not None:
        scores = (1 - alpha) * scores + alpha * torch.sigmoid(teacher_logits.float())
    loss = F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="sum")
    return Term(loss, loss.new_tensor(len(logits)))


@torch.no_grad()
def closed_set_score(logits: Float[Tensor, "B A"], scores: Float[Tensor, "B A"]) -> Term:
    """The soft score of each question's likeliest answer, the mean over questions. Higher is better."""
    return Term.over(scores.gather(1, logits.argmax(1, keepdim=True)).squeeze(1))
