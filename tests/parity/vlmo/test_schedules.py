"""The released learning rates of VLMo at every step, of the model and of a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.schema import ScheduleConfig
from diptych.train.optim import learning_rate


def schedule_of(run: dict[str, Any]) -> ScheduleConfig:
    """A recorded run's. Warm-up is a share if it is written with a point, else a number of steps."""
    share = isinstance(run["warmup_steps"], float)
    power = run["decay_power"]
    cosine = power == "cosine"
    return ScheduleConfig(
        "cosine_to_zero" if cosine else "linear" if power == 1 else "polynomial",
        warmup_steps=0 if share else run["warmup_steps"],
        warmup_share=run["warmup_steps"] if share else None,
        warmup_lr=0.0,
        min_lr=float(run["end_lr"]),
        power=1.0 if cosine else float(power),
    )


def test_the_released_learning_rate_at_every_step(golden_vlmo: Path) -> None:
    runs = json.loads((golden_vlmo / "lr_schedules.json").read_text())
    assert runs
    for run in runs:
        schedule = schedule_of(run)
        ours = [
            learning_rate(s, run["learning_rate"], schedule, run["max_steps"], 7) for s in range(len(run["base_lr"]))
        ]
        assert ours == pytest.approx(run["base_lr"], rel=1e-12, abs=1e-18)
        assert [rate * run["lr_mult"] for rate in ours] == pytest.approx(run["head_lr"], rel=1e-12, abs=1e-17)


def test_the_rates_of_the_recorded_trainings(golden_vlmo: Path) -> None:
    """All groups of a run without a new head learn at one rate."""
    for run in json.loads((golden_vlmo / "trace.json").read_text()).values():
        settings = run["settings"]
        warmup, end, power = settings["warmup_steps"], settings["end_lr"], float(settings["power"])
        schedule = ScheduleConfig("polynomial", warmup, 0.0, end, power=power)
        for step in run["steps"]:
            ours = learning_rate(step["step"], settings["learning_rate"], schedule, settings["max_steps"], 7)
            assert step["lr"] == pytest.approx([ours] * len(step["lr"]), rel=1e-12)


def test_a_share_of_the_run_may_be_warm_up() -> None:
    for kind in ("cosine", "linear", "polynomial", "cosine_to_zero"):
        of_share, of_steps = ScheduleConfig(kind, warmup_share=0.25), ScheduleConfig(kind, warmup_steps=10)
        for step in range(40):
            assert learning_rate(step, 1.0, of_share, 40, 7) == learning_rate(step, 1.0, of_steps, 40, 7)


def test_a_linear_schedule_is_a_polynomial_of_power_one() -> None:
    one, other = ScheduleConfig("linear", 3), ScheduleConfig("polynomial", 3)
    for step in range(20):
        assert learning_rate(step, 1.0, one, 20, 7) == learning_rate(step, 1.0, other, 20, 7)
    assert learning_rate(12, 1.0, ScheduleConfig("polynomial", 3, power=3.0), 20, 7) < learning_rate(
        12, 1.0, other, 20, 7
    )
