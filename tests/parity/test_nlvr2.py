"""NLVR2 and text assignment against the released code's numbers: `nlvr.*`, `pretrain_nlvr.*`, their states."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.checkpoints.convert import Rule, absences, counts, from_published, to_published
from diptych.losses.matching import negative_weights
from diptych.models.albef import Albef, repeat_fusion_layers
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING, published_nlvr2, published_text_assignment
from diptych.schema import AlbefConfig, Nlvr2Config, TextAssignmentConfig
from diptych.task import Task
from diptych.tasks.nlvr2 import Assignment, AssignmentDraws, Nlvr2, TextAssignment
from diptych.types import Batch, LabelledPicturePairs, Losses, Progress, Texts
from tests.parity.golden import Golden, albef_config, check_number, load_published, padded, read_tensors

START = Progress(step=0, epoch=0.0)
CASES = ("a04", "a00", "hard")
"""With the momentum encoder's targets, with weight 0 for them (the ramp's start), and built without distillation."""


def sizes_of(folder: Path) -> dict[str, Any]:
    sizes: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return sizes


def config_of(folder: Path) -> AlbefConfig:
    return replace(albef_config(folder), images_per_text=2)


def build_nlvr2(folder: Path, case: str = "a04", keep_padding: bool = True) -> Nlvr2:
    """The task in the folder's stored state. Parts of the model that it does not use are its own."""
    sizes = sizes_of(folder)
    config = Nlvr2Config(
        momentum=sizes["momentum_of_ve_vqa_nlvr"],
        alpha=0.0 if case == "hard" else sizes["alpha_of_case_a04"],
        alpha_ramp=1.0 if case == "a00" else 0.0,
    )
    model = padded(Albef(config_of(folder)), keep_padding)
    assert len(model.text.layers) == sizes["nlvr_num_hidden_layers"]
    task, own = Nlvr2(model, config), tuple(f"model.{part}" for part in model.parts_unused_by())
    load_published(task, folder, "nlvr", published_nlvr2(model.config), own, ("momentum_",) if case == "hard" else ())
    return task


def build_assignment(folder: Path, keep_padding: bool = True) -> TextAssignment:
    model = padded(Albef(config_of(folder)), keep_padding)
    task = TextAssignment(model, TextAssignmentConfig())
    load_published(
        task, folder, "pretrain_nlvr", published_text_assignment(model.config), ("model.match_head", "model.word_head")
    )
    return task


def texts_of(golden: Golden) -> Texts:
    return Texts(golden["in.input_ids"], golden["in.attention_mask"].bool())


def pairs_of(golden: Golden) -> LabelledPicturePairs:
    first, second = golden["in.image"].chunk(2)
    labels = golden["in.labels"]
    return LabelledPicturePairs(first, texts_of(golden), torch.arange(len(labels)), second_pixels=second, labels=labels)


def batch_of(golden: Golden) -> Batch:
    pixels = golden["in.image"]
    return Batch(pixels, texts_of(golden), torch.arange(len(pixels)))


def assignment_of(golden: Golden) -> Assignment:
    return Assignment(torch.stack([golden["in.image0_idx"], golden["in.image1_idx"]], dim=1), golden["out.labels"])


def step_nlvr2(golden: Golden, case: str, keep_padding: bool = True) -> tuple[Nlvr2, Losses]:
    task = build_nlvr2(golden.folder, case, keep_padding)
    task.before_step()
    losses = task(pairs_of(golden), START)
    losses.total.backward()
    return task, losses


def step_assignment(golden: Golden, keep_padding: bool = True) -> tuple[TextAssignment, Losses]:
    task = build_assignment(golden.folder, keep_padding)
    losses = task(batch_of(golden), START, assignment_of(golden))
    losses.total.backward()
    return task, losses


def gradients(task: nn.Module, rules: list[Rule]) -> dict[str, Tensor]:
    """Of all that trains, under published names."""
    found = {name: weight.grad for name, weight in task.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in found.items() if gradient is None]
    return to_published({name: gradient for name, gradient in found.items() if gradient is not None}, rules)


# --------------------------------------------------------------------------- comparisons of NLVR2


def nlvr2_losses_are_the_released_ones(golden: Golden) -> None:
    for case in CASES:
        golden.check(f"{case}.loss", step_nlvr2(golden, case)[1].total)


def nlvr2_logits_are_the_released_ones(golden: Golden) -> None:
    task, pairs = build_nlvr2(golden.folder), pairs_of(golden)
    golden.check("logits", task.logits(pairs))
    golden.check("eval.logits", task.eval().logits(pairs))
    golden.check(
        "eval.logits_swapped", task.logits(replace(pairs, pixels=pairs.second_pixels, second_pixels=pairs.pixels))
    )
    torch.testing.assert_close(task.predict(pairs), golden["eval.logits"].softmax(1))


