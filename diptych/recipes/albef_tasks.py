"""Fine-tuning ALBEF for the five tasks, at the published size and at the demo's."""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes.albef import albef_tiny
from diptych.schema import (
    DecoderConfig,
    EntailmentConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    OptimConfig,
    Recipe,
    RetrievalConfig,
    RunConfig,
    ScheduleConfig,
    TaskConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)


def _tiny(name: str, task: TaskConfig, steps: int, lr: float = 5e-4, images_per_text: int = 1) -> Recipe:
    """A task of the demo's model, started from its checkpoint."""
    tiny = albef_tiny()
    return replace(
        tiny,
        name=name,
        model=replace(tiny.model, images_per_text=images_per_text),
        task=task,
        optim=OptimConfig(lr=lr),
        schedule=ScheduleConfig(warmup_steps=100, warmup_lr=1e-5, min_lr=1e-5),
        run=RunConfig(steps=steps, batch_size=64, log_every=25, validate_every=500, checkpoint_every=500),
        init_from="runs/demo",
    )


def albef_tiny_retrieval() -> Recipe:
    return _tiny("albef_tiny_retrieval", RetrievalConfig(queue_size=1024, momentum=0.98), 1000)


def albef_tiny_grounding() -> Recipe:
    task = GroundingTrainingConfig(queue_size=1024, momentum=0.98, boxes=GroundingConfig(layer=2))
    return _tiny("albef_tiny_grounding", task, 1000)


def albef_tiny_entailment() -> Recipe:
    return _tiny("albef_tiny_entailment", EntailmentConfig(alpha=0.0), 3000)


def albef_tiny_vqa() -> Recipe:
    decoder = DecoderConfig(layers=2, heads=4, intermediate=512, norm="pre", dropout=0.0)
    return _tiny("albef_tiny_vqa", VqaDecoderConfig(decoder=decoder, alpha=0.0, answer_count=200), 3000)


def albef_tiny_vqa_closed() -> Recipe:
    return _tiny("albef_tiny_vqa_closed", VqaClosedSetConfig(answer_count=200), 3000)


def albef_tiny_assignment() -> Recipe:
    return _tiny("albef_tiny_assignment", TextAssignmentConfig(), 1000, images_per_text=2)


def albef_tiny_nlvr2() -> Recipe:
    nlvr2 = _tiny("albef_tiny_nlvr2", Nlvr2Config(alpha=0.0), 3000, images_per_text=2)
    return replace(nlvr2, init_from="runs/albef_tiny_assignment")
