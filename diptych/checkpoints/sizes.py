"""Compares what a recipe would build with what a file holds, before memory is taken for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from diptych.checkpoints.store import CheckpointError, check_fit

Shapes = Mapping[str, tuple[int, ...]]
COUNTS = ("depth", "layers", "fusion_start", "images_per_text")
"""Fields of a model's configuration that say how often something is built."""
MOST_COPIES = 4
"""A task holds at most so many times the parameters that are stored: a momentum encoder and a head may be missing."""
DRAWS = (
    torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
)  # fmt: skip
"""What modules draw their first weights with, as torch tells its modes."""
FEW = 100
"""Layers that every file may describe, however few tensors it has."""
MOST_UNSTORED = 1 << 29
"""Bytes of the parts that a file need not hold, beyond some times what it holds. ALBEF's queue takes a quarter."""


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of first weights, which tensors without memory do not hold.

    On the `meta` device torch draws from a normal distribution by a function for whose sake it imports its compiler,
    which takes longer than everything else of loading a small model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class _TooMany(Exception):
    """More parameters than the file can be of."""


def check_size(
    build: Callable[[], nn.Module], config: Any, shapes: Shapes, origin: Any, unstored: tuple[str, ...] = ()
) -> None:
    """Builds a module on torch's `meta` device, where it takes no memory, and compares it with the stored shapes.

    `config` is what it is built from, and parts whose names begin as one of `unstored` need not be in the file. Raises
    CheckpointError for a configuration that cannot be built, that is of another size, or with unstored parts that are
    far larger than the stored ones.
    """
    module = build_without_memory(build, config, len(shapes), origin)
    if module is None:
        return
    state = module.state_dict()
    own = {name: tuple(value.shape) for name, value in state.items() if unstored and name.startswith(unstored)}
    check_fit(module, {**own, **shapes}, origin)
    stored = sum(value.nbytes for name, value in state.items() if name in shapes)
    check_bytes(module, 3 * stored, origin)


def build_without_memory(build: Callable[[], nn.Module], config: Any, tensors: int, origin: Any) -> nn.Module | None:
    """Builds a module on torch's `meta` device, for a file of so many tensors.

    Returns None for somebody's own task that computes with its weights while it is built. Raises CheckpointError for a
    configuration that cannot be built, or has far more layers than the file can hold.
    """
    count = _largest_count(config)
    if count > max(tensors, FEW):
        raise CheckpointError(f"{origin} holds {tensors:,} tensors, too few for the {count:,} layers of its recipe")
    if (odd := _odd_heads(config)) is not None:
        raise CheckpointError(f"{origin}: its recipe describes no model that can be built ({odd})")
    most = MOST_COPIES * tensors + 10 * FEW

    def note(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal most
        most -= 1
        if most < 0:
            raise _TooMany

    hook = register_module_parameter_registration_hook(note)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _Undrawn():
            return build()
    except ValueError:
        raise
    except _TooMany:
        raise CheckpointError(f"{origin} holds {tensors:,} tensors, and its recipe describes far more") from None
    except Exception as error:  # a size of 0, a negative one, one that no tensor can have …
        if isinstance(error, RuntimeError) and "meta" in str(error):
            return None
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{origin}: its recipe describes no model that can be built ({type(error).__name__}: {reason[:200]})"
        ) from None
    finally:
        hook.remove()


def check_bytes(module: nn.Module, most: int, origin: Any) -> None:
    """Raises CheckpointError for a module that takes more than `most` bytes, and half a gigabyte beside."""
    wanted = sum(value.nbytes for value in module.state_dict().values())
    if wanted > most + MOST_UNSTORED:
        raise CheckpointError(f"{origin} is far too small for its recipe, which asks for {wanted:,} bytes")


def _largest_count(config: Any) -> int:
    """Returns the largest number of layers in a configuration."""
    if not is_dataclass(config):
        return 0
    values = [(item.name, getattr(config, item.name)) for item in fields(config)]
    counts = [value for name, value in values if name in COUNTS and isinstance(value, int)]
    return max([0, *counts, *(_largest_count(value) for _, value in values)])


def _odd_heads(config: Any) -> str | None:
    """Returns what is wrong with a number of attention heads, which shows in no shape; None if nothing is."""
    if not is_dataclass(config):
        return None
    heads, width = getattr(config, "heads", None), getattr(config, "width", None)
    if isinstance(heads, int) and isinstance(width, int) and (heads < 1 or width % heads):
        return f"{heads} heads for a width of {width}"
    inner = (_odd_heads(getattr(config, item.name)) for item in fields(config))
    return next((odd for odd in inner if odd is not None), None)