def nlvr2_fused_rows_are_the_released_ones(golden: Golden) -> None:
    model, pairs = build_nlvr2(golden.folder).model, pairs_of(golden)
    images, here = model.image_state(torch.cat([pairs.pixels, pairs.second_pixels])), torch.arange(len(pairs))
    index = torch.stack([here, here + len(pairs)], dim=1)
    golden.check("a04.fused", model.fuse(model.text_state(pairs.texts), images, here, index, "all").hidden)


def nlvr2_momentum_encoder_moves_and_then_answers_as_released(golden: Golden) -> None:
    task, _ = step_nlvr2(golden, "a04")
    golden.check("a04.logits_m", task.momentum_logits(pairs_of(golden)))


def nlvr2_gradients_are_the_released_ones(golden: Golden) -> None:
    for case in CASES:
        found = gradients(step_nlvr2(golden, case)[0], published_nlvr2(config_of(golden.folder)))
        for key in golden.keys(f"{case}.grad."):
            golden.check(key, found[key.removeprefix(f"{case}.grad.")])


# --------------------------------------------------------------------------- comparisons of text assignment


def assignment_draws_lead_to_the_released_pairs(golden: Golden) -> None:
    """The recorded draws give the labels; labels and the other images drawn give the pairs."""
    first, second = golden["in.image0_idx"], golden["in.image1_idx"]
    draws = AssignmentDraws(golden["in.draw1"], golden["in.draw2"], torch.zeros(2, len(first)))
    golden.check("out.labels", draws.labels)
    here = torch.arange(len(first))
    others = torch.stack([torch.where(first == here, second, first), second])
    made = Assignment.of(draws.labels, others)
    golden.check("in.image0_idx", made.images[:, 0])
    golden.check("in.image1_idx", made.images[:, 1])


def assignment_weights_are_the_released_ones(golden: Golden) -> None:
    """As released, the softmax is over all images; ours leaves the own one out first, in the same proportions."""
    task, batch = build_assignment(golden.folder), batch_of(golden)
    likeness, own = task.likeness(task.model.image_state(batch.pixels)), task.own(batch.image_ids)
    golden.check("out.weights", negative_weights(likeness, own, after_softmax=True))
    stored = golden["out.weights"]
    torch.testing.assert_close(negative_weights(likeness, own), stored / stored.sum(1, keepdim=True))


def assignment_loss_and_logits_are_the_released_ones(golden: Golden) -> None:
    task, losses = step_assignment(golden)
    golden.check("out.loss", losses.total)
    batch, here, made = batch_of(golden), torch.arange(len(golden["out.labels"])), assignment_of(golden)
    images, texts = task.model.image_state(batch.pixels), task.model.text_state(batch.texts)
    joint = task.model.fuse(texts, images, here, made.images, "all")
    golden.check("out.fused", joint.hidden)
    golden.check("out.logits", task.head(joint.pooled))


def assignment_gradients_are_the_released_ones(golden: Golden) -> None:
    found = gradients(step_assignment(golden)[0], published_text_assignment(config_of(golden.folder)))
    for key in golden.keys("out.grad."):
        golden.check(key, found[key.removeprefix("out.grad.")])


# --------------------------------------------------------------------------- tests

COMPARISONS: dict[str, tuple[Callable[[Golden], None], ...]] = {
    "nlvr": (
        nlvr2_losses_are_the_released_ones,
        nlvr2_logits_are_the_released_ones,
        nlvr2_fused_rows_are_the_released_ones,
        nlvr2_momentum_encoder_moves_and_then_answers_as_released,
        nlvr2_gradients_are_the_released_ones,
    ),
    "pretrain_nlvr": (
        assignment_draws_lead_to_the_released_pairs,
        assignment_weights_are_the_released_ones,
        assignment_loss_and_logits_are_the_released_ones,
        assignment_gradients_are_the_released_ones,
    ),
}


