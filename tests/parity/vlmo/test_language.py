"""VLMo's language stage against the released code's: what trains, losses, gradients, ten steps of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.losses.masked_lm import IGNORED, masked_tokens
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.recipes.vlmo_stages import frozen_attention
from diptych.schema import VLMO_AS_RELEASED, LanguageStageConfig, OptimConfig, ScheduleConfig
from diptych.tasks.masked_language_modelling import LanguageStage, MaskedTexts
from diptych.train.freeze import freeze
from diptych.train.optim import build_optimizer, gradient_norm, learning_rate
from diptych.types import Progress, TextBatch
from tests.parity.golden import check_number, padded
from tests.parity.vlmo.golden import Golden, load_stage, manifest, read_texts, special_ids, vlmo_config

START = Progress(0, 0.0)


def build_task(folder: Path, keep_padding: bool = True) -> LanguageStage:
    """The task in the folder's stored state, frozen as recipes of the stage do it."""
    model = padded(Vlmo(vlmo_config(folder, "textmlm")), keep_padding)
    task = LanguageStage(model, LanguageStageConfig(), special_ids(folder), VLMO_AS_RELEASED)
    heads = ("image_proj", "text_proj", "vl_", "log_scale", "match_head")
    load_stage(task, folder, "textmlm", own=tuple(f"model.{head}" for head in heads))
    freeze(task, frozen_attention(model.config))
    return task


def batch(file: Golden, group: str) -> tuple[TextBatch, MaskedTexts]:
    """A group's texts, and the same with words hidden as they were."""
    rows = masked_tokens(file[f"{group}/text_labels_mlm"])
    return TextBatch(read_texts(file, group)), MaskedTexts(read_texts(file, group, masked=True), *rows)


def published(task: LanguageStage, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return to_published(ours, published_rules(task.model.config))


def test_what_trains_is_what_the_released_stage_trains(golden_vlmo: Path) -> None:
    told, task = manifest(golden_vlmo), build_task(golden_vlmo)
    named = dict(task.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    unreached = set(told["no_gradient"]["textmlm"])
    ours = set(published(task, trained))
    assert ours == set(told["textmlm_trainable"]) - unreached
    assert set(told["textmlm_frozen"]) <= set(published(task, named)) - ours


@pytest.mark.parametrize("keep_padding", [True, False])
def test_the_loss_and_its_gradients_are_the_released_ones(golden_vlmo: Path, keep_padding: bool) -> None:
    task, losses = build_task(golden_vlmo, keep_padding), Golden(golden_vlmo, "losses")
    texts, masked = batch(Golden(golden_vlmo, "inputs"), "textmlm")
    found = task(texts, START, masked)
    losses.check("textmlm/mlm_loss", found.total)
    found.total.backward()
    norms = manifest(golden_vlmo)["grad_norms"]["textmlm"]
    reached = {name: weight.grad for name, weight in task.named_parameters() if weight.grad is not None}
    ours = published(task, reached)
    assert set(ours) == {name for name in norms if name in manifest(golden_vlmo)["textmlm_trainable"]}
    for name, gradient in ours.items():
        check_number(name, gradient.norm().item(), norms[name])


def test_word_scores_are_the_released_ones(golden_vlmo: Path) -> None:
    losses = Golden(golden_vlmo, "losses")
    _, masked = batch(Golden(golden_vlmo, "inputs"), "textmlm")
    shape = masked.texts.input_ids.shape
    everywhere = replace(masked, rows=masked_tokens(torch.zeros(shape, dtype=torch.long))[0])
    with torch.no_grad():
        losses.check("textmlm/mlm_logits", build_task(golden_vlmo).word_logits(everywhere).view(*shape, -1))
        ours = build_task(golden_vlmo, keep_padding=False).word_logits(masked)
    at = masked.rows
    torch.testing.assert_close(ours, losses["textmlm/mlm_logits"][at.pair, at.position], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep_padding", [True, False])
def test_training_ends_where_the_released_code_ends(golden_vlmo: Path, keep_padding: bool) -> None:
    golden, told = Golden(golden_vlmo, "trace"), json.loads((golden_vlmo / "trace.json").read_text())["textmlm"]
    task = build_task(golden_vlmo, keep_padding)
    before = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    run(task, golden, told)
    after = dict(task.named_parameters())
    final = published(task, after)
    ends = golden.keys("textmlm/final/")
    assert ends
    for key in ends:
        golden.check(key, final[key.removeprefix("textmlm/final/")])
    for name, norm in told["final_param_norms"].items():
        if name in final:  # there is no table of text positions where they are relative
            check_number(name, final[name].norm().item(), norm)
    assert set(told["changed_parameters"]) <= set(final)
    moved = {name: value for name, value in after.items() if not torch.equal(value, before[name])}
    assert set(published(task, moved)) == set(told["changed_parameters"])
    assert set(golden.keys("textmlm/")) <= golden.used


def run(task: LanguageStage, golden: Golden, told: dict[str, Any]) -> None:
    """The recorded steps, with what is recorded of each checked on the way."""
    settings = told["settings"]
    optim = OptimConfig(settings["learning_rate"], settings["weight_decay"], tuple(settings["betas"]), settings["eps"])
    schedule = ScheduleConfig(
        "polynomial", settings["warmup_steps"], 0.0, settings["end_lr"], power=float(settings["power"])
    )
    optimizer = build_optimizer(task, optim, released=VLMO_AS_RELEASED)
    for at in told["steps"]:
        rate = learning_rate(at["step"], optim.lr, schedule, settings["max_steps"], 1)
        assert rate == pytest.approx(at["lr"][0], rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        group_name = f"textmlm/batch{at['batch']}"
        texts, masked = batch(golden, group_name)
        assert bool((golden[f"{group_name}/text_labels"] == IGNORED).all()), "plain texts have no hidden word"
        losses = task(texts, START, masked)
        optimizer.zero_grad()
        losses.total.backward()
        check_number(f"norm at step {at['step']}", gradient_norm(task.parameters(), None).item(), at["grad_norm"], 1e-4)
        optimizer.step()
        check_number(f"loss at step {at['step']}", losses.total.item(), at["total_loss"], 1e-4)
