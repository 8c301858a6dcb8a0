"""Runs one pre-training step and returns its intermediate tensors beside its losses."""

from __future__ import annotations

from typing import Any

from diptych.tasks.pretraining import Draws
from diptych.types import Batch, Losses, Progress

FIRST = Progress(step=0, epoch=0.0)


def traced(task: Any, batch: Batch, progress: Progress = FIRST, draws: Draws | None = None) -> tuple[Any, Losses]:
    """Returns the trace (AlbefTrace or VlmoTrace) and the losses of a step."""
    traces: list[Any] = []
    losses = task(batch, progress, draws, traces)
    (trace,) = traces
    return trace, losses
