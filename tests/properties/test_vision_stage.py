"""VLMo's first stage: what it sees, predicts and trains."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.losses.masked_image import block_mask
from diptych.schema import VisionStageConfig, VisualTokenizerConfig
from diptych.tasks.masked_image_modelling import VisionStage, blanked, resized
from diptych.types import PictureBatch, Progress
from tests.tiny import SIDE, shake, uniform, vlmo

VISUAL = VisualTokenizerConfig(image_size=SIDE, patch_size=4, codes=12, code_width=8, width=16, residual_blocks=1)
CONFIG = VisionStageConfig(visual=VISUAL, min_block=2)
STYLES: list[dict[str, Any]] = [
    {}, {"stem": "conv"}, {"positions": "absolute", "layer_scale": None}, {"experts": "one", "attention": "separate"},
]  # fmt: skip


def stage(model: dict[str, Any] | None = None, **changes: Any) -> VisionStage:
    task = VisionStage(vlmo(**(model or {})), replace(CONFIG, **changes))
    shake(task.head)
    return task.eval()


def pictures(count: int = 4, seed: int = 0) -> PictureBatch:
    return PictureBatch(uniform(count, 3, SIDE, SIDE, seed=seed) * 2 - 1, torch.arange(count) + 10)


def masks(count: int = 4) -> Tensor:
    drawn = [block_mask(4, 0.4, 2, 0.3, random.Random(seed).random) for seed in range(count)]
    return torch.stack(drawn).flatten(1)


@pytest.mark.parametrize("model", STYLES, ids=str)
def test_nothing_of_a_hidden_patch_reaches_the_scores(model: dict[str, Any]) -> None:
    task, hidden, one, other = stage(model), masks(), pictures(seed=0).pixels, pictures(seed=1).pixels
    behind = one - blanked(one, hidden)
    changed = blanked(one, hidden) + (other - blanked(other, hidden))
    assert not torch.equal(behind, changed - blanked(changed, hidden))
    assert torch.allclose(task.predict_codes(one, hidden).logits, task.predict_codes(changed, hidden).logits, atol=1e-6)
    seen_otherwise = blanked(other, hidden) + behind
    assert not torch.allclose(
        task.predict_codes(one, hidden).logits, task.predict_codes(seen_otherwise, hidden).logits, atol=1e-3
    )


@pytest.mark.parametrize("model", STYLES, ids=str)
def test_hidden_patches_are_told_apart_by_where_they_are(model: dict[str, Any]) -> None:
    task = stage(model)
    if task.model.positions is not None:
        torch.nn.init.normal_(task.model.positions.table)
    blank = torch.zeros(1, 3, SIDE, SIDE)
    logits = task.predict_codes(blank, masks(1)).logits
    assert torch.cdist(logits, logits).fill_diagonal_(1).min() > 1e-3


def test_the_targets_are_the_codes_of_the_whole_picture() -> None:
    task, batch, hidden = stage(), pictures(), masks()
    made = task.predict_codes(batch.pixels, hidden)
    assert torch.equal(made.codes, task.tokenizer.codes(batch.pixels).flatten(1)[hidden])
    assert made.logits.shape == (int(hidden.sum()), 12)


def test_model_and_tokenizer_see_the_picture_at_their_own_sizes() -> None:
    task, batch = stage(visual=replace(VISUAL, image_size=8, patch_size=2)), pictures()
    small = resized(batch.pixels, 8)
    assert small.shape == (4, 3, 8, 8)
    assert torch.allclose(small.mean((2, 3)), batch.pixels.mean((2, 3)), atol=0.05)
    hidden = masks()
    assert torch.equal(task.predict_codes(batch.pixels, hidden).codes, task.tokenizer.codes(small).flatten(1)[hidden])


def test_patches_and_codes_must_stand_for_the_same_squares() -> None:
    with pytest.raises(ValueError, match=r"4 × 4 patches, the visual tokenizer into 8 × 8"):
        stage(visual=replace(VISUAL, patch_size=2))


def test_a_picture_is_judged_alike_in_any_batch() -> None:
    task, batch = stage(), pictures()
    whole = task.predict(batch)
    (first, *_), counts = whole.masked, whole.masked.sum(1).tolist()
    alone = task.predict(PictureBatch(batch.pixels[2:3], batch.image_ids[2:3]))
    assert torch.equal(alone.masked[0], whole.masked[2])
    assert torch.allclose(alone.logits, whole.logits.split(counts)[2], atol=1e-5)
    assert torch.equal(alone.codes, whole.codes.split(counts)[2])
    assert not torch.equal(first, whole.masked[2]), "pictures have masks of their own"
    assert set(counts) == {6}


def test_masks_are_a_function_of_seed_and_step() -> None:
    task, batch = stage(), pictures()
    losses = {
        key: float(task(batch, Progress(step, 0.0, seed)).total.detach())
        for key, (seed, step) in {"a": (0, 1), "same": (0, 1), "seed": (1, 1), "step": (0, 2)}.items()
    }
    assert losses["a"] == losses["same"]
    assert len(set(losses.values())) == 3


@pytest.mark.parametrize("model", STYLES, ids=str)
def test_what_trains_is_what_the_loss_reaches(model: dict[str, Any]) -> None:
    task = stage(model).train()
    task(pictures(), Progress(0, 0.0)).total.backward()
    for name, weight in task.named_parameters():
        assert weight.requires_grad == (weight.grad is not None), name
    trains = {name for name, weight in task.named_parameters() if weight.requires_grad}
    parts = ("head.", "model.image.", "model.types.", "model.positions.", "model.norm.", "model.blocks.")
    assert all(name.startswith(parts) for name in trains)
    expert = "ffn" if model.get("experts") == "one" else "vision_ffn"
    assert not [name for name in trains if "ffn." in name and f".{expert}." not in name]
    assert not [name for name in trains if ".text_attention." in name]
    assert {f"model.blocks.3.{expert}.fc1.weight", "model.blocks.3.attention.qkv.weight"} <= trains


def test_the_measure_says_what_the_commonest_code_would_reach() -> None:
    task, batch = stage(), pictures()
    found = task(batch, Progress(0, 0.0)).measures
    hits, commonest = found["code_accuracy"], found["commonest_code"]
    assert float(hits.count) == float(commonest.count) == 24
    assert 1 / 12 <= float(commonest.mean) <= 1


def test_it_learns_to_guess() -> None:
    """Pictures of one colour: what is hidden is what is seen."""
    task = stage({"stem": "conv", "layer_scale": None}).train()
    colours = (uniform(6, 3, 1, 1, seed=5) * 4 - 2).repeat(5, 1, SIDE, SIDE)
    batch = PictureBatch(colours, torch.arange(30))
    optimizer = torch.optim.AdamW([weight for weight in task.parameters() if weight.requires_grad], lr=3e-3)
    for step in range(120):
        task(batch, Progress(step, 0.0)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = task.eval().predict(batch)
    accuracy = (made.logits.argmax(1) == made.codes).float().mean()
    commonest = (made.codes == made.codes.mode().values).float().mean()
    assert accuracy > commonest + 0.1


def test_people_see_what_was_hidden_and_what_was_guessed() -> None:
    task, batch = stage(), pictures(1)
    views = task.views(batch)
    assert list(views) == ["picture", "seen", "guessed"]
    assert torch.equal(views["seen"] == 0, blanked(batch.pixels, task.predict(batch).masked) == 0)
