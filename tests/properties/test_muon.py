"""Muon beside AdamW: which weights it trains, that its update is torch's, and that its state resumes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.run import train
from diptych.schema import OptimConfig, Released
from diptych.train.muon import MOMENTUM, BatchedMuon, _iterated, _iterated_gram, orthogonalised
from diptych.train.optim import build_optimizer, load_optimizer_state, muon_matrices, optimizer_state
from diptych.types import Progress
from tests import tiny

LATER = Progress(step=3, epoch=2.0, seed=5)
MUON = OptimConfig(lr=0.02, weight_decay=0.1, kind="muon")


HIDDEN = re.compile(
    r"model\.(\w+\.)?(blocks|layers)\.\d+\..*\.?(qkv|kv|q|out|fc1|fc2)\.weight"
    r"|model\.(vision\.embedding|image)\.proj\.[1-9]\d*\.weight"  # 0 reads pixels
    r"|model\.(vl_)?(image|text)_proj\.weight"
)
"""Names of the matrices between hidden states. Vectors are excluded by their shape."""


@pytest.mark.parametrize("build", [tiny.pretraining, tiny.vlmo_pretraining])
def test_it_trains_the_matrices_between_hidden_states_and_nothing_else(build: Any) -> None:
    task = build(model={"stem": "conv"})
    names = {id(weight): name for name, weight in task.named_parameters() if weight.requires_grad}
    groups = build_optimizer(task, MUON).param_groups
    by_muon = {
        names[id(weight)]: group["muon_pieces"]
        for group in groups
        if "muon_pieces" in group
        for weight in group["params"]
    }
    matrices = {name for name in names.values() if task.get_parameter(name).ndim > 1}
    assert by_muon.keys() == {name for name in matrices if HIDDEN.fullmatch(name)}
    assert any(task.get_parameter(name).ndim == 4 for name in by_muon)
    assert {id(weight) for group in groups for weight in group["params"]} == names.keys()
    for name, pieces in by_muon.items():
        assert pieces == {"qkv": 3, "kv": 2}.get(name.split(".")[-2], 1)


def test_kernels_are_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    matrix.grad = kernel.grad.flatten(1).clone()
    for weight in (kernel, matrix):
        BatchedMuon([{"params": [weight], "muon_pieces": 1}], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


NEWTON_SCHULZ: Any = ((3.4445, -4.775, 2.0315), 5, 1e-7)


def test_its_updates_have_singular_values_about_one() -> None:
    for height, width in ((24, 24), (24, 32), (24, 96)):
        matrices = torch.randn(4, height, width, generator=torch.Generator().manual_seed(0))
        for shape, bf16 in ((matrices, False), (matrices.mT, False), (matrices, True)):
            values = torch.linalg.svdvals(orthogonalised(shape, *NEWTON_SCHULZ, bf16=bf16))
            assert values.max() < 1.5
            assert values.min() > (0.5 if width > height else 0.1), "a square matrix may have a value near zero"


@pytest.mark.parametrize("width", [16, 64])
def test_the_iterated_gram_matrix_gives_what_the_iterated_matrix_gives(width: int) -> None:
    """Singular values span six decades, so that errors of the smallest would show."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(3, n, 16, generator=generator))[0] for n in (16, width))
    matrices = left * torch.logspace(0, -6, 16) @ right.mT
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    ours, plain = (iterated(matrices, *NEWTON_SCHULZ[:2]) for iterated in (_iterated_gram, _iterated))
    assert (ours - plain).norm() < 1e-3 * plain.norm()


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


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_state_of_one_kind_is_refused_by_the_other(kind: Any) -> None:
    task = tiny.pretraining()
    named = {name: value for name, value in task.named_parameters() if value.requires_grad}
    ours, other = (replace(MUON, kind=one) for one in (kind, {"muon": "adamw", "adamw": "muon"}[kind]))
    optimizer = build_optimizer(task, ours)
    steps(task, optimizer, range(1))
    stored = optimizer_state(named, optimizer)
    with pytest.raises(ValueError, match=rf"with optim\.kind={kind}, and this one has {other.kind}: go on with"):
        load_optimizer_state(named, build_optimizer(task, other), stored)


def test_settings_that_exclude_muon_stop_a_run_before_its_data_is_opened(tmp_path: Path) -> None:
    nowhere = {"data.source": "jsonl", "data.path": str(tmp_path / "missing"), "optim.kind": "muon"}
    for field, message in (
        ("run.parallel", r"optim\.kind=muon needs whole matrices.*set run\.parallel=ddp"),
        ("released.adam_decays_after_update", r"about AdamW alone: set optim\.kind=adamw"),
    ):
        value = "fsdp" if field == "run.parallel" else True
        with pytest.raises(ValueError, match=message):
            train(override(albef_tiny(), {**nowhere, field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_matrices_stay_and_have_no_state_and_bf16_keeps_state_and_weights_in_fp32() -> None:
    task = tiny.pretraining()
    frozen = next(name for name in muon_matrices(task) if task.get_parameter(name).requires_grad)
    before = task.get_parameter(frozen).requires_grad_(False).clone()
    optimizer = build_optimizer(task, MUON, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        steps(task, optimizer, range(1))
    assert torch.equal(task.get_parameter(frozen), before)
    assert all(weight is not task.get_parameter(frozen) for weight in optimizer.state)
    moments = [state[MOMENTUM] for state in optimizer.state.values() if MOMENTUM in state]
    assert moments
    assert {value.dtype for value in [*moments, *task.parameters()]} == {torch.float32}


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
        name: value.detach().flatten()[::2] if name in muon_matrices(task) else value
        for name, value in task.named_parameters()
    }
    with pytest.raises(ValueError, match=r"optim\.kind=muon needs whole matrices.*run\.parallel=ddp"):
        build_optimizer(task, MUON, halves)
    with pytest.raises(ValueError, match=r"adam_decays_after_update is about AdamW alone: set optim\.kind=adamw"):
        build_optimizer(task, MUON, released=Released(adam_decays_after_update=True))
