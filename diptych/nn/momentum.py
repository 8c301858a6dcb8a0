"""A slow copy of a module: the momentum teacher (ALBEF §3.2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from diptych.nn.shards import own_part

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module, without: Sequence[str] = ()) -> Module:
    """A copy that no gradient reaches, lacking the parts `without` (dotted names; set to None)."""
    teacher = copy.deepcopy(module)
    for name in without:
        holder, _, part = name.rpartition(".")
        setattr(teacher.get_submodule(holder), part, None)
    return teacher.requires_grad_(False)


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 − momentum) · student, in place: nothing is allocated.

    Where both are cut into parts, each process moves its own.
    """
    current = dict(student.named_parameters())
    names = [name for name, _ in teacher.named_parameters()]
    slow: list[Tensor] = [own_part(parameter.data) for _, parameter in teacher.named_parameters()]
    torch._foreach_lerp_(slow, [own_part(current[name].data) for name in names], 1 - momentum)
