"""Which parameters decay, AdamW, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.schema import OptimConfig, ScheduleConfig

WARMUP_UNIT = 100
"""Iterations in one warm-up unit of the released schedule."""


def decays(
    named: Iterable[tuple[str, nn.Parameter]], matrices: set[int], rule: Literal["released", "repaired"]
) -> dict[str, bool]:
    """Name → whether the parameter decays.

    `released`: all but one-dimensional ones and biases; the temperature (no dimension), class token, positions and
    embeddings therefore decay. `repaired`: only what multiplies (`matrices`, the ids of weights of linear and
    convolution layers): shrinking an embedding that a batch does not touch forgets rare words.
    """
    if rule == "released":
        return {name: parameter.ndim != 1 and not name.endswith(".bias") for name, parameter in named}
    return {name: id(parameter) in matrices for name, parameter in named}


def parameter_groups(
    module: nn.Module, weight_decay: float, rule: Literal["released", "repaired"], head_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters with decay and without; a task's head apart, unless it learns at the model's rate.

    `rate` of a group multiplies the learning rate.
    A table that serves as an embedding too (tied word scores) counts as an embedding.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("nothing to train: every parameter is frozen")
    rules = decays(named, _matrices(module), rule)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        kind = (head_lr if name.startswith("head.") else 1.0, weight_decay if rules[name] else 0.0)
        groups.setdefault(kind, []).append(parameter)
    return [{"params": members, "weight_decay": decay, "rate": rate} for (rate, decay), members in groups.items()]


def _matrices(module: nn.Module) -> set[int]:
    layers = list(module.modules())
    weights = {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)}
    return weights - {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)}


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW in one fused kernel, which every device here has. The learning rate is set before each step."""
    groups = parameter_groups(module, config.weight_decay, config.decay, config.head_lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, lr: float, schedule: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (from 0).

    `cosine`: linear from `warmup_lr` to `lr` over `warmup_steps`, then half a cosine to `min_lr` at the last step.
    """
    if schedule.kind == "released":
        return _released(step, lr, schedule, total_steps, steps_per_epoch)
    if step < schedule.warmup_steps:
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * step / schedule.warmup_steps
    span = max(1, total_steps - 1 - schedule.warmup_steps)
    return _cosine(min(1.0, (step - schedule.warmup_steps) / span), lr, schedule.min_lr)


def _released(step: int, lr: float, schedule: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Warm-up within the first epoch only, in units set after iterations 0, 100, 200 …; then one rate an epoch."""
    epoch, iteration = divmod(step, steps_per_epoch)
    if epoch > 0:
        return _cosine(epoch * steps_per_epoch / total_steps, lr, schedule.min_lr)
    units = max(0, iteration - 1) // WARMUP_UNIT
    if units >= schedule.warmup_epochs:
        return lr
    return schedule.warmup_lr + (lr - schedule.warmup_lr) * units / schedule.warmup_epochs


def _cosine(share: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def gradient_norm(module: nn.Module, clip: float | None) -> Tensor:
    """The norm of the whole gradient, before it is scaled down in place to at most `clip`."""
    norm = nn.utils.get_total_norm([value.grad for value in module.parameters() if value.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(module.parameters(), clip, norm)
    return norm


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory under the parameters' names: `exp_avg/NAME` and so on."""
    return {
        f"{key}/{name}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_state` gave. Names and shapes must fit the module's trainable parameters."""
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    for key, value in stored.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(
                f"the optimiser's state is of another model: '{name}' is no trainable parameter of this one"
            )
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"the stored optimiser's {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        optimizer.state[parameter][kind] = value.to(parameter.device, copy=True)
