"""Builds the optimiser: which parameters decay, AdamW in two orders, Muon, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.blocks import Block
from diptych.nn.embeddings import ImageEmbedding
from diptych.nn.mome import FeedForward
from diptych.nn.relative import RelativePositions
from diptych.schema import WARMUP_UNIT, DecayRule, OptimConfig, Recipe, Released, RunConfig, ScheduleConfig
from diptych.train.muon import MOMENTUM, MuonAndAdamW

FUSED = {"qkv": 3, "kv": 2}
"""Projections that are stored as one weight, and how many they are."""
PROJECTION = ("image_proj", "text_proj")
"""The ends of the names of layers that project a class token to the shared embedding space."""
PIXEL = 3
"""Numbers that a pixel has."""
NEEDS_WHOLE = "optim.kind=muon needs whole matrices in each process: set run.parallel=ddp"
ADAMW_ALONE = "released.adam_decays_after_update is about AdamW alone: set optim.kind=adamw"


def check_optimizer(recipe: Recipe) -> None:
    """Raises ValueError for settings that exclude each other, so that a run stops before any data is read."""
    if recipe.optim.kind == "muon" and recipe.run.parallel == "fsdp":
        raise ValueError(NEEDS_WHOLE)
    if recipe.optim.kind == "muon" and recipe.released.adam_decays_after_update:
        raise ValueError(ADAMW_ALONE)


def decays(module: nn.Module, rule: DecayRule) -> dict[str, bool]:
    """Returns for the name of each trainable parameter whether it decays (docs/released_code.md, defect 19).

    `repaired` decays the weights of linear and convolution layers only, because an embedding that shrinks in batches
    without its word forgets rare words. A weight that is also an embedding (tied word scores) counts as an embedding.
    `albef` decays all but one-dimensional parameters and biases: the temperature (zero-dimensional), class token,
    positions and embeddings decay too. `vlmo` decays all but biases, relative positions (which are a bias by name) and
    norms. The norms of experts and of a task's head do decay, because the released patterns miss their names.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if rule == "albef":
        return {name: value.ndim != 1 and not name.endswith(".bias") for name, value in trained.items()}
    if rule == "repaired":
        matrices = _matrices(module)
        return {name: id(value) in matrices for name, value in trained.items()}
    spared = _spared_in_vlmo(module)
    return {name: not name.endswith("bias") and id(value) not in spared for name, value in trained.items()}


def _matrices(module: nn.Module) -> set[int]:
    """Returns the ids of the weights of linear and convolution layers that are not embeddings too."""
    layers = list(module.modules())
    weights = {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)}
    return weights - {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)}


def _spared_in_vlmo(module: nn.Module) -> set[int]:
    """Returns the ids of the parameters, beside biases, that VLMo's patterns of names exclude from weight decay."""
    layers = dict(module.named_modules())
    norms = {id(x.weight) for name, x in layers.items() if isinstance(x, nn.LayerNorm) and not in_head(name)}
    of_experts = {id(layer.norm.weight) for layer in layers.values() if isinstance(layer, FeedForward)}
    tables = {id(layer.table) for layer in layers.values() if isinstance(layer, RelativePositions)}
    return norms - of_experts | tables


