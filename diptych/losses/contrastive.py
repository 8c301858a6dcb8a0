"""Image-text contrast (ITC).

B queries, K candidates (the batch's momentum features, then the queue's; or the pairs of all processes), E embedding
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.nn.gather import Processes
from diptych.types import Term

HIDDEN = -1e9
"""A logit that no softmax gives any weight, yet finite: 0 · HIDDEN is 0, where 0 · −inf would be NaN."""


def similarity(
    query: Float[Tensor, "B E"], keys: Float[Tensor, "K E"], temperature: Float[Tensor, ""]
) -> Float[Tensor, "B K"]:
    """Logits s(query, key) / τ; their softmax is the similarity of the paper. In fp32 whatever the features' type."""
    return query.float() @ keys.float().T / temperature  # ALBEF Eq. 1


def itc_targets(
    teacher_logits: Float[Tensor, "B K"], positives: Float[Tensor, "B K"], alpha: float
) -> Float[Tensor, "B K"]:
    """Soft targets: the labels mixed with the teacher's similarities.

    Cross-entropy to this mixture has the gradient of (1 − α)·H(y, p) + α·KL(q‖p): KL differs from the soft
    cross-entropy only by the entropy of the teacher.
    """
    return alpha * torch.softmax(teacher_logits, dim=1) + (1 - alpha) * positives  # ALBEF Eq. 6


def soft_cross_entropy(logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """−Σ targets · log softmax(logits) of each row."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1)


def contrastive_loss(
    image_to_text: Float[Tensor, "B K"],
    text_to_image: Float[Tensor, "B K"],
    image_targets: Float[Tensor, "B K"],
    text_targets: Float[Tensor, "B K"],
) -> Term:
    """Cross-entropy both ways, averaged (ALBEF §3.2)."""
    rows = (soft_cross_entropy(image_to_text, image_targets) + soft_cross_entropy(text_to_image, text_targets)) / 2
    return Term(rows.sum(), rows.new_tensor(len(rows)))  # ALBEF Eq. 2


@dataclass(frozen=True)
class Logits:
    """Of a batch's images against texts, and of its texts against images."""

    image_to_text: Float[Tensor, "B K"]
    text_to_image: Float[Tensor, "B K"]


def in_batch_contrast(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    temperature: Float[Tensor, ""],
    processes: Processes,
    hidden: Bool[Tensor, "Q K"] | None = None,
) -> Logits:
    """This process's pairs against those of all processes, K in all; `hidden` ones neither pull nor push.

    Its pairs come first. As released (`processes.own_first`), those of the others follow, Q = K in all.
    """
    image_to_text = similarity(processes.queries(image), processes.gather(text), temperature)
    text_to_image = similarity(processes.queries(text), processes.gather(image), temperature)
    return Logits(hide(image_to_text, hidden), hide(text_to_image, hidden))


def own_halves(processes: Processes, device: torch.device) -> Bool[Tensor, "Q K"]:
    """Which of the pairs of all processes is each pair itself."""
    everyone = torch.arange(processes.total, device=device)
    places = everyone if processes.own_first else processes.places(device)
    return places[:, None] == everyone[None]


def same_picture(ids: Int[Tensor, "B"], processes: Processes) -> Bool[Tensor, "Q K"]:
    """Which of the pairs of all processes show the picture of each pair; itself does."""
    return processes.queries(ids)[:, None] == processes.gather(ids)[None]


@dataclass(frozen=True)
class Similarities(Logits):
    """Logits against the teacher's features of batch and queue, batch first; beside them, the teacher's own."""

    teacher_image_to_text: Float[Tensor, "B K"]
    teacher_text_to_image: Float[Tensor, "B K"]


def distilled_contrastive_loss(logits: Similarities, positives: Float[Tensor, "B K"], alpha: float) -> Term:
    """ITC against labels and teacher, which has the share `alpha` (ALBEF §3.3)."""
    return contrastive_loss(
        logits.image_to_text,
        logits.text_to_image,
        itc_targets(logits.teacher_image_to_text, positives, alpha),
        itc_targets(logits.teacher_text_to_image, positives, alpha),
    )


def hide(logits: Float[Tensor, "B K"], hidden: Bool[Tensor, "B K"] | None) -> Float[Tensor, "B K"]:
    """The logits with candidates that are neither positive nor negative taken out."""
    return logits if hidden is None else logits.masked_fill(hidden, HIDDEN)


def information_bound(logits: Float[Tensor, "B K"], positives: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """A lower bound, in nats, on the mutual information of two views: log N − InfoNCE, N the candidates not hidden.

    Applied to image and text it is ITC seen as InfoNCE (Eq. 9).
    """
    candidates = (logits > HIDDEN / 2).sum(1)
    return candidates.log() - soft_cross_entropy(logits, positives)  # ALBEF Eq. 8
