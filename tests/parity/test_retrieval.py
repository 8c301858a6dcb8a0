"""Fine-tuning for retrieval against the released code's numbers: `retrieval.*`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.losses.contrastive import itc_targets
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_RETRIEVAL
from diptych.schema import ALBEF_AS_RELEASED, Released, RetrievalConfig
from diptych.tasks.retrieval import Forward, Retrieval
from diptych.types import Batch, Losses, Texts
from tests.parity.golden import Golden, albef_config, check_number, load_published, padded

CASES = ("a04", "a00", "hard")
"""With the momentum encoder's targets, with weight 0 for them, and built without distillation."""


def sizes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def build(folder: Path, keep_padding: bool = True, released: Released = ALBEF_AS_RELEASED, **changes: Any) -> Retrieval:
    """The task in the folder's stored state, as released. The model's word head is its own: no such task has one."""
    size = sizes(folder)["queue_size"]
    config = RetrievalConfig(queue_size=size, momentum=sizes(folder)["momentum"])
    model = padded(Albef(albef_config(folder)), keep_padding)
    task = Retrieval(model, dataclasses.replace(config, **changes), None, released)
    load_published(task, folder, "retrieval", PUBLISHED_RETRIEVAL, own=("model.word_head.", "queue.filled"))
    task.queue.filled.fill_(size)
    return task


def batch_of(golden: Golden) -> Batch:
    texts = Texts(golden["in.input_ids"], golden["in.attention_mask"].bool())
    return Batch(golden["in.image"], texts, golden["in.idx"])


def step(task: Retrieval, golden: Golden, alpha: float) -> tuple[Forward, Losses]:
    """The recorded negatives, up to the gradient."""
    batch = batch_of(golden)
    task.before_step()
    negatives = golden["in.neg_image_idx"], golden["in.neg_text_idx"]
    made = task.run(batch, torch.zeros(2, len(batch)), negatives)
    losses = task.losses(made, batch, alpha)
    losses.total.backward()
    return made, losses


def case_of(name: str, golden: Golden, keep_padding: bool = True) -> tuple[Retrieval, Forward, Losses, float]:
    distilled = sizes(golden.folder)["alpha_of_case_a04"]
    task = build(golden.folder, keep_padding, alpha=0.0 if name == "hard" else distilled)
    alpha = 0.0 if name == "a00" else task.config.alpha
    return task, *step(task, golden, alpha), alpha


def gradients(task: Retrieval) -> dict[str, Tensor]:
    found = {f"model.{name}": weight.grad for name, weight in task.model.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in found.items() if gradient is None]
    return to_published(found, PUBLISHED_RETRIEVAL)


# --------------------------------------------------------------------------- comparisons


def features_are_the_released_ones(golden: Golden) -> None:
    task, made, *_ = case_of("a04", golden)
    batch, here = batch_of(golden), torch.arange(len(batch_of(golden)))
    with torch.no_grad():
        images, texts = task.model.image_state(batch.pixels), task.model.text_state(batch.texts)
        golden.check("a04.image_embeds", images.tokens)
        golden.check("a04.text_embeds", texts.hidden.unflatten(0, batch.texts.input_ids.shape))
        golden.check("a04.image_feat", task.model.embed_image(images)["main"])
        golden.check("a04.text_feat", task.model.embed_text(texts)["main"])
        for key, ours in zip(("image", "text"), made.contrast.keys, strict=False):
            golden.check(f"a04.{key}_feat_m", ours)
        golden.check("a04.fused_pos", task.model.fuse(texts, images, here, here, "all").hidden)
        negative_image, negative_text = made.negatives
        text_index, image_index = torch.cat([here, negative_text]), torch.cat([negative_image, here])
        golden.check("a04.fused_neg", task.model.fuse(texts, images, text_index, image_index, "all").hidden)


