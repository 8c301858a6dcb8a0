"""Computes the image-text matching loss (ITM) and draws its hard negatives (ALBEF §3.2).

B pairs of a batch, F of them that are fused, K candidates to draw from, P pairs to classify.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.contrastive import Logits
from diptych.types import Term


def negative_weights(
    logits: Float[Tensor, "B K"], positives: Bool[Tensor, "B K"], after_softmax: bool = False
) -> Float[Tensor, "B K"]:
    """Computes the sampling weights of each row's candidates: ITC's softmax without the positives (ALBEF §3.2).

    The positives leave before the softmax, so that the weights sum to 1 however sure the model is. As in the released
    code, `after_softmax` sets them to 0 after it. The proportions are the same until all other probabilities underflow
    to 0 (docs/released_code.md, defect 1).

    Raises ValueError for a row without any negative.
    """
    if bool(positives.all(dim=1).any()):
        raise ValueError(
            "a pair has no negative: a batch needs pairs from at least two different pictures. "
            "Use a larger batch, or data in which not every caption belongs to one picture."
        )
    if after_softmax:
        return torch.softmax(logits, dim=1).masked_fill(positives, 0)
    return torch.softmax(logits.masked_fill(positives, -torch.inf), dim=1)


@torch.no_grad()
def both_negative_weights(
    logits: Logits, images: Bool[Tensor, "B K"], texts: Bool[Tensor, "B K"], after_softmax: bool = False,
    hard: bool = True,
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:  # fmt: skip
    """Computes the sampling weights of images for each text, then of texts for each image.

    `images` of each text and `texts` of each image are no negatives. Without `hard` all negatives are equally likely.
    Rows and candidates beyond the shape of these, such as those of a queue, are left out.
    """
    rows, candidates = images.shape
    scale = 1.0 if hard else 0.0
    for_text, for_image = (x[:rows, :candidates] * scale for x in (logits.text_to_image, logits.image_to_text))
    # ALBEF §3.2
    return negative_weights(for_text, images, after_softmax), negative_weights(for_image, texts, after_softmax)


def draw_negatives(weights: Float[Tensor, "B K"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Draws one candidate for each row by inverse transform sampling: the one whose share `uniform` falls into.

    All rows are drawn at once. Rows whose weights are not finite get any candidate: their loss is not finite either,
    which the training loop reports with its step. Raises ValueError where the weights of a row are all 0.
    """
    cumulative = weights.double().cumsum(1)
    total = cumulative[:, -1:]
    if not bool((total != 0).all()):
        raise ValueError(
            "all negatives of a row have probability 0 (similarities too far apart for "
            "released.negatives_mask_after_softmax=true)"
        )
    drawn = torch.searchsorted(cumulative, uniform.double()[:, None] * total, right=True).squeeze(1)
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(1)
    return torch.minimum(drawn, last)


def matching_loss(logits: Float[Tensor, "P 2"], labels: Int[Tensor, "P"]) -> Term:
    """Computes the cross-entropy of match (1) against no match (0)."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")  # ALBEF Eq. 4
    return Term(loss, loss.new_tensor(len(labels)))


def match_labels(size: int, device: torch.device) -> Int[Tensor, "P"]:
    """Returns the labels of B positives, then of 2B negatives."""
    return (torch.arange(3 * size, device=device) < size).long()


def matching_pairs(
    rows: Int[Tensor, "F"], negative_image: Int[Tensor, "F"], negative_text: Int[Tensor, "F"]
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """Lists the pairs to fuse: the F positives, then (text, hard image), then (hard text, image).

    `rows` are the batch's pairs that are fused, each with its negatives. Returns the index of each pair's text [3F] and
    of its image [3F].
    """
    return torch.cat([rows, rows, negative_text]), torch.cat([rows, negative_image, rows])
