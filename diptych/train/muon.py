"""Muon for the matrices between hidden states, AdamW for all else, as one optimiser.

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

MOMENTUM = "momentum_buffer"
"""torch's name for Muon's one moment in the optimiser's state."""
TORCHS = {"momentum": 0.95, "ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}
"""Settings of torch's Muon: of its moment, and of the Newton–Schulz iteration."""
RMS = 0.2
"""Root mean square of AdamW's usual update. Updates are scaled to it, so that AdamW's learning rate and weight decay
serve for both (Liu et al., arXiv 2502.16982, §2.2)."""


class MuonAndAdamW(torch.optim.Optimizer):
    """Runs Muon on the groups with `muon_pieces` and fused AdamW on the others. Both share groups and state."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, bf16: bool = False
    ) -> None:
        """Takes parameter groups. `muon_pieces` of a group counts the matrices that each weight holds, stacked.

        `bf16`: whether Muon's products are in bfloat16 on a CPU too, as the run's other products (`run.precision`).
        """
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        matrices = [group for group in self.param_groups if "muon_pieces" in group]
        others = [group for group in self.param_groups if "muon_pieces" not in group]
        self.parts: list[torch.optim.Optimizer] = [BatchedMuon(matrices, bf16, lr=lr)] if matrices else []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for part in self.parts:
            part.step()


class BatchedMuon(torch.optim.Optimizer):
    """Runs Muon as torch does (`torch.optim.Muon`), but all matrices of one shape as batched products.

    torch's class, which versions before 2.9 lack, iterates one matrix at a time, always in bfloat16. Here a CPU
    computes in fp32 unless the run asks for bfloat16, which is slow on many of them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], bf16: bool = False, lr: float = 1e-3, weight_decay: float = 0.1
    ) -> None:
        """Takes parameter groups with `muon_pieces`. `bf16` is about CPUs; GPUs always use it."""
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay} | TORCHS)
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            for weight, gradient in zip(weights, gradients, strict=True):
                if MOMENTUM not in self.state[weight]:
                    self.state[weight][MOMENTUM] = torch.zeros_like(gradient)
            momenta = [self.state[weight][MOMENTUM] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            for places in _by_shape(weights).values():
                ahead = torch._foreach_lerp(  # Nesterov's look-ahead
                    [gradients[place] for place in places], [momenta[place] for place in places], group["momentum"]
                )
                # Kernels are matrices, [n, A, C, h, w] → [n, A, C · h · w], and fused projections are matrices of their
                # own, [n, pieces · A, B] → [n · pieces, A, B].
                stacked = torch.stack(ahead)
                del ahead
                pieces = stacked.flatten(2).unflatten(1, (group["muon_pieces"], -1)).flatten(0, 1)
                size = group["lr"] * RMS * math.sqrt(max(pieces.shape[1:]))
                updates = orthogonalised(pieces, *settings, bf16=self.bf16 or pieces.is_cuda).reshape(stacked.shape)
                torch._foreach_add_([weights[place] for place in places], list(updates.unbind()), alpha=-size)


def orthogonalised(
    matrices: Float[Tensor, "n A B"],
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    bf16: bool = False,
) -> Float[Tensor, "n A B"]:
    """Brings the singular values of each matrix to about 1 by Newton–Schulz iterations of fifth degree."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if bf16 else torch.float32)
    x = x.contiguous()  # on CPUs, bfloat16 products into a transposed buffer take minutes
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value above 1
    through_gram = not bf16 and 2 * x.shape[2] > 3 * x.shape[1]
    x = (_iterated_gram if through_gram else _iterated)(x, coefficients, steps)
    return (x.mT if tall else x).to(matrices.dtype)


def _iterated(
    x: Float[Tensor, "n A B"], coefficients: tuple[float, float, float], steps: int
) -> Float[Tensor, "n A B"]:
    """Iterates X ← (a + b G + c G²) X, where G = X Xᵀ. The products of an iteration reuse the buffers of the last."""
    a, b, c = coefficients
    n, height, _ = x.shape
    (gram, factor), after = x.new_empty(2, n, height, height), torch.empty_like(x)
    for _ in range(steps):
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        x, after = torch.baddbmm(x, factor, x, beta=a, out=after), x
    return x


def _iterated_gram(
    x: Float[Tensor, "n A B"], coefficients: tuple[float, float, float], steps: int
) -> Float[Tensor, "n A B"]:
    """Computes the same with A × A products only, but for the first and the last: fewer FLOPs if 2 B > 3 A.

    G, and P = a + b G + c G², are polynomials of one matrix and commute. So G ← P G P, and X is multiplied once, by the
    product of all P. bfloat16 is too coarse for it, because the error of G grows twelvefold in each iteration.
    """
    a, b, c = coefficients
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return x if product is None else product @ x


def _by_shape(weights: list[Tensor]) -> dict[torch.Size, list[int]]:
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for place, weight in enumerate(weights):
        places[weight.shape].append(place)
    return places
