"""VLMo's third stage against the released code's numbers: `losses`, `grads_pretrain`, gradient norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.losses.matching import match_labels, matching_pairs
from diptych.tasks.vlmo_pretraining import VlmoPretraining, VlmoTrace
from diptych.types import Batch, Losses, Texts
from tests.parity.golden import check_number
from tests.parity.vlmo.golden import Golden, manifest
from tests.parity.vlmo.stage3 import build_task, gradients, pairs, recorded, weighted
from tests.traces import traced

Step = tuple[VlmoPretraining, VlmoTrace, Losses]


@pytest.fixture(scope="module")
def inputs(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "inputs")


@pytest.fixture(scope="module")
def stored(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "losses")


def run(inputs: Golden, stored: Golden, keep_padding: bool = True) -> Step:
    task = build_task(inputs.folder, keep_padding)
    drawn = (stored[f"pretrain/itm_neg_{kind}_index"] for kind in ("image", "text"))
    batch = pairs(inputs, "vl")
    task.before_step()
    return task, *traced(task, batch, draws=recorded(inputs, "vl", *drawn))


@pytest.fixture(scope="module", params=[True, False], ids=["padded", "packed"])
def step(request: pytest.FixtureRequest, inputs: Golden, stored: Golden) -> Step:
    return run(inputs, stored, request.param)


def test_every_stored_number_of_pretraining_comes_out(inputs: Golden, stored: Golden, step: Step) -> None:
    check_losses(inputs, stored, step)
    check_heads(inputs, stored, step)
    assert set(stored.keys("pretrain/")) <= stored.used
    scalars = {
        name: value for name, value in manifest(inputs.folder)["scalars"].items() if name.startswith("pretrain/")
    }
    assert scalars
    for name, value in scalars.items():
        check_number(name, stored[name].item(), value, 1e-7)


def check_losses(inputs: Golden, stored: Golden, step: Step) -> None:
    """The losses, and what goes into them."""
    task, made, losses = step
    for branch, mark in (("main", ""), ("vl", "_vl")):
        logits = made.similarities[branch]
        stored.check(f"pretrain/itc{mark}_i2t_logits", logits.image_to_text)
        stored.check(f"pretrain/itc{mark}_t2i_logits", logits.text_to_image)
        stored.check(f"pretrain/itc_logit{mark}_scale", 1 / task.model.temperature(branch))
    stored.check("pretrain/itc_labels", made.positives.int().argmax(1))
    image_weights, text_weights = made.negative_weights
    stored.check("pretrain/itm_neg_image_weights", image_weights)
    stored.check("pretrain/itm_neg_text_weights", text_weights)
    assert made.negatives is not None
    stored.check("pretrain/itm_neg_image_index", made.negatives[0])
    stored.check("pretrain/itm_neg_text_index", made.negatives[1])
    assert made.match_logits is not None
    stored.check("pretrain/itm_logits", made.match_logits)
    stored.check("pretrain/itm_labels", match_labels(len(made.negatives[0]), torch.device("cpu")))
    for name, value in weighted(losses).items():
        stored.check(f"pretrain/{name}", value)


@torch.no_grad()
def check_heads(inputs: Golden, stored: Golden, step: Step) -> None:
    """What the heads read, and what they say."""
    task, made, _ = step
    model, batch = task.model, pairs(inputs, "vl")
    assert made.negatives is not None
    images, here = model.image_state(batch.pixels), torch.arange(len(batch))
    pooled = model.fuse(
        model.text_state(batch.texts), images, *matching_pairs(torch.arange(len(made.negatives[0])), *made.negatives)
    ).pooled
    stored.check("pretrain/itm_cls_feats", pooled)
    masked = Texts(inputs["vl/text_ids_mlm"], batch.texts.attention_mask)
    joint = model.fuse(model.text_state(masked), images, here, here, positions="all")
    assert joint.hidden is not None
    length = batch.texts.input_ids.shape[1]
    if model.keep_padding:
        stored.check("pretrain/mlm_logits", model.word_logits(joint.hidden[:, :length]))
    else:
        assert joint.text_mask is not None
        theirs = stored["pretrain/mlm_logits"][batch.texts.attention_mask]
        torch.testing.assert_close(model.word_logits(joint.hidden[joint.text_mask]), theirs, atol=1e-5, rtol=1e-5)


def test_every_stored_gradient_comes_out(golden_vlmo: Path, step: Step) -> None:
    task, _, losses = step
    golden = Golden(golden_vlmo, "grads_pretrain")
    for loss, value in weighted(losses).items():
        found, prefix = gradients(task, value), f"{'total' if loss == 'total_loss' else loss}/"
        assert golden.keys(prefix)
        for key in golden.keys(prefix):
            golden.check(key, found[key.removeprefix(prefix)], within=1e-5)
    assert not golden.unused


def test_every_gradient_has_the_released_norm_and_none_is_missing(golden_vlmo: Path, step: Step) -> None:
    task, _, losses = step
    found = gradients(task, losses.total)
    told = manifest(golden_vlmo)
    norms, absent = told["grad_norms"]["pretrain"], set(told["no_gradient"]["pretrain"])
    for name, norm in norms.items():
        if name not in absent:
            check_number(name, found[name].norm().item() / max(norm, 1e-3), norm / max(norm, 1e-3), 2e-5)
    assert set(norms) - absent == set(found) - absent
    assert not any(name in found and bool(found[name].any()) for name in absent)


def test_a_pass_does_not_read_more_than_its_losses_need(inputs: Golden, stored: Golden) -> None:
    """Every text and image once, every fusion in one call, word scores of hidden words alone."""
    task = build_task(inputs.folder, keep_padding=False)
    calls: dict[str, int] = {}

    def counting(name: str, call: object) -> object:
        def counted(*args: object, **options: object) -> object:
            calls[name] = calls.get(name, 0) + 1
            return call(*args, **options)

        return counted

    for name in ("image_state", "text_state", "embed_image", "embed_text", "fuse", "word_logits"):
        setattr(task.model, name, counting(name, getattr(task.model, name)))
    batch: Batch = pairs(inputs, "vl")
    drawn = (stored[f"pretrain/itm_neg_{kind}_index"] for kind in ("image", "text"))
    made, _ = traced(task, batch, draws=recorded(inputs, "vl", *drawn))
    assert set(calls.values()) == {1}
    assert len(calls) == 6
    assert made.word_logits is not None
    assert len(made.word_logits) == int((inputs["vl/text_labels_mlm"] >= 0).sum())
