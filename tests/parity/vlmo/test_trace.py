"""Twenty steps of VLMo's pre-training against the released code's: `trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.losses.masked_lm import IGNORED
from diptych.schema import VLMO_AS_RELEASED, OptimConfig, ScheduleConfig
from diptych.tasks.vlmo_pretraining import VlmoPretraining
from diptych.train.optim import build_optimizer, gradient_norm, learning_rate
from diptych.types import Progress
from tests.parity.golden import check_number
from tests.parity.vlmo.golden import Golden
from tests.parity.vlmo.stage3 import build_task, pairs, published, recorded, weighted


def run(task: VlmoPretraining, golden: Golden, told: dict[str, Any]) -> None:
    """The recorded steps, with what is recorded of each checked on the way."""
    settings = told["settings"]
    optim = OptimConfig(settings["learning_rate"], settings["weight_decay"], tuple(settings["betas"]), settings["eps"])
    power, end = float(settings["power"]), settings["end_lr"]
    schedule = ScheduleConfig("polynomial", settings["warmup_steps"], 0.0, end, power=power)
    optimizer = build_optimizer(task, optim, released=VLMO_AS_RELEASED)
    for at in told["steps"]:
        rate = learning_rate(at["step"], optim.lr, schedule, settings["max_steps"], 1)
        assert rate == pytest.approx(at["lr"][0], rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        task.before_step()
        group_name = f"pretrain/batch{at['batch']}"
        batch = pairs(golden, group_name)
        assert bool((golden[f"{group_name}/text_labels"] == IGNORED).all()), "plain texts have no hidden word"
        drawn = torch.tensor(at["neg_image_index"]), torch.tensor(at["neg_text_index"])
        losses = task(batch, Progress(step=0, epoch=0.0), recorded(golden, group_name, *drawn))
        optimizer.zero_grad()
        losses.total.backward()
        check_number(f"norm at step {at['step']}", gradient_norm(task.parameters(), None).item(), at["grad_norm"], 1e-4)
        optimizer.step()
        for name, value in weighted(losses).items():
            check_number(f"{name} at step {at['step']}", value.item(), at[name], 1e-4)


@pytest.mark.parametrize("keep_padding", [True, False])
def test_training_ends_where_the_released_code_ends(golden_vlmo: Path, keep_padding: bool) -> None:
    golden, told = Golden(golden_vlmo, "trace"), json.loads((golden_vlmo / "trace.json").read_text())["pretrain"]
    task = build_task(golden_vlmo, keep_padding)
    run(task, golden, told)
    final: dict[str, Tensor] = published(task, dict(task.named_parameters()))
    ends = golden.keys("pretrain/final/")
    assert ends
    for key in ends:
        golden.check(key, final[key.removeprefix("pretrain/final/")])
    norms = told["final_param_norms"]
    assert set(final) <= set(norms)
    for name, weight in final.items():
        check_number(name, weight.norm().item(), norms[name])
    assert set(golden.keys("pretrain/")) <= golden.used
