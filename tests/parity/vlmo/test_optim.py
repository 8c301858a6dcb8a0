"""Which of VLMo's parameters decay and at what rate they learn: as released, and as repaired."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.checkpoints.convert import from_published
from diptych.models.vlmo import Vlmo
from diptych.nn.heads import classifier
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import DecayRule, OptimConfig, Released
from diptych.train.optim import build_optimizer
from tests.parity.golden import read_tensors
from tests.parity.vlmo.golden import STAGES, vlmo_config


@cache
def recorded(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "optimizer_groups.json").read_text())
    return content


def task_of(folder: Path, stage: str) -> nn.Module:
    """The stage's model, and a head where the stage has one."""
    config = vlmo_config(folder, stage)
    task = nn.Module()
    with torch.device("meta"):
        task.model = Vlmo(config)
        if stage in recorded(folder)["lr_mult"]:
            task.head = classifier(task.model.joint_width(config.images_per_text), 3, "gelu")
    return task


def our_names(folder: Path, stage: str) -> dict[str, str]:
    """Published name → ours, of what the stage has; what we drop is missing."""
    weights = read_tensors(folder / f"weights_{stage}.safetensors")
    return from_published(weights, published_rules(vlmo_config(folder, stage)))[1].loaded


def settings(task: nn.Module, folder: Path, stage: str, rule: DecayRule) -> dict[str, tuple[float, float]]:
    """Name → learning rate and decay."""
    told = recorded(folder)
    head_lr = float(told["lr_mult"].get(stage, 1))
    optim = OptimConfig(told["learning_rate"], told["weight_decay"], head_lr=head_lr)
    names = {id(value): name for name, value in task.named_parameters()}
    groups = build_optimizer(task, optim, released=Released(decay=rule)).param_groups
    return {
        names[id(one)]: (optim.lr * group["rate"], group["weight_decay"]) for group in groups for one in group["params"]
    }


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_learns_and_decays_as_released(golden_vlmo: Path, stage: str) -> None:
    ours = settings(task_of(golden_vlmo, stage), golden_vlmo, stage, "vlmo")
    stored, names = recorded(golden_vlmo)["parameters"][stage], our_names(golden_vlmo, stage)
    assert {name for name in stored if name not in names} <= {"text_embeddings.position_embeddings.weight"}
    for published, name in names.items():
        told = stored[published]
        assert ours[name] == pytest.approx((told["lr"], told["weight_decay"])), published
    if stage == "pretrain":
        assert set(ours) == set(names.values()), "the stage with all heads has every parameter"


@pytest.mark.parametrize("stage", STAGES)
def test_repaired_nothing_decays_but_what_multiplies(golden_vlmo: Path, stage: str) -> None:
    """Of the published names: weights of matrices and the patch convolution, no norm, factor, table or scale."""
    ours = settings(task_of(golden_vlmo, stage), golden_vlmo, stage, "repaired")
    spared = ("norm", "LayerNorm", "_embeddings", "gamma_", "_scale", "cls_token", "pos_embed", "table", "classifier.1")
    for published, name in our_names(golden_vlmo, stage).items():
        multiplies = published.endswith("weight") and not any(part in published for part in spared)
        assert bool(ours[name][1]) == multiplies, published
