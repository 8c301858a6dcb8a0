"""Muon beside AdamW: which weights it trains, that its update is torch's, and that its state resumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.nn.blocks import Block
from diptych.schema import OptimConfig, Released
from diptych.train.muon import BatchedMuon, orthogonalised
from diptych.train.optim import build_optimizer, load_optimizer_state, matrices_in_blocks, optimizer_state
from diptych.types import Progress
from tests import tiny

LATER = Progress(step=3, epoch=2.0, seed=5)
MUON = OptimConfig(lr=0.02, weight_decay=0.1, kind="muon")


@pytest.mark.parametrize("build", [tiny.pretraining, tiny.vlmo_pretraining])
def test_it_trains_the_linear_weights_inside_blocks_and_nothing_else(build: Any) -> None:
    task = build()
    inside = {
        id(layer.weight): (above, name)
        for above, block in task.named_modules()
        if isinstance(block, Block)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }
    groups = build_optimizer(task, MUON).param_groups
    by_muon = {
        id(weight): group["muon_pieces"] for group in groups if "muon_pieces" in group for weight in group["params"]
    }
    trained = {id(weight) for weight in task.parameters() if weight.requires_grad}
    assert by_muon.keys() == inside.keys() & trained
    assert {id(weight) for group in groups for weight in group["params"]} == trained
    for number, pieces in by_muon.items():
        layer = inside[number][1].rpartition(".")[2]
        assert pieces == {"qkv": 3, "kv": 2}.get(layer, 1)


def test_its_updates_have_singular_values_about_one() -> None:
    matrices = torch.randn(4, 24, 40, generator=torch.Generator().manual_seed(0))
    for shape in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(shape, (3.4445, -4.775, 2.0315), 5, 1e-7))
        assert 0.5 < values.min() < values.max() < 1.5


def test_its_step_is_that_of_torch() -> None:
    """torch iterates in bfloat16, one matrix at a time, hence the tolerance."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 24), (24, 16), (16, 24), (32, 32)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    batched = BatchedMuon([{"params": ours, "muon_pieces": 1}], lr=0.1, weight_decay=0.1)
    plain = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [weight.detach().clone() for weight in ours]
    for _ in range(3):
        for weight, other in zip(ours, theirs, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            other.grad = weight.grad.clone()
        batched.step()
        plain.step()
    for weight, other, start in zip(ours, theirs, before, strict=True):
        moved = (other - start).norm()
        assert (weight - other).norm() < 0.02 * moved


def test_fused_projections_are_matrices_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    fused = nn.Parameter(torch.randn(24, 8, generator=generator))
    parts = [nn.Parameter(part.clone()) for part in fused.detach().chunk(3)]
    fused.grad = torch.randn(24, 8, generator=generator)
    for part, gradient in zip(parts, fused.grad.chunk(3), strict=True):
        part.grad = gradient.clone()
    BatchedMuon([{"params": [fused], "muon_pieces": 3}], lr=0.1).step()
    BatchedMuon([{"params": parts, "muon_pieces": 1}], lr=0.1).step()
    torch.testing.assert_close(fused, torch.cat([*parts]), atol=1e-6, rtol=1e-5)


def steps(task: Any, optimizer: torch.optim.Optimizer, numbers: range) -> list[Tensor]:
    losses = []
    for number in numbers:
        torch.manual_seed(number)
        task.before_step()
        loss = task(tiny.batch(), LATER).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_its_stored_state_goes_on_to_the_same_bits() -> None:
    def named(task: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in task.named_parameters() if value.requires_grad}

    task = tiny.pretraining()
    optimizer = build_optimizer(task, MUON)
    steps(task, optimizer, range(2))
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    stored = {name: value.clone() for name, value in optimizer_state(named(task), optimizer).items()}
    assert any(name.startswith("momentum_buffer/") for name in stored)
    assert any(name.startswith("exp_avg/") for name in stored)
    expected = steps(task, optimizer, range(2, 4))
    again = tiny.pretraining()
    again.load_state_dict(weights)
    resumed = build_optimizer(again, MUON)
    load_optimizer_state(named(again), resumed, stored)
    assert all(map(torch.equal, steps(again, resumed, range(2, 4)), expected))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in task.state_dict().items())


def test_the_learning_rate_of_the_loop_reaches_both_parts() -> None:
    task = tiny.pretraining()
    optimizer = build_optimizer(task, MUON)
    before = {name: value.clone() for name, value in task.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(task, optimizer, range(1))
    assert all(torch.equal(value, before[name]) for name, value in task.model.named_parameters(prefix="model"))


def test_sharded_matrices_and_the_released_order_are_refused() -> None:
    task = tiny.pretraining()
    halves = {
        name: value.detach().flatten()[::2] if name in matrices_in_blocks(task) else value
        for name, value in task.named_parameters()
    }
    with pytest.raises(ValueError, match=r"optim\.kind=muon needs whole matrices.*run\.parallel=ddp"):
        build_optimizer(task, MUON, halves)
    with pytest.raises(ValueError, match=r"adam_decays_after_update is about AdamW alone: set optim\.kind=adamw"):
        build_optimizer(task, MUON, released=Released(adam_decays_after_update=True))