def in_head(name: str) -> bool:
    """Returns whether a task's parameter or layer of this name belongs to its head."""
    return name.startswith("head.")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    rule: DecayRule,
    head_lr: float = 1.0,
    parts: Mapping[str, Tensor] | None = None,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by weight decay, and the head apart if it has a learning rate of its own.

    `rate` of a group multiplies the learning rate. `parts` are this process's parts of the parameters by name, if
    parameters are sharded. With `muon`, the weights of `muon_matrices` have groups of their own, with `muon_pieces`.
    Raises ValueError if every parameter is frozen, or such a matrix sharded.
    """
    rules = decays(module, rule)
    if not rules:
        raise ValueError("nothing to train: every parameter is frozen")
    pieces = muon_matrices(module) if muon else {}
    groups: dict[tuple[float, float, int], list[Tensor]] = {}
    for name, decayed in rules.items():
        rate_and_decay = (head_lr if in_head(name) else 1.0, weight_decay if decayed else 0.0)
        members = groups.setdefault((*rate_and_decay, pieces.get(name, 0)), [])
        members.append(parts[name] if parts else module.get_parameter(name))
        if name in pieces and members[-1].shape != module.get_parameter(name).shape:
            raise ValueError(NEEDS_WHOLE)
    return [
        {"params": members, "weight_decay": decay, "rate": rate} | ({"muon_pieces": count} if count else {})
        for (rate, decay, count), members in groups.items()
    ]


def muon_matrices(module: nn.Module) -> dict[str, int]:
    """Names the weights that Muon trains, with the number of matrices in each.

    They map hidden states to hidden states: linear layers inside blocks, convolutions of an image stem behind the one
    that reads pixels, and projections to the shared embedding space. A weight that holds the projections to queries,
    keys and values is three matrices, one to keys and values two. A kernel is a matrix [out, in · height · width].
    """
    names: dict[str, int] = {}
    for above, part in module.named_modules():
        if above.endswith(PROJECTION) and isinstance(part, nn.Linear):
            names[f"{above}.weight"] = 1
        if isinstance(part, Block | ImageEmbedding):
            for name, layer in part.named_modules():
                if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.in_channels != PIXEL):
                    names[f"{above}.{name}.weight"] = FUSED.get(name.rpartition(".")[2], 1)
    return names


def build_optimizer(
    module: nn.Module,
    config: OptimConfig,
    parts: Mapping[str, Tensor] | None = None,
    released: Released = Released(),
    precision: str = RunConfig.precision,
) -> torch.optim.Optimizer:
    """Builds AdamW as one fused kernel, Muon beside it, or VLMo's AdamW if `released.adam_decays_after_update`.

    The loop sets the learning rate before each step. `parts` is as for `parameter_groups`, `precision` is
    `run.precision`.
    """
    muon = config.kind == "muon"
    groups = parameter_groups(module, config.weight_decay, released.decay, config.head_lr, parts, muon)
    if muon and released.adam_decays_after_update:
        raise ValueError(ADAMW_ALONE)
    if muon:
        return MuonAndAdamW(groups, config.lr, config.betas, config.eps, bf16=precision == "bf16")
    if released.adam_decays_after_update:
        return ReleasedAdam(groups, config.lr, config.betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class ReleasedAdam(torch.optim.Optimizer):
    """Implements AdamW as VLMo was trained with it (docs/released_code.md, defect 20).

    `eps` is added to the root of the second moment before its bias correction, so it counts for more in the first
    steps. Weight decay is applied to the updated weight. The state has the names that torch's AdamW gives it.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            if weights := [weight for weight in group["params"] if weight.grad is not None]:
                self._update(weights, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})

    def _update(
        self, weights: list[Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        states = [self.state[weight] or self._initial_state(weight) for weight in weights]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(averages, gradients, 1 - betas[0])
        torch._foreach_mul_(squares, betas[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, eps)
        counts = torch.stack([state["step"] for state in states]).tolist()
        sizes = [-lr * math.sqrt(1 - betas[1] ** count) / (1 - betas[0] ** count) for count in counts]
        torch._foreach_addcdiv_(weights, averages, roots, sizes)
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)

    def _initial_state(self, weight: Tensor) -> dict[str, Tensor]:
        moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        self.state[weight] = {"step": torch.zeros((), device=weight.device)} | moments
        return self.state[weight]


def learning_rate(
    step: int,
    lr: float,
    schedule: ScheduleConfig,
    total_steps: int,
    steps_per_epoch: int,
    released: Released = Released(),
) -> float:
    """Returns the learning rate of optimiser step `step`, counted from 0.

    It rises linearly from `warmup_lr` to `lr`, then falls as `schedule.kind` says. `cosine` reaches `min_lr` at the
    last step; VLMo's kinds would reach it one step later, as released.
    """
    if released.schedule_by_epoch and schedule.kind == "cosine":
        return _by_epoch(step, lr, schedule, total_steps, steps_per_epoch)
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


def _by_epoch(step: int, lr: float, schedule: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Returns ALBEF's rate: in the first epoch a warm-up that rises every 100 iterations, then one rate per epoch."""
    epoch, iteration = divmod(step, steps_per_epoch)
    if epoch > 0:
        return _cosine(epoch * steps_per_epoch / total_steps, lr, schedule.min_lr)
    units, last = max(0, iteration - 1) // WARMUP_UNIT, schedule.warmup_steps / WARMUP_UNIT
    if units >= last:
        return lr
    return schedule.warmup_lr + (lr - schedule.warmup_lr) * units / last


def _cosine(share: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def gradient_norm(parameters: Iterable[Tensor], clip: float | None) -> Tensor:
    """Returns the norm of the whole gradient, and then scales the gradient in place to a norm of at most `clip`."""
    weights = list(parameters)
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(weights, clip, norm)
    return norm


def optimizer_state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimiser's state under the parameters' names: `exp_avg/NAME` and so on."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]
) -> None:
    """Loads what `optimizer_state` returned. Raises ValueError if names, shapes or `optim.kind` do not fit."""
    by_muon = {id(one) for group in optimizer.param_groups if "muon_pieces" in group for one in group["params"]}
    for key, value in stored.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(
                f"the optimiser's state is of another model: '{name}' is no trainable parameter of this one"
            )
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"the stored optimiser's {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        if (kind == MOMENTUM) != (id(parameter) in by_muon):
            stored_kind, other = ("muon", "adamw") if kind == MOMENTUM else ("adamw", "muon")
            raise ValueError(
                f"the stored optimiser trained {name} with optim.kind={stored_kind}, and this one has {other}: go on "
                "with the stored kind, or start a new run from these weights with init_from"
            )
        optimizer.state[parameter][kind] = value.to(parameter.device, copy=True)
