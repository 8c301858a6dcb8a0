"""Simulation of a step without its numbers: integers are real, and floating-point tensors have shapes only.

The operations of a step depend on integers (lengths of texts, masked words, fused pairs), but not on the values of
weights and features. Integers and masks are therefore computed as always, and everything that meets a weight is one of
torch's fake tensors, so that a model of any size costs only its shapes. Where values would decide, as in the draw of
hard negatives, every choice costs the same, and the simulation makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.nn.queue import FeatureQueue

aten = torch.ops.aten
OnOperation = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]
"""Callback that gets an operation, its arguments by place and by name, and its result."""


class Fakes(FakeTensorMode):
    """The fake-tensor mode of a plan. Copied tensors, such as those of a momentum encoder, keep this mode."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __deepcopy__(self, memo: object) -> Fakes:
        return self


class Built(TorchDispatchMode):
    """Makes every new tensor fake, so that a network of any size is built at once."""

    def __init__(self, fake: Fakes) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return False  # the question "is one of these random weights too large?"
        with self.fake:
            result = func(*args, **(kwargs or {}))
        if isinstance(result, FakeTensor):
            result.constant = None  # the number it was made from would be copied with it
        return result


class Pretended(TorchDispatchMode):
    """Makes operations on fake tensors return fake tensors, and computes those on real ones.

    `on_operation` is called for each operation on a fake tensor.
    """

    def __init__(self, fake: Fakes, on_operation: OnOperation) -> None:
        super().__init__()
        self.fake, self.on_operation = fake, on_operation
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if not any(isinstance(leaf, FakeTensor) for leaf in pytree.arg_tree_leaves(*args, **kwargs)):
            return func(*args, **kwargs)
        if func in CHOICES:
            return CHOICES[func](self.generator, *args, **kwargs)
        args = _counted_rows(func, args)
        with self.fake:
            result = func(*args, **kwargs)
        self.on_operation(func, args, kwargs, result)
        return result


def _counted_rows(func: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Replaces real masks in an index by the numbers of their rows, so that the result's shape is known."""
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return args
    places: list[Tensor | None] = []
    for index in args[1]:
        masks = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        places += index.nonzero().unbind(1) if masks else [index]
    return (args[0], places, *args[2:])


# --------------------------------------------------------------------------- choices that values would make


def _yes(generator: torch.Generator, value: Tensor) -> bool | int | float:
    """Answers yes to any question, such as whether a number is finite. Numbers that are read are 1."""
    return {torch.bool: True}.get(value.dtype, 1.0 if value.is_floating_point() else 1)


def _some_place(generator: torch.Generator, ordered: Tensor, values: Any, *_: Any, **__: Any) -> Tensor:
    """Draws any candidate in place of a draw by cumulative weights."""
    return torch.randint(ordered.shape[-1], tuple(values.shape), generator=generator)


def _first_place(generator: torch.Generator, values: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Takes the first place as that of the largest value."""
    shape = () if dim is None else torch.empty(values.shape, device="meta").sum(dim, keepdim=keepdim).shape
    return torch.zeros(shape, dtype=torch.long)


def _as_it_is(chooser: torch.Generator, values: Tensor, *_: Any, **__: Any) -> Tensor:
    """Leaves a tensor as it is in place of filling it with random numbers."""
    return values


CHOICES: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _yes,
    aten.searchsorted.Tensor: _some_place,
    aten.argmax.default: _first_place,
    aten.exponential_.default: _as_it_is,
}
"""Replacements of operations that would read a value of a fake tensor."""


# --------------------------------------------------------------------------- real integers


def with_real_integers(module: nn.Module) -> None:
    """Makes buffers of integers and masks real, since computation depends on them: zeros, or those of a full queue."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if not buffer.is_floating_point():
                owner.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        if isinstance(owner, FeatureQueue):
            owner.filled.fill_(owner.size)
            owner.ids.copy_(-1 - torch.arange(owner.size))
