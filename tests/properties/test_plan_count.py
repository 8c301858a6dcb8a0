"""A step counted without its numbers, against real steps and against formulas written by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from diptych import catalog
from diptych.apps.plan.count import Counted, count, make_batch, plain_tokenizer
from diptych.apps.plan.ledger import CONTRAST
from diptych.recipes.override import override
from diptych.schema import AlbefConfig, Recipe
from diptych.task import Task
from diptych.train.flops import counted
from diptych.train.optim import build_optimizer, optimizer_state
from diptych.types import Progress

TOKENS, STEP = 9, 10**9
MICRO = {
    "albef_tiny": {
        "model.vision.depth": 2, "model.vision.stem": "patch", "model.vision.patch_size": 16, "model.text.layers": 2,
        "model.text.fusion_start": 1, "tokenizer.size": 300, "task.queue_size": 64, "optim.kind": "adamw",
    },
    "vlmo_tiny": {
        "model.depth": 2, "model.fusion_start": 1, "model.stem": "patch", "tokenizer.size": 300, "optim.kind": "adamw",
    },
}  # fmt: skip


@cache
def recipe(name: str) -> Recipe:
    return override(catalog.find_recipe(name), MICRO[name])


@cache
def planned(name: str, pairs: int = 16) -> Counted:
    return count(recipe(name), pairs, TOKENS, STEP)


def real(name: str, pairs: int) -> tuple[Task, object]:
    """Builds the task with its weights and a full queue, and a batch."""
    words = plain_tokenizer(recipe(name))
    task = catalog.build_task(recipe(name), words).train()
    if name == "albef_tiny":
        task.queue.filled.fill_(task.queue.size)
        task.queue.ids.copy_(-1 - torch.arange(task.queue.size))
        task.queue.image.normal_()
        task.queue.text.normal_()
    size = recipe(name).model.image_size
    return task, make_batch(recipe(name), torch.randn(1, pairs, 3, size, size).unbind(), TOKENS, words)


@pytest.mark.parametrize("name", MICRO)
def test_parameters_and_their_bytes_are_those_of_the_real_task(name: str) -> None:
    task, _ = real(name, 4)
    own = {key: value for key, value in task.named_parameters() if not key.startswith("momentum_")}
    found = planned(name).weights
    assert found.parameters == sum(value.numel() for value in own.values())
    assert found.trained == sum(value.numel() for value in own.values() if value.requires_grad)
    assert found.gradients == found.optimizer // 2 == 4 * found.trained
    stored = sum(value.nbytes for value in {**dict(task.named_parameters()), **dict(task.named_buffers())}.values())
    assert found.weights + found.momentum_encoder + found.queue == stored


@pytest.mark.parametrize("name", MICRO)
def test_flops_are_those_that_torch_counts_in_a_real_step_of_another_size(name: str) -> None:
    task, batch = real(name, 24)

    def step() -> None:
        task(batch, Progress(STEP, float(STEP))).total.backward()

    assert planned(name).flops(24) == pytest.approx(counted(step)[0], rel=0.02)  # words are hidden by chance


@pytest.mark.parametrize("name", MICRO)
def test_what_is_kept_for_the_way_back_is_what_a_real_step_of_another_size_saves(name: str) -> None:
    task, batch = real(name, 24)
    lasting = {value.untyped_storage().data_ptr() for value in [*task.parameters(), *task.buffers()]}
    lasting.add(batch.pixels.untyped_storage().data_ptr())  # type: ignore[attr-defined]
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = task(batch, Progress(STEP, float(STEP)))
    found = sum(value.untyped_storage().nbytes() for place, value in saved.items() if place not in lasting)
    assert losses.total.requires_grad
    assert planned(name).kept(24) == pytest.approx(found, rel=0.03)


def test_the_image_encoder_takes_the_flops_of_a_vision_transformer() -> None:
    model, pairs = recipe("albef_tiny").model, 16
    assert isinstance(model, AlbefConfig)
    width, patches, tokens = model.vision.width, 16, 17
    block = 24 * tokens * width**2 + 4 * tokens**2 * width  # projections 8, feed-forward 16; scores and their use
    patch = 2 * patches * (3 * model.vision.patch_size**2) * width
    by_hand = pairs * (patch + model.vision.depth * block + 2 * width * model.embed_dim)
    sums = planned("albef_tiny").sums(pairs)
    flops = dict.fromkeys(("forward", "backward"), 0)
    for (part, phase, _), total in sums.items():
        if part == "image encoder":
            flops[phase] += total.flops
    assert flops["forward"] == by_hand
    # Each product has two on its way back, but that of the pixels one; fused attention forms the scores again.
    attention = model.vision.depth * pairs * 4 * tokens**2 * width
    folded = model.vision.depth * 2 * width * (3 * width + 4 * width)  # the gradient of a norm's bias through a matrix
    assert flops["backward"] == 2 * by_hand - pairs * patch + attention // 2 + folded


def test_the_contrast_grows_with_pairs_times_candidates() -> None:
    counts = planned("albef_tiny")

    def products(pairs: int, candidates: int) -> int:
        return sum(one.flops for key, one in counts.sums(pairs, candidates).items() if key[0] == CONTRAST)

    model = recipe("albef_tiny").model
    assert isinstance(model, AlbefConfig)
    one = 2 * model.embed_dim  # a similarity; four forward, of which two of the student's, and those once backwards
    assert products(10, 1000) == 6 * 10 * (1000 + 64) * one


@pytest.mark.parametrize("name", MICRO)
def test_the_peak_of_a_larger_step_follows_from_small_ones(name: str) -> None:
    for together in (False, True):
        small, direct = (sum(planned(name, pairs).peak(64, all_gradients=together)) for pairs in (16, 64))
        assert small == pytest.approx(direct, rel=0.05)  # words are hidden by chance


@pytest.mark.parametrize("name", MICRO)
def test_muon_has_one_moment_for_its_matrices_and_its_products_are_counted(name: str) -> None:
    task, _ = real(name, 4)
    parameters = {key: value for key, value in task.named_parameters() if value.requires_grad}
    optimizer = build_optimizer(task, replace(recipe(name).optim, kind="muon"))
    for value in parameters.values():
        value.grad = torch.randn_like(value)
    flops, _ = counted(optimizer.step)
    found = count(override(recipe(name), {"optim.kind": "muon"}), 4, TOKENS, STEP)
    state = optimizer_state(parameters, optimizer).items()
    assert found.weights.optimizer == sum(value.nbytes for key, value in state if not key.startswith("step/"))
    assert found.weights.optimizer < planned(name).weights.optimizer
    assert found.muon is not None
    assert sum(total.flops for total in found.muon.sums.values()) == flops > 0


def test_every_recipe_of_another_kind_can_be_counted() -> None:
    for name in (
        "vlmo_tiny_vision",
        "visual_tokenizer_tiny",
        "albef_tiny_nlvr2",
    ):
        found = count(catalog.find_recipe(name), 4, TOKENS, STEP)
        assert found.flops(4) > 0
        assert found.kept(4) > 0
