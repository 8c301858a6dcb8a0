"""Linear layers of a trained model in bf16 or int8, which many processors multiply faster than fp32.

Only the products inside the transformer blocks are lowered: norms, the residual stream, embeddings and heads stay fp32.
With int8, attention stays fp32 too.

N tokens, D inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LEVELS = 127
"""The largest magnitude of a rounded number; symmetric, so that 0 is exact and no offset is needed."""
SMALLEST = 1e-12
"""Replaces the scale of a token or of an output channel that is 0 throughout."""


class Bf16Weight:
    """The matrix of a linear layer in bf16."""

    def __init__(self, matrix: Float[Tensor, "O D"]) -> None:
        self.matrix = matrix.detach().to(torch.bfloat16)

    def __getitem__(self, outputs: slice) -> Bf16Weight:
        """Selects outputs."""
        return Bf16Weight(self.matrix[outputs])

    def multiply(self, x: Float[Tensor, "*n D"], bias: Float[Tensor, "O"]) -> Float[Tensor, "*n O"]:
        """Computes the layer's output, in bf16."""
        return F.linear(x.to(torch.bfloat16), self.matrix, bias.to(torch.bfloat16))


class Int8Weight:
    """The matrix of a linear layer in int8, with a scale for each output channel, packed for oneDNN's kernel."""

    def __init__(self, matrix: Int[Tensor, "O D"], scale: Float[Tensor, "O"]) -> None:
        self.matrix, self.scale = matrix, scale
        self._packed = torch.ops.onednn.qlinear_prepack(matrix, None)
        self._zeros = torch.zeros(len(matrix), dtype=torch.int)
        self._parts: dict[tuple[int | None, int | None], Int8Weight] = {}

    @classmethod
    def of(cls, matrix: Float[Tensor, "O D"]) -> Int8Weight:
        """Rounds a matrix."""
        rounded, scale = rounded_rows(matrix.detach())
        return cls(rounded, scale.squeeze(1))

    def __getitem__(self, outputs: slice) -> Int8Weight:
        """Selects outputs. The packed form cannot be cut, so each selection is packed once, and kept."""
        key = outputs.start, outputs.stop
        if key not in self._parts:
            self._parts[key] = Int8Weight(self.matrix[outputs].contiguous(), self.scale[outputs])
        return self._parts[key]

    def multiply(self, x: Float[Tensor, "*n D"], bias: Float[Tensor, "O"]) -> Float[Tensor, "*n O"]:
        """Computes the layer's output, in fp32, of tokens that are rounded with a scale for each."""
        tokens = x.reshape(-1, x.shape[-1])
        return _Int8Product.apply(tokens, self, bias).unflatten(0, x.shape[:-1])

    def product(self, tokens: Int[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        """Multiplies rounded tokens by the rounded matrix, exactly, and by the scales of the output channels."""
        return torch.ops.onednn.qlinear_pointwise(
            tokens, 1.0, 0, self._packed, self.scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


class _Int8Product(torch.autograd.Function):
    """Has the gradient of the rounded matrix as if nothing were rounded, for attention maps (Grad-CAM)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Int8Weight, bias: Tensor) -> Tensor:
        ctx.weight = weight
        if not len(tokens):
            return bias.new_empty(0, len(bias))
        rounded, scale = rounded_rows(tokens)
        out = weight.product(rounded)
        return torch.addcmul(bias, out, scale, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return (g * ctx.weight.scale) @ ctx.weight.matrix.to(g.dtype), None, None


def rounded_rows(x: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N 1"]]:
    """Rounds each row to int8. Returns the whole numbers, and the scales by which they are multiplied."""
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    scale = torch.maximum(high, -low).clamp_min(SMALLEST) / LEVELS
    return (x * scale.reciprocal()).round_().to(torch.int8), scale


class LoweredLinear(nn.Module):
    """A linear layer whose matrix is in bf16 or int8. It has no parameters, and cannot be trained."""

    weight: Bf16Weight | Int8Weight
    bias: Tensor

    def __init__(self, linear: nn.Linear, precision: Precision) -> None:
        super().__init__()
        self.weight = Bf16Weight(linear.weight) if precision == "bf16" else Int8Weight.of(linear.weight)
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n O"]:
        return self.weight.multiply(x, self.bias)


def is_lowered(layer: nn.Module) -> bool:
    """Tells whether a linear layer has been replaced."""
    return isinstance(layer, LoweredLinear)


def multiply(
    x: Float[Tensor, "*n D"], weight: Tensor | Bf16Weight | Int8Weight, bias: Float[Tensor, "O"]
) -> Float[Tensor, "*n O"]:
    """Computes a linear layer from its weight, or some outputs of it, in whichever precision the weight has."""
    return F.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.multiply(x, bias)


def int8_is_exact() -> bool:
    """Tells whether this machine multiplies int8 without overflow.

    x86 without VNNI adds two products in 16 bits, which the largest numbers exceed. False too where torch was built
    without oneDNN.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    largest = torch.full((64, 256), LEVELS, dtype=torch.int8)
    try:
        product = Int8Weight(largest, torch.ones(64)).product(largest)
    except (RuntimeError, NotImplementedError):  # whatever a processor without the instructions says
        return False
    return bool((product == 256 * LEVELS**2).all())
