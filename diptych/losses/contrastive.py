"""Computes the image-text contrastive loss (ITC) and its soft targets (ALBEF §3.2, §3.3).

B queries, K candidates (ALBEF: momentum features of the batch, then of the queue; VLMo: the pairs of all processes),
E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.nn.gather import Processes
from diptych.types import NO_CLAIM, Term

IGNORED_LOGIT = -1e9
"""The logit of an ignored candidate: its softmax is 0, but unlike −inf it is finite, so that 0 times it is not NaN."""


def similarity(
    query: Float[Tensor, "B E"], keys: Float[Tensor, "K E"], temperature: Float[Tensor, ""]
) -> Float[Tensor, "B K"]:
    """Computes the logits s(query, key) / τ of each query with each key, in fp32. Their softmax is the paper's p."""
    return query.float() @ keys.float().T / temperature  # ALBEF Eq. 1


def itc_targets(
    momentum_logits: Float[Tensor, "B K"], positives: Float[Tensor, "B K"], alpha: float
) -> Float[Tensor, "B K"]:
    """Mixes the labels with the momentum encoder's softmax, its pseudo-targets.

    Cross-entropy to this mixture has the gradient of the paper's (1 − α)·H(y, p) + α·KL(q‖p), because KL differs from
    the soft cross-entropy only by the entropy of q, which does not depend on the model.
    """
    return alpha * torch.softmax(momentum_logits, dim=1) + (1 - alpha) * positives  # ALBEF Eq. 6


def soft_cross_entropy(logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Computes −Σ targets · log softmax(logits) of each row."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1)


def contrastive_loss(
    image_to_text: Float[Tensor, "B K"],
    text_to_image: Float[Tensor, "B K"],
    image_targets: Float[Tensor, "B K"],
    text_targets: Float[Tensor, "B K"],
) -> Term:
    """Averages the cross-entropy of image → text and of text → image (ALBEF §3.2)."""
    rows = (soft_cross_entropy(image_to_text, image_targets) + soft_cross_entropy(text_to_image, text_targets)) / 2
    return Term(rows.sum(), rows.new_tensor(len(rows)))  # ALBEF Eq. 2


@dataclass(frozen=True)
class Logits:
    """Holds the logits of a batch's images against texts, and of its texts against images."""

    image_to_text: Float[Tensor, "B K"]
    text_to_image: Float[Tensor, "B K"]


def in_batch_contrast(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    temperature: Float[Tensor, ""],
    processes: Processes,
    ignored: tuple[Bool[Tensor, "Q K"], Bool[Tensor, "Q K"]] | tuple[None, None] = (None, None),
) -> Logits:
    """Compares the pairs of this process with the K pairs of all processes (VLMo §3.3), without the `ignored` ones.

    These are the texts to ignore for each image, and the images to ignore for each text.
    Q = B pairs are compared; in the released code (`processes.own_first`) each process compares all, Q = K.
    """
    image_to_text = similarity(processes.queries(image), processes.gather(text), temperature)
    text_to_image = similarity(processes.queries(text), processes.gather(image), temperature)
    return Logits(ignore(image_to_text, ignored[0]), ignore(text_to_image, ignored[1]))


def own_pairs(processes: Processes, device: torch.device) -> Bool[Tensor, "Q K"]:
    """Marks the positive of each pair among the pairs of all processes: its own other half."""
    everyone = torch.arange(processes.total, device=device)
    places = everyone if processes.own_first else processes.places(device)
    return places[:, None] == everyone[None]


def same_picture(ids: Int[Tensor, "B"], processes: Processes) -> Bool[Tensor, "Q K"]:
    """Marks which pairs of all processes show the same picture as each pair, which includes the pair itself."""
    return processes.queries(ids)[:, None] == processes.gather(ids)[None]


def others_of_same_image(
    ids: Int[Tensor, "Q"], key_ids: Int[Tensor, "K"], positives: Bool[Tensor, "Q K"]
) -> Bool[Tensor, "Q K"]:
    """Marks candidates that show the picture of a pair under another caption. They would be false negatives."""
    return (ids[:, None] == key_ids[None]) & ~positives


@torch.no_grad()
def known_true(said: Int[Tensor, "Q F"], known: Int[Tensor, "K H"]) -> Bool[Tensor, "Q K"]:
    """Marks for each text the images that it is known to describe: everything that it says is known of the image."""
    true = (said[:, :1] != NO_CLAIM).expand(-1, len(known))
    for claim in said.T:
        stated = claim[:, None] == NO_CLAIM  # nothing is stated here
        for column in known.T:
            stated = stated | (claim[:, None] == column[None])
        true = true & stated
    return true


@dataclass(frozen=True)
class Similarities(Logits):
    """Holds, beside the model's logits, those of the momentum encoder, which become pseudo-targets (ALBEF §3.3)."""

    momentum_image_to_text: Float[Tensor, "B K"]
    momentum_text_to_image: Float[Tensor, "B K"]


def distilled_contrastive_loss(logits: Similarities, positives: Float[Tensor, "B K"], alpha: float) -> Term:
    """Computes ITC against the labels and the momentum encoder's pseudo-targets of weight `alpha` (ALBEF §3.3)."""
    return contrastive_loss(
        logits.image_to_text,
        logits.text_to_image,
        itc_targets(logits.momentum_image_to_text, positives, alpha),
        itc_targets(logits.momentum_text_to_image, positives, alpha),
    )


def ignore(logits: Float[Tensor, "B K"], ignored: Bool[Tensor, "B K"] | None) -> Float[Tensor, "B K"]:
    """Takes candidates out of the softmax that are neither positive nor negative."""
    return logits if ignored is None else logits.masked_fill(ignored, IGNORED_LOGIT)


def information_bound(logits: Float[Tensor, "B K"], positives: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Computes log N − InfoNCE, a lower bound in nats on the mutual information of two views (ALBEF §4).

    N counts the candidates that are not ignored. With image and text as the views, InfoNCE is ITC (Eq. 9).
    """
    candidates = (logits > IGNORED_LOGIT / 2).sum(1)
    return candidates.log() - soft_cross_entropy(logits, positives)  # ALBEF Eq. 8