@pytest.mark.parametrize(
    ("name", "compare"),
    [(name, compare) for name, all_of_it in COMPARISONS.items() for compare in all_of_it],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_numbers(name: str, compare: Callable[[Golden], None], golden_albef: Path) -> None:
    compare(Golden(golden_albef, name))


@pytest.mark.parametrize("name", list(COMPARISONS))
def test_every_stored_tensor_is_compared(name: str, golden_albef: Path) -> None:
    golden = Golden(golden_albef, name)
    for compare in COMPARISONS[name]:
        compare(golden)
    assert set(golden.tensors) - golden.used == set()


@pytest.mark.parametrize("keep_padding", [True, False])
def test_gradient_norms_of_nlvr2_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    task, _ = step_nlvr2(Golden(golden_albef, "nlvr"), "a04", keep_padding)
    found = gradients(task, published_nlvr2(config_of(golden_albef)))
    stored = json.loads((golden_albef / "nlvr_gradnorms.json").read_text())["total"]
    assert set(stored) == set(found) - second_names(found, golden_albef)
    for name, norm in stored.items():
        check_number(name, found[name].norm().item(), norm, 2e-5)


@pytest.mark.parametrize("keep_padding", [True, False])
def test_gradient_norms_of_text_assignment_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    task, _ = step_assignment(Golden(golden_albef, "pretrain_nlvr"), keep_padding)
    rules = published_text_assignment(config_of(golden_albef))
    found = gradients(task, rules)
    frozen = to_published({n: w for n, w in task.named_parameters() if not w.requires_grad}, rules)
    stored = json.loads((golden_albef / "pretrain_nlvr_gradnorms.json").read_text())["total"]
    assert {name for name, norm in stored.items() if norm is None} == set(frozen)
    assert {name for name, norm in stored.items() if norm is not None} == set(found) - second_names(found, golden_albef)
    for name, gradient in found.items():
        if name in stored:
            check_number(name, gradient.norm().item(), stored[name], 2e-5)


def second_names(names: dict[str, Tensor], folder: Path) -> set[str]:
    """Names of shared projections in the second layer of each pair, where the released code counts no parameter."""
    start = sizes_of(folder)["bert_config"]["fusion_layer"]
    parts = {name: name.split(".") for name in names if "crossattention.self.key" in name or "self.value" in name}
    return {n for n, part in parts.items() if "crossattention" in part and (int(part[3]) - start) % 2 == 1}


# --------------------------------------------------------------------------- published names

BUILT: dict[str, tuple[Callable[[Path], Task], Callable[[AlbefConfig], list[Rule]]]] = {
    "nlvr": (build_nlvr2, published_nlvr2),
    "pretrain_nlvr": (build_assignment, published_text_assignment),
}


@pytest.mark.parametrize("kind", list(BUILT))
def test_a_loaded_state_is_written_again_bit_for_bit(kind: str, golden_albef: Path) -> None:
    build, published = BUILT[kind]
    golden, rules = Golden(golden_albef, f"state/{kind}"), published(config_of(golden_albef))
    written = to_published(build(golden_albef).state_dict(), rules)
    written |= counts(written, rules)
    assert set(written) == set(golden.tensors)
    for name, tensor in written.items():
        assert torch.equal(tensor, golden[name]), name


@pytest.mark.parametrize("kind", list(BUILT))
def test_what_the_file_lacks_is_explained(kind: str, golden_albef: Path) -> None:
    build, published = BUILT[kind]
    rules = published(config_of(golden_albef))
    state, _ = from_published(read_tensors(golden_albef / "state" / f"{kind}.safetensors"), rules)
    missing = absences(build(golden_albef).state_dict(), state, rules)
    assert {".".join(name.split(".")[:2]) for name in missing} >= {"model.match_head", "model.word_head"}


def test_the_second_name_of_a_shared_projection_counts(golden_albef: Path) -> None:
    """As in the released code, which loads it last."""
    state = read_tensors(golden_albef / "state" / "nlvr.safetensors")
    start = sizes_of(golden_albef)["bert_config"]["fusion_layer"]
    name = "text_encoder.encoder.layer.{}.crossattention.self.value.bias"
    rules, ours = published_nlvr2(config_of(golden_albef)), f"model.text.layers.{start}.cross.kv.bias"
    for changed, expected in ((start, False), (start + 1, True)):
        other = state | {name.format(changed): state[name.format(changed)] + 1}
        loaded = from_published(other, rules)[0][ours]
        same = from_published(state, rules)[0][ours]
        assert torch.equal(loaded.chunk(2)[1], same.chunk(2)[1] + expected)


def test_a_plain_model_becomes_the_start_that_the_released_code_makes_of_it(golden_albef: Path) -> None:
    """`loading_maps`: which stored tensor each name of the doubled model is started from."""
    stored = read_tensors(golden_albef / "state" / "pretrain.safetensors")
    plain, _ = from_published(stored, PUBLISHED_PRETRAINING)
    config = config_of(golden_albef)
    doubled = repeat_fusion_layers({name: t for name, t in plain.items() if name.startswith("model.")}, config)
    Albef(config).load_state_dict({name.removeprefix("model."): tensor for name, tensor in doubled.items()})
    rules = published_text_assignment(config)
    written = to_published(doubled, rules)
    written |= counts(written, rules)
    origin = json.loads((golden_albef / "loading_maps.json").read_text())["pretrain->pretrain_nlvr"]["map"]
    assert set(written) == set(origin)
    for name, source in origin.items():
        assert torch.equal(written[name], stored[source]), name
