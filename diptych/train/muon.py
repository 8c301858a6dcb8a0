"""Muon for the matrices inside blocks, AdamW for all else, as one optimiser.

Muon moves a matrix by its momentum with all singular values brought to about 1 (Jordan et al., 2024), so that every
direction of a layer learns, and not only the few that dominate the gradient. It suits weights that multiply hidden
states; embeddings, heads, norms and biases stay with AdamW.

A × B one matrix, n matrices of the same shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

RMS = 0.2
"""Root mean square of AdamW's usual update. Updates are scaled to it, so that AdamW's learning rate and weight decay
serve for both (Liu et al., arXiv 2502.16982, §2.2)."""


class MuonAndAdamW(torch.optim.Optimizer):
    """Runs Muon on the groups with `muon_pieces` and fused AdamW on the others. Both share groups and state."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        """Takes parameter groups. `muon_pieces` of a group counts the matrices that each weight holds, stacked."""
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        matrices = [group for group in self.param_groups if "muon_pieces" in group]
        others = [group for group in self.param_groups if "muon_pieces" not in group]
        self.parts: list[torch.optim.Optimizer] = [BatchedMuon(matrices, lr=lr)] if matrices else []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for part in self.parts:
            part.step()


class BatchedMuon(torch.optim.Muon):
    """Runs torch's Muon with the Newton–Schulz iterations of all matrices of one shape as one batched product.

    torch's class iterates one matrix at a time in bfloat16. Here a CPU computes in fp32, which is faster on those
    without fast bfloat16 products.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            weights, gradients, momenta = list[Tensor](), list[Tensor](), list[Tensor]()
            self._init_group(group, weights, gradients, momenta)
            if not weights:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look-ahead
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            for places in _by_shape(weights).values():
                # Fused projections are matrices of their own: [n, pieces · A, B] → [n · pieces, A, B].
                stacked = torch.stack([directions[place] for place in places])
                pieces = stacked.unflatten(1, (group["muon_pieces"], -1)).flatten(0, 1)
                size = group["lr"] * RMS * math.sqrt(max(pieces.shape[1:]))
                updates = orthogonalised(pieces, *settings).reshape(stacked.shape)
                torch._foreach_add_([weights[place] for place in places], list(updates.unbind()), alpha=-size)


def orthogonalised(
    matrices: Float[Tensor, "n A B"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "n A B"]:
    """Brings the singular values of each matrix to about 1 by Newton–Schulz iterations of fifth degree."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT  # [n, A, A]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _by_shape(weights: list[Tensor]) -> dict[torch.Size, list[int]]:
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for place, weight in enumerate(weights):
        places[weight.shape].append(place)
    return places
