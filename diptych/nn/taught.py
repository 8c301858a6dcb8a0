"""What tasks with a head of their own share: a momentum teacher of model and head (ALBEF §3.3)."""

from __future__ import annotations

from torch import nn

from diptych.nn.momentum import momentum_copy, move_towards
from diptych.schema import EntailmentConfig, Nlvr2Config, VqaClosedSetConfig, VqaDecoderConfig
from diptych.task import Model, Task


class TaughtTask(Task):
    """A model that fuses, a head on what it gives and, unless `alpha` is 0, a teacher of both."""

    model: Model
    head: nn.Module
    teacher: Model | None
    teacher_head: nn.Module | None
    config: EntailmentConfig | Nlvr2Config | VqaDecoderConfig | VqaClosedSetConfig

    def __init__(
        self,
        model: Model,
        head: nn.Module,
        config: EntailmentConfig | Nlvr2Config | VqaDecoderConfig | VqaClosedSetConfig,
    ) -> None:
        super().__init__()
        unused = model.unused("fuse")
        model.freeze(unused)
        self.model, self.head, self.config = model, head, config
        self.teacher = momentum_copy(model, without=unused) if config.alpha else None
        self.teacher_head = momentum_copy(head) if config.alpha else None
        self.train()

    def train(self, mode: bool = True) -> TaughtTask:
        """The teacher stays in evaluation mode: no dropout in its targets (`teacher_dropout`: as released)."""
        super().train(mode)
        for part in (self.teacher, self.teacher_head):
            if part is not None:
                part.train(mode and self.config.teacher_dropout)
        return self

    def before_step(self) -> None:
        """Released: after the student's forward and before the teacher's, between which the student does not change."""
        if self.teacher is not None and self.teacher_head is not None:
            move_towards(self.teacher, self.model, self.config.momentum)
            move_towards(self.teacher_head, self.head, self.config.momentum)
