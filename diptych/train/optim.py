"""Which parameters decay, Adam in two orders, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.mome import FeedForward
from diptych.nn.relative import RelativePositions
from diptych.schema import DecayRule, OptimConfig, ScheduleConfig

WARMUP_UNIT = 100
"""Iterations in one warm-up unit of the released schedule."""


def decays(module: nn.Module, rule: DecayRule) -> dict[str, bool]:
    """Name → whether the parameter decays, of those that train.

    `repaired`: only what multiplies, the weights of linear and convolution layers: shrinking an embedding that a batch
    does not touch forgets rare words. A table that serves as an embedding too (tied word scores) counts as an
    embedding. `released`: all but one-dimensional ones and biases; the temperature (no dimension), class token,
    positions and embeddings therefore decay. `released_vlmo`: all but biases, relative positions (which are a bias by
    name) and norms; of the norms, those of experts and of a task's head keep their decay, because their names escape
    the released patterns (REFERENCE defect 16).
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if rule == "released":
        return {name: value.ndim != 1 and not name.endswith(".bias") for name, value in trained.items()}
    if rule == "repaired":
        matrices = _matrices(module)
        return {name: id(value) in matrices for name, value in trained.items()}
    spared = _spared_in_vlmo(module)
    return {name: not name.endswith("bias") and id(value) not in spared for name, value in trained.items()}


def _matrices(module: nn.Module) -> set[int]:
    layers = list(module.modules())
    weights = {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)}
    return weights - {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)}


def _spared_in_vlmo(module: nn.Module) -> set[int]:
    layers = dict(module.named_modules())
    norms = {id(x.weight) for name, x in layers.items() if isinstance(x, nn.LayerNorm) and not in_head(name)}
    of_experts = {id(layer.norm.weight) for layer in layers.values() if isinstance(layer, FeedForward)}
    tables = {id(layer.table) for layer in layers.values() if isinstance(layer, RelativePositions)}
    return norms - of_experts | tables


def in_head(name: str) -> bool:
    """Whether a task's parameter or layer of this name is part of its head."""
    return name.startswith("head.")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    rule: DecayRule,
    head_lr: float = 1.0,
    parts: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters with decay and without; a task's head apart, unless it learns at the model's rate.

    `rate` of a group multiplies the learning rate. `parts`: what stands for the parameters, by their names, where this
    process holds but a part of them.
    """
    rules = decays(module, rule)
    if not rules:
        raise ValueError("nothing to train: every parameter is frozen")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, decayed in rules.items():
        kind = (head_lr if in_head(name) else 1.0, weight_decay if decayed else 0.0)
        groups.setdefault(kind, []).append(parts[name] if parts else module.get_parameter(name))
    return [{"params": members, "weight_decay": decay, "rate": rate} for (rate, decay), members in groups.items()]


def build_optimizer(
    module: nn.Module, config: OptimConfig, parts: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """AdamW in one fused kernel, which every device here has. The learning rate is set before each step.

    `config.adam` may ask for the released order of VLMo's instead. `parts` as for `parameter_groups`.
    """
    groups = parameter_groups(module, config.weight_decay, config.decay, config.head_lr, parts)
    if config.adam == "released_vlmo":
        return ReleasedAdam(groups, config.lr, config.betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class ReleasedAdam(torch.optim.Optimizer):
    """AdamW as VLMo was trained with it.

    `eps` is added to the root before its correction, so that it counts for more in the first steps; weights decay after
    the update, the updated weight by the step's rate. Memory bears the names that torch's AdamW gives it.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            if weights := [weight for weight in group["params"] if weight.grad is not None]:
                self._move(weights, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})

    def _move(
        self, weights: list[Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        memory = [self.state[weight] or self._begun(weight) for weight in weights]
        averages, squares = [one["exp_avg"] for one in memory], [one["exp_avg_sq"] for one in memory]
        torch._foreach_add_([one["step"] for one in memory], 1)
        torch._foreach_lerp_(averages, gradients, 1 - betas[0])
        torch._foreach_mul_(squares, betas[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, eps)
        counts = torch.stack([one["step"] for one in memory]).tolist()
        sizes = [-lr * math.sqrt(1 - betas[1] ** count) / (1 - betas[0] ** count) for count in counts]
        torch._foreach_addcdiv_(weights, averages, roots, sizes)
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)

    def _begun(self, weight: Tensor) -> dict[str, Tensor]:
        kinds = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        self.state[weight] = {"step": torch.zeros((), device=weight.device)} | kinds
        return self.state[weight]


def learning_rate(step: int, lr: float, schedule: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (from 0): from `warmup_lr` linearly to `lr`, then as `schedule.kind` says.

    `cosine` has reached `min_lr` at the last step, what was released for VLMo would at the one after it.
    """
    if schedule.kind == "released":
        return _released(step, lr, schedule, total_steps, steps_per_epoch)
    share = schedule.warmup_share
    warmup = schedule.warmup_steps if share is None else int(share * total_steps)
    if step < warmup:
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * step / warmup
    if schedule.kind == "cosine_to_zero":
        return _cosine((step - warmup) / max(1, total_steps - warmup), lr, 0.0)
    end = total_steps - (schedule.kind == "cosine")
    done = min(1.0, (step - warmup) / max(1, end - warmup))
    if schedule.kind == "cosine":
        return _cosine(done, lr, schedule.min_lr)
    power = schedule.power if schedule.kind == "polynomial" else 1.0
    return schedule.min_lr + (lr - schedule.min_lr) * (1 - done) ** power


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


def gradient_norm(parameters: Iterable[Tensor], clip: float | None) -> Tensor:
    """The norm of the whole gradient, before it is scaled down in place to at most `clip`."""
    given = list(parameters)
    norm = nn.utils.get_total_norm([value.grad for value in given if value.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(given, clip, norm)
    return norm


def optimizer_state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory under the parameters' names: `exp_avg/NAME` and so on."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_state` gave. Names and shapes must fit the trainable parameters."""
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
