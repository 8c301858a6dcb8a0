"""Runs of every task with a small ALBEF or VLMo that is sure of what it says, saved as training saves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from diptych.catalog import build_task
from diptych.checkpoints.store import CheckpointState, save_checkpoint
from diptych.data.tokenizer import Tokenizer
from diptych.schema import (
    AlbefPretrainConfig,
    EntailmentConfig,
    EvaluationConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    TaskConfig,
    TextAssignmentConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import to_dict
from diptych.task import Task
from tests import tiny

TEXTS = ["a red fox left of a car", "two dogs on the beach", "a boat", "a small bird above a tree"]
ANSWERS = ("yes", "no", "two", "a red fox")
WORDS = Tokenizer.train([*TEXTS, *ANSWERS, "is what there how many"], size=120)
TASK_CONFIGS: dict[str, TaskConfig] = {
    "pretraining": AlbefPretrainConfig(queue_size=6),
    "retrieval": RetrievalConfig(queue_size=6),
    "grounding": GroundingTrainingConfig(queue_size=6, boxes=GroundingConfig(layer=3, threshold=0.8)),
    "entailment": EntailmentConfig(),
    "nlvr2": Nlvr2Config(),
    "assignment": TextAssignmentConfig(),
    "closed": VqaClosedSetConfig(answers=ANSWERS, alpha=0.4),
    "decoder": VqaDecoderConfig(decoder=tiny.DECODER, answers=ANSWERS),
    "writer": VqaDecoderConfig(decoder=tiny.DECODER, max_answer_tokens=5),
}


def recipe_of(config: TaskConfig, system: str = "albef") -> Recipe:
    """Batches of three, so that few inputs make several."""
    images = 2 if isinstance(config, Nlvr2Config | TextAssignmentConfig) else 1
    model = (
        tiny.albef_config(images_per_text=images, max_positions=64)
        if system == "albef"
        else replace(tiny.VLMO, max_positions=64, images_per_text=images)
    )
    return Recipe("test", model, config, evaluation=EvaluationConfig(rerank=4, batch_size=3))


def trained(kind: str, system: str = "albef") -> Task:
    """A task that is sure of what it says."""
    task = build_task(recipe_of(_config(kind, system), system), WORDS)
    for seed, module in enumerate((task.model, getattr(task, "head", None), getattr(task, "momentum_encoder", None))):
        if module is not None:
            for _ in range(3):
                tiny.shake(module, seed)
    if system == "albef":
        torch.nn.init.constant_(task.model.temp, 0.2)  # type: ignore[arg-type]
    return task.eval()


def save_run(place: Path, kind: str, system: str = "albef") -> Path:
    """The run folder of a kind of task."""
    recipe = recipe_of(_config(kind, system), system)
    if isinstance(recipe.task, VqaDecoderConfig) and not recipe.task.answers:
        recipe = replace(recipe, task=replace(recipe.task, inference="rank"))
    content = CheckpointState(trained(kind, system).state_dict(), {}, {"step": 1}, to_dict(recipe), WORDS.save)
    save_checkpoint(place / "checkpoints", 1, content)
    return place


def save_family(place: Path, system: str = "albef") -> Path:
    """A pre-trained run with a run of each task below it, as a demonstration leaves them."""
    for name, kind in {
        "retrieval": "retrieval",
        "entailment": "entailment",
        "vqa": "decoder",
        "vqa_closed": "closed",
        "nlvr2": "nlvr2",
        "grounding": "grounding",
    }.items():
        save_run(place / "tasks" / name, kind, system)
    return save_run(place, "pretraining", system)


def _config(kind: str, system: str) -> TaskConfig:
    return VlmoPretrainConfig() if (kind, system) == ("pretraining", "vlmo") else TASK_CONFIGS[kind]
