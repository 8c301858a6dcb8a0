"""The benchmark's plain VLMo is held to the released numbers too: speed is compared between equals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.machine import flops
from benchmarks.plain_vlmo import PlainVlmo
from benchmarks.steps import Steps
from benchmarks.vlmo import Pair
from diptych.checkpoints.convert import from_published
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import VlmoConfig
from tests.parity.golden import read_tensors
from tests.parity.vlmo.golden import Golden, manifest, vlmo_config

UNUSED = ("position_index", "position_ids")
"""Integer tables, computed when needed."""


def build(folder: Path) -> PlainVlmo:
    config = vlmo_config(folder)
    plain = PlainVlmo(config)
    state = read_tensors(folder / "weights_pretrain.safetensors")
    if config.positions == "relative":
        state.pop("text_embeddings.position_embeddings.weight", None)
    plain.load_state_dict({name: value for name, value in state.items() if not name.endswith(UNUSED)})
    return plain


def test_plain_pretraining_is_the_released_one(golden_vlmo: Path) -> None:
    plain, inputs = build(golden_vlmo), Golden(golden_vlmo, "inputs")
    stored, gradients = Golden(golden_vlmo, "losses"), Golden(golden_vlmo, "grads_pretrain")
    names = ("image", "text_ids", "text_masks", "text_ids_mlm", "text_labels_mlm")
    negatives = stored["pretrain/itm_neg_image_index"], stored["pretrain/itm_neg_text_index"]
    losses = plain(*(inputs[f"vl/{name}"] for name in names), negatives)
    for key, ours in (("mlm", losses.mlm), ("itc", losses.itc), ("itm", losses.itm), ("total", losses.total)):
        stored.check(f"pretrain/{key}_loss", ours)
    losses.total.backward()
    found = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    for key in gradients.keys("total/"):
        gradients.check(key, found[key.removeprefix("total/")], within=1e-5)
    for name, norm in manifest(golden_vlmo)["grad_norms"]["pretrain"].items():
        assert abs(found[name].norm().item() - norm) <= 2e-5 * max(norm, 1e-3), name


def test_plain_negatives_are_never_the_pair_itself() -> None:
    plain = torch.nn.Module.__new__(PlainVlmo)
    for _ in range(20):
        for drawn in PlainVlmo.draw(plain, torch.randn(5, 5)):
            assert bool((drawn != torch.arange(5)).all())


TINY = VlmoConfig(
    image_size=32, patch_size=8, width=24, depth=3, heads=3, fusion_start=2, mlp_ratio=2.0, dropout=0.0, drop_path=0.0
)
"""As small as it gets with the words of the benchmarks' captions."""


class NoStep:
    """Leaves the gradients for comparison."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_both_sides_of_the_benchmark_have_the_same_losses_and_gradients(positions: Any) -> None:
    pair = Pair.build(replace(TINY, positions=positions, layer_scale=0.1 if positions == "relative" else None))
    steps = Steps(pair)
    steps.optimizers = {side: NoStep() for side in ("plain", "ours")}
    assert steps.plain(recorded=True) == pytest.approx(steps.ours(recorded=True), abs=1e-5)
    ours = {name: value.grad for name, value in pair.ours.named_parameters()}
    plain = {name: value.grad for name, value in pair.plain.named_parameters()}
    theirs, _ = from_published(plain, published_rules(pair.ours.model.config))
    assert set(theirs) == set(ours)
    for name, gradient in theirs.items():
        assert (gradient - ours[name]).norm() <= 5e-3 * gradient.norm(), name  # pictures of noise: much cancels
    assert flops(steps.plain) > flops(steps.ours)
