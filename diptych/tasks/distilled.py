"""Base classes of the tasks that learn from a momentum encoder as well as from labels (ALBEF §3.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from diptych.nn.momentum import momentum_copy, move_towards
from diptych.schema import (
    AlbefPretrainConfig,
    EntailmentConfig,
    Nlvr2Config,
    Released,
    RetrievalConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.task import Model, Task

HeadConfig = EntailmentConfig | Nlvr2Config | VqaDecoderConfig | VqaClosedSetConfig
"""Configurations of the tasks that are used through a head of their own."""


class DistilledTask(Task):
    """A task with a momentum encoder and perhaps a momentum copy of its head: children whose names begin with
    `momentum_`."""

    config: AlbefPretrainConfig | RetrievalConfig | HeadConfig

    def train(self, mode: bool = True) -> DistilledTask:
        """Keeps the momentum encoder in evaluation mode, so that no dropout enters its pseudo-targets.

        The released code lets it follow the model's mode (docs/released_code.md, defect 3).
        """
        super().train(mode)
        for name, part in self.named_children():
            if name.startswith("momentum_"):
                part.train(mode and self.released.momentum_encoder_dropout)
        return self


class DistilledHeadTask(DistilledTask):
    """A fusion encoder with a head on its output and, unless `alpha` is 0, momentum copies of both."""

    model: Model
    head: nn.Module
    momentum_encoder: Model | None
    momentum_head: nn.Module | None
    config: HeadConfig

    @classmethod
    def trained(cls, config: HeadConfig) -> tuple[str, ...]:
        return "fuse", "pooled"

    @classmethod
    def for_use(cls, config: Any) -> Any:
        return replace(config, alpha=0.0)

    def __init__(self, model: Model, head: nn.Module, config: HeadConfig, released: Released = Released()) -> None:
        super().__init__()
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.model, self.head, self.config, self.released = model, head, config, released
        spared = model.parts_unused_by(*self.trained(config), "pooled")
        self.momentum_encoder = momentum_copy(model, without=spared) if config.alpha else None
        self.momentum_head = momentum_copy(head) if config.alpha else None
        self.train()

    def before_step(self) -> None:
        """Updates the momentum copies.

        The released code does so between the forward of the model and that of its momentum copy; the model does not
        change in between, so the result is the same.
        """
        if self.momentum_encoder is not None and self.momentum_head is not None:
            move_towards(self.momentum_encoder, self.model, self.config.momentum)
            move_towards(self.momentum_head, self.head, self.config.momentum)
