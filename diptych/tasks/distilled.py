"""What tasks with a momentum teacher share (ALBEF §3.3), and those of them with a head of their own."""

from __future__ import annotations

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
"""Of the tasks that are used by a head of their own."""


class DistilledTask(Task):
    """A task with a momentum teacher, whose parts are its children called `teacher…`."""

    config: AlbefPretrainConfig | RetrievalConfig | HeadConfig

    def train(self, mode: bool = True) -> DistilledTask:
        """The teacher stays in evaluation mode: no dropout in its targets (docs/released_code.md, defect 3)."""
        super().train(mode)
        for name, part in self.named_children():
            if name.startswith("teacher"):
                part.train(mode and self.released.momentum_encoder_dropout)
        return self


class TaughtTask(DistilledTask):
    """A model that fuses, a head on what it gives and, unless `alpha` is 0, a teacher of both."""

    model: Model
    head: nn.Module
    teacher: Model | None
    teacher_head: nn.Module | None
    config: HeadConfig

    @classmethod
    def trained(cls, config: HeadConfig) -> tuple[str, ...]:
        return "fuse", "pooled"

    def __init__(self, model: Model, head: nn.Module, config: HeadConfig, released: Released = Released()) -> None:
        super().__init__()
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.model, self.head, self.config, self.released = model, head, config, released
        spared = model.parts_unused_by(*self.trained(config), "pooled")
        self.teacher = momentum_copy(model, without=spared) if config.alpha else None
        self.teacher_head = momentum_copy(head) if config.alpha else None
        self.train()

    def before_step(self) -> None:
        """Released: after the student's forward and before the teacher's, between which the student does not change."""
        if self.teacher is not None and self.teacher_head is not None:
            move_towards(self.teacher, self.model, self.config.momentum)
            move_towards(self.teacher_head, self.head, self.config.momentum)
