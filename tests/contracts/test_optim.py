"""Which parameters decay, what clipping does, the released order of Adam, and the optimiser's memory by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diptych.models.albef import Albef
from diptych.recipes.albef import albef_tiny
from diptych.schema import OptimConfig, Released, SpecialIds
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.train.optim import (
    build_optimizer,
    gradient_norm,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
)
from tests import tiny

TORCH, VLMO_ADAM = Released(), Released(adam_decays_after_update=True)


def albef() -> nn.Module:
    recipe = albef_tiny()
    with torch.device("meta"):
        return AlbefPretraining(Albef(recipe.model), recipe.task, SpecialIds(0, 1, 2, 3, 4)).model


def decayed(module: nn.Module, rule: str) -> set[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, 0.02, rule)
    return {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = albef()
    for rule in ("albef", "repaired"):
        grouped = [id(parameter) for group in parameter_groups(model, 0.02, rule) for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_the_released_rule_decays_what_does_not_multiply_too() -> None:
    spared = decayed(albef(), "albef") - decayed(albef(), "repaired")
    assert "temp" in spared
    for table in ("word", "position", "cls"):
        assert any(table in name for name in spared), f"no {table} in {spared}"


def test_the_repaired_rule_keeps_every_linear_and_convolution_weight() -> None:
    model = albef()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    assert decayed(model, "repaired") == {f"{name}.weight" for name in layers}


def test_a_tied_table_is_an_embedding() -> None:
    model = nn.Module()
    model.words, model.scores = nn.Embedding(5, 3), nn.Linear(3, 5)
    model.scores.weight = model.words.weight
    assert decayed(model, "repaired") == set()


def test_a_head_may_learn_at_a_rate_of_its_own() -> None:
    task = tiny.entailment(alpha=0.4)
    rates = {
        id(one): group["rate"] for group in parameter_groups(task, 0.02, "repaired", 20.0) for one in group["params"]
    }
    trained = {name: rates[id(one)] for name, one in task.named_parameters() if one.requires_grad}
    assert trained == {name: 20.0 if name.startswith("head.") else 1.0 for name in trained}
    assert set(trained.values()) == {1.0, 20.0}


def test_frozen_parameters_are_left_out_and_an_all_frozen_module_is_an_error() -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    assert [group["params"] for group in parameter_groups(model, 0.1, "albef")] == [[model.weight]]
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(model.requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(("clip", "expected"), [(None, 5.0), (2.0, 2.0), (10.0, 5.0)])
def test_clipping_bounds_the_gradient_and_tells_what_it_was(clip: float | None, expected: float) -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norm(model.parameters(), clip).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(expected, rel=1e-5)


def stepped(model: nn.Module, steps: int, released: Released = TORCH) -> torch.optim.Optimizer:
    optimizer = build_optimizer(model, OptimConfig(lr=0.1), released=released)
    for number in range(steps):
        model(torch.full((1, 2), float(number))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("released", [TORCH, VLMO_ADAM], ids=["torch", "vlmo"])
def test_memory_put_back_by_name_continues_as_if_never_lost(released: Released) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = stepped(model, 3, released)
    copy = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    copy.load_state_dict(model.state_dict())
    stored = optimizer_state(dict(model.named_parameters()), optimizer)
    assert "exp_avg_sq/0.weight" in stored
    restored = build_optimizer(copy, OptimConfig(lr=0.1), released=released)
    load_optimizer_state(dict(copy.named_parameters()), restored, stored)
    for one, its in ((model, optimizer), (copy, restored)):
        one(torch.ones(1, 2)).square().sum().backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_memory_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    stored = optimizer_state(dict(model.named_parameters()), stepped(model, 1))
    other = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match="is of another model: 'bias' is no trainable parameter"):
        load_optimizer_state(dict(other.named_parameters()), build_optimizer(other, OptimConfig()), stored)
    wider = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"weight is \(2, 2\), not \(3, 2\)"):
        load_optimizer_state(dict(wider.named_parameters()), build_optimizer(wider, OptimConfig()), stored)


# --------------------------------------------------------------------------- the released order of Adam


def test_the_released_adam_does_what_its_description_says() -> None:
    """Written out in double precision: epsilon beside the uncorrected root, decay of what the update made."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    config = OptimConfig(lr=0.02, weight_decay=0.3, betas=(0.9, 0.98), eps=1e-2)
    optimizer = build_optimizer(model, config, released=VLMO_ADAM)
    weight = model.weight.detach().double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for number in range(1, 6):
        gradient = torch.randn(2, 3) * 0.05
        model.weight.grad, model.bias.grad = gradient, None
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.98 * square + 0.02 * gradient.double() ** 2
        size = 0.02 * math.sqrt(1 - 0.98**number) / (1 - 0.9**number)
        weight = weight - size * mean / (square.sqrt() + 1e-2)
        weight = weight - 0.02 * 0.3 * weight
        assert torch.allclose(model.weight.double(), weight, rtol=0, atol=1e-7)


def test_both_orders_of_adam_agree_where_neither_epsilon_nor_decay_counts() -> None:
    ends = []
    for released in (TORCH, VLMO_ADAM):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        config = OptimConfig(lr=0.01, weight_decay=0.0, eps=1e-30)
        optimizer = build_optimizer(model, config, released=released)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
        ends.append(model.weight.detach())
    assert torch.allclose(ends[0], ends[1], rtol=1e-6)


def test_each_parameter_counts_its_own_steps() -> None:
    """One whose gradient comes later begins with a full first step, as torch's does."""
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.0), released=VLMO_ADAM)
    model.weight.grad = torch.ones(1, 1)
    before = model.bias.item()
    optimizer.step()
    assert model.bias.item() == before, "no gradient, no movement"
    model.bias.grad = torch.ones(1)
    optimizer.step()
    assert model.bias.item() == pytest.approx(before - 0.1, abs=1e-6)
    assert [optimizer.state[one]["step"].item() for one in (model.weight, model.bias)] == [2, 1]
