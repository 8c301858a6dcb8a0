"""The released learning rates and distillation weights at every step; our own schedule beside them."""

from __future__ import annotations

import json
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from diptych.losses.distillation import alpha_at
from diptych.schema import ALBEF_AS_RELEASED, ScheduleConfig
from diptych.train.optim import learning_rate


def runs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "schedule.json").read_text())["runs"]
    assert found
    return found


def test_the_released_learning_rate_at_every_step(golden_albef: Path) -> None:
    for run in runs(golden_albef):
        args = run["args"]
        schedule = ScheduleConfig("cosine", 100 * args["warmup_epochs"], args["warmup_lr"], args["min_lr"])
        expected = [*chain.from_iterable(repeat(*pair) for epoch in run["epochs"] for pair in epoch["lr_runs"])]
        total = args["epochs"] * args["steps_per_epoch"]
        assert len(expected) == total
        per_epoch = args["steps_per_epoch"]
        rates = [learning_rate(s, args["lr"], schedule, total, per_epoch, ALBEF_AS_RELEASED) for s in range(total)]
        assert rates == pytest.approx(expected, rel=1e-12)


def test_the_released_distillation_weight(golden_albef: Path) -> None:
    for run in runs(golden_albef):
        args = run["args"]
        for number, epoch in enumerate(run["epochs"]):
            at = [alpha_at(number + i / args["steps_per_epoch"], args["alpha"]) for i in range(args["steps_per_epoch"])]
            assert at[:3] == pytest.approx(epoch["alpha_first3"], abs=1e-15)
            assert at[-1] == pytest.approx(epoch["alpha_last"], abs=1e-15)


def test_cosine_warms_up_linearly_and_ends_at_its_least_rate() -> None:
    schedule = ScheduleConfig("cosine", warmup_steps=10, warmup_lr=1e-5, min_lr=2e-5)
    rates = [learning_rate(step, 1e-3, schedule, 100, 7) for step in range(100)]
    assert rates[0] == 1e-5
    assert rates[5] == pytest.approx((1e-5 + 1e-3) / 2)
    assert rates[10] == pytest.approx(1e-3)
    assert max(rates) == rates[10]
    assert rates[99] == pytest.approx(2e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
