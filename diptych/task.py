"""The contract of a task: what the loop may call, and what a task may change when.

`before_step` and `after_step` are the only places where anything but the optimiser moves state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn

from diptych.types import Batch, Losses, Progress


class Task(nn.Module, ABC):
    """A model with its losses. Subclasses hold the model as `self.model`."""

    model: nn.Module

    def before_step(self) -> None:
        """Once an optimiser step, before its first forward: clamp the temperature, move the teacher."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """The losses of a batch. Changes nothing; random draws are a pure function of `progress` and the batch."""

    def after_step(self, carries: Iterable[Any]) -> None:
        """Once an optimiser step, with `Losses.carry` of each micro-batch: feed the queue."""
