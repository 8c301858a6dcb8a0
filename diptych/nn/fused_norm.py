"""Fused pre-norm sublayers that keep little for the backward pass.

Autograd keeps a norm's input *and* its output, and a GELU's input *and* its output. Here each sublayer is one autograd
function that keeps the normalised tokens and the pre-activations only. The norm's weight and bias are folded into the
linear layer behind it (W·(x̂∘w + b) = (W∘w)·x̂ + W·b), which also saves a pass over the tokens. The backward pass
recomputes GELU's output, element by element, beside the derivative that needs the same terms. No matrix product is
computed twice.

N tokens, D width, O output width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diptych.nn.lowered import Bf16Weight, Int8Weight, LoweredLinear


def norm_linear(
    x: Float[Tensor, "*N D"], norm: nn.LayerNorm, weight: Tensor | Bf16Weight | Int8Weight, bias: Float[Tensor, "O"]
) -> Float[Tensor, "*N O"]:
    """Computes the linear layer of `norm(x)`, exactly, and keeps half of the memory for the backward pass.

    `weight` is [O, D]. A lowered one is not folded: it is multiplied as it was rounded.
    """
    if not isinstance(weight, Tensor):
        return weight.multiply(norm(x), bias)
    tokens = x.reshape(-1, x.shape[-1])
    out = _NormLinear.apply(tokens, norm.weight, norm.bias, weight, bias, norm.eps, compute_dtype(x))
    return out.unflatten(0, x.shape[:-1])


def norm_mlp(
    x: Float[Tensor, "*N D"],
    norm: nn.LayerNorm,
    fc1: nn.Linear | LoweredLinear,
    fc2: nn.Linear | LoweredLinear,
    scale: Float[Tensor, "D"] | None = None,
) -> Float[Tensor, "*N D"]:
    """Computes `scale * fc2(gelu(fc1(norm(x))))` with the exact (erf) GELU. The scale is folded into the matrix."""
    if isinstance(fc1, LoweredLinear) or isinstance(fc2, LoweredLinear):
        fed = fc2(F.gelu(fc1(norm(x))))
        return fed if scale is None else fed * scale
    tokens = x.reshape(-1, x.shape[-1])
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, *scaled(fc2, scale))
    return _NormMlp.apply(tokens, *parameters, norm.eps, compute_dtype(x)).unflatten(0, x.shape[:-1])


def scaled(linear: nn.Linear, scale: Float[Tensor, "O"] | None) -> tuple[Float[Tensor, "O D"], Float[Tensor, "O"]]:
    """Returns the weight and bias of a linear layer, scaled so that its output is multiplied by `scale`."""
    if scale is None:
        return linear.weight, linear.bias
    return linear.weight * scale[:, None], linear.bias * scale


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which matrix products of `x` run: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Normalises each token. Returns x̂ in `dtype`, and 1/σ of each token in fp32 at least."""
    xhat, _, rstd = torch.native_layer_norm(_at_least_fp32(x), [x.shape[-1]], None, None, eps)
    return xhat.to(dtype), rstd


def _fold(xhat: Tensor, w: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes the linear layer of x̂∘w + b."""
    return F.linear(xhat, (weight * w).to(xhat.dtype), torch.addmv(bias, weight, b).to(xhat.dtype))


def _unfold(
    g: Tensor, xhat: Tensor, w: Tensor, b: Tensor, weight: Tensor, trained: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Computes the gradients of `_fold` by x̂, w, b, weight and bias, all in fp32 at least but the first.

    For frozen layers (not `trained`), that of x̂ alone.
    """
    w, b, weight = _at_least_fp32(w), _at_least_fp32(b), _at_least_fp32(weight)
    g_xhat = g @ (weight * w).to(g.dtype)
    if not trained:
        return g_xhat, None, None, None, None
    g_bias = g.sum(0, dtype=weight.dtype)
    g_folded = (g.t() @ xhat).to(weight.dtype)
    g_w = (g_folded * weight).sum(0)
    g_weight = g_folded.mul_(w).addr_(g_bias, b)
    return g_xhat, g_w, g_bias @ weight, g_weight, g_bias


def _norm_backward(g_xhat: Tensor, xhat: Tensor, rstd: Tensor) -> Tensor:
    """Turns the gradient by x̂ into that by x. x̂ has mean 0 and deviation 1 already; the factor 1/σ comes last."""
    zeros, ones = torch.zeros_like(rstd), torch.ones_like(rstd)
    output_mask = [True, False, False]
    args = (g_xhat.to(rstd.dtype), xhat.to(rstd.dtype), [xhat.shape[-1]], zeros, ones, None, None, output_mask)
    return torch.ops.aten.native_layer_norm_backward(*args)[0].mul_(rstd)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            xhat, rstd = _normalise(x, eps, dtype)
            ctx.save_for_backward(xhat, rstd, w, b, weight)
            ctx.input_dtype = x.dtype
            return _fold(xhat, w, b, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        xhat, rstd, w, b, weight = ctx.saved_tensors
        g_xhat, *g_parameters = _unfold(g, xhat, w, b, weight, trained=any(ctx.needs_input_grad[1:]))
        return _norm_backward(g_xhat, xhat, rstd).to(ctx.input_dtype), *g_parameters, None, None


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
        eps: float, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            xhat, rstd = _normalise(x, eps, dtype)
            preactivation = _fold(xhat, w, b, weight1, bias1)
            ctx.save_for_backward(xhat, rstd, preactivation, w, b, weight1, weight2)
            ctx.input_dtype = x.dtype
            return F.linear(F.gelu(preactivation), weight2.to(dtype), bias2.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        xhat, rstd, preactivation, w, b, weight1, weight2 = ctx.saved_tensors
        g_weight2 = g_bias2 = None
        if any(ctx.needs_input_grad[5:]):
            g_weight2 = _at_least_fp32(g.t() @ F.gelu(preactivation))
            g_bias2 = g.sum(0, dtype=g_weight2.dtype)
        g_preactivation = torch.ops.aten.gelu_backward(g @ weight2.to(g.dtype), preactivation)
        g_xhat, *g_fc1 = _unfold(g_preactivation, xhat, w, b, weight1, trained=any(ctx.needs_input_grad[1:5]))
        return _norm_backward(g_xhat, xhat, rstd).to(ctx.input_dtype), *g_fc1, g_weight2, g_bias2, None, None