def identities_decide_what_is_right(golden: Golden) -> None:
    task, made, *_ = case_of("a04", golden)
    *_, ids = task.queue.candidates(*made.contrast.keys)
    golden.check("a04.idx_all", ids[None])
    golden.check("a04.pos_idx", made.contrast.same.float())
    golden.check("a04.sim_targets", made.contrast.positives)


def contrast_and_targets_are_the_released_ones(golden: Golden) -> None:
    for name in ("a04", "a00"):
        *_, made, _, alpha = case_of(name, golden)
        contrast = made.contrast
        for key, momentum_encoder in (
            ("i2t", contrast.logits.momentum_image_to_text),
            ("t2i", contrast.logits.momentum_text_to_image),
        ):
            golden.check(f"{name}.sim_{key}_targets", itc_targets(momentum_encoder, contrast.positives, alpha))
        if name == "a04":
            golden.check("a04.sim_i2t", contrast.logits.image_to_text)
            golden.check("a04.sim_t2i", contrast.logits.text_to_image)


def sampling_weights_are_the_released_ones(golden: Golden) -> None:
    task, made, *_ = case_of("a04", golden)
    repaired = build(golden.folder, released=Released()).negative_weights(made.contrast)
    for key, ours, before in zip(("t2i", "i2t"), task.negative_weights(made.contrast), repaired, strict=True):
        golden.check(f"a04.weights_{key}", ours)
        torch.testing.assert_close(before, ours / ours.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def losses_are_the_released_ones(golden: Golden) -> None:
    for name in CASES:
        _, made, losses, _ = case_of(name, golden)
        golden.check(f"{name}.vl_output", made.match_logits)
        golden.check(f"{name}.loss_ita", losses.terms["itc"][1].mean)
        golden.check(f"{name}.loss_itm", losses.terms["itm"][1].mean)


def gradients_are_the_released_ones(golden: Golden) -> None:
    for name in CASES:
        found = gradients(case_of(name, golden)[0])
        for key in golden.keys(f"{name}.grad."):
            golden.check(key, found[key.removeprefix(f"{name}.grad.")])


def the_queue_takes_features_and_identities(golden: Golden) -> None:
    task, _, losses, _ = case_of("a04", golden)
    task.after_step(losses.carry)
    golden.check("a04.after.image_queue", task.queue.image.T)
    golden.check("a04.after.text_queue", task.queue.text.T)
    golden.check("a04.after.idx_queue", task.queue.ids[None])
    golden.check("a04.after.queue_ptr", task.queue.pointer[None])


def the_temperature_is_not_clamped(golden: Golden) -> None:
    task = build(golden.folder)
    task.model.temp.data.copy_(golden["noclamp.temp_in"])
    _, losses = step(task, golden, sizes(golden.folder)["alpha_of_case_a04"])
    golden.check("noclamp.temp_out", task.model.temp)
    golden.check("noclamp.loss_ita", losses.terms["itc"][1].mean)


COMPARISONS = (
    features_are_the_released_ones,
    identities_decide_what_is_right,
    contrast_and_targets_are_the_released_ones,
    sampling_weights_are_the_released_ones,
    losses_are_the_released_ones,
    gradients_are_the_released_ones,
    the_queue_takes_features_and_identities,
    the_temperature_is_not_clamped,
)


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
def test_retrieval(compare: Any, golden_albef: Path) -> None:
    compare(Golden(golden_albef, "retrieval"))


def test_every_stored_tensor_of_retrieval_is_compared(golden_albef: Path) -> None:
    golden = Golden(golden_albef, "retrieval")
    for compare in COMPARISONS:
        compare(golden)
    assert set(golden.tensors) - golden.used == set()


@pytest.mark.parametrize("keep_padding", [True, False])
def test_gradient_norms_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    found = gradients(case_of("a04", Golden(golden_albef, "retrieval"), keep_padding)[0])
    stored = json.loads((golden_albef / "retrieval_gradnorms.json").read_text())["total"]
    assert set(stored) == set(found)
    for name, norm in stored.items():
        check_number(name, found[name].norm().item(), 0.0 if norm is None else norm, 2e-5)
