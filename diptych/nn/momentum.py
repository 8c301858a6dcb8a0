"""The momentum encoder: a copy of a module that follows it as an exponential moving average (ALBEF §3.3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from diptych.nn.shards import own_part

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module, without: Sequence[str] = ()) -> Module:
    """Copies a module as its momentum encoder, without gradient. The parts `without` (dotted names) become None."""
    momentum_module = copy.deepcopy(module)
    for name in without:
        holder, _, part = name.rpartition(".")
        setattr(momentum_module.get_submodule(holder), part, None)
    return momentum_module.requires_grad_(False)


@torch.no_grad()
def move_towards(average: nn.Module, model: nn.Module, momentum: float) -> None:
    """Updates an EMA in place: average ← momentum · average + (1 − momentum) · model. Nothing is allocated.

    Where both are sharded, each process updates its own shard.
    """
    current = dict(model.named_parameters())
    names = [name for name, _ in average.named_parameters()]
    averages: list[Tensor] = [own_part(parameter.data) for _, parameter in average.named_parameters()]
    torch._foreach_lerp_(averages, [own_part(current[name].data) for name in names], 1 - momentum)  # ALBEF §3.3
