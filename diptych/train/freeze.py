"""Freezes the parameters that a recipe's `freeze` names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from diptych.checkpoints.renames import former_name


def freeze(task: nn.Module, patterns: Sequence[str]) -> str:
    """Takes the parameters whose names fit a pattern out of training; `*` stands for anything.

    They get no gradient and no place in the optimiser. Patterns written for earlier versions fit the old names. Returns
    a line that says how many parameters are frozen. Raises ValueError for a pattern that fits no parameter.
    """
    named = dict(task.named_parameters())
    frozen: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        names = [name for name in named if fnmatchcase(name, pattern) or fnmatchcase(former_name(name), pattern)]
        fitting = {name: named[name] for name in names}
        if not fitting:
            parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in named)  # `model.blocks`, `model.norm` …
            known = ", ".join(f"{part}.*" if part not in named else part for part in parts)
            raise ValueError(f"freeze={pattern} fits no parameter; the largest parts are {known}")
        frozen |= fitting
    for value in frozen.values():
        value.requires_grad_(False)
    count, total = (sum(value.numel() for value in parameters.values()) for parameters in (frozen, named))
    return f"{count:,} of {total:,} parameters, by {', '.join(patterns)}"
