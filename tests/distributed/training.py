"""Takes steps of a run in a process of several, for test_training.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.data.loader import Loaded
from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.nn.shards import own_part
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.schema import (
    Recipe,
    VisionStageConfig,
    VisualTokenizerConfig,
    VisualTokenizerTrainingConfig,
)
from diptych.task import Task
from diptych.tasks.masked_image_modelling import VisionStage
from diptych.tasks.visual_tokenizer import VisualTokenizerTraining
from diptych.train.distributed import World
from diptych.train.guard import StopSignals
from diptych.train.loop import Stepper
from diptych.train.optim import build_optimizer
from diptych.train.parallel import ParallelTask
from diptych.train.state import Plan, RunState
from diptych.train.watch import Watch
from diptych.types import Batch, Claims, PictureBatch, TextBatch, Texts
from tests import tiny
from tests.distributed.equality import CLAIMS, IDS, LENGTHS, phrases_of

STEPS = 2
CUT_FIRST = (6, 2)
"""The pairs of each of two processes that share a batch unequally."""


def vision_stage() -> VisionStage:
    visual = VisualTokenizerConfig(
        image_size=tiny.VLMO.image_size, patch_size=tiny.VLMO.patch_size, codes=12, code_width=8, width=8
    )
    torch.manual_seed(0)
    task = VisionStage(tiny.vlmo(drop_path=0.3), VisionStageConfig(visual=visual, min_block=1))
    tiny.shake(task)
    return task


def visual_tokenizer() -> VisualTokenizerTraining:
    torch.manual_seed(0)
    model = VisualTokenizer(VisualTokenizerConfig(image_size=16, patch_size=4, codes=12, code_width=8, width=8))
    return VisualTokenizerTraining(model, VisualTokenizerTrainingConfig(kl=0.1))


TASKS: dict[str, Any] = {
    "albef": lambda: tiny.pretraining(model={"dropout": 0.2}),
    "albef, uniform negatives": lambda: tiny.pretraining(hard_negatives=False, keep_false_negatives=True),
    "albef, known true texts": lambda: tiny.pretraining(ignore_true_texts=True),
    "albef, phrases": lambda: tiny.pretraining(phrases=0.5, match_phrases=True, model={"dropout": 0.2}),
    "vlmo, phrases": lambda: tiny.vlmo_pretraining(phrases=0.5, match_phrases=True, model={"dropout": 0.2}),
    "albef, align first": lambda: tiny.pretraining(fuse_start=10, momentum_start=1),
    "vlmo": lambda: tiny.vlmo_pretraining(model={"dropout": 0.2, "drop_path": 0.3}),
    "language stage": lambda: tiny.language_stage(model={"dropout": 0.2, "drop_path": 0.3}),
    "vision stage": vision_stage,
    "visual tokenizer": visual_tokenizer,
    "retrieval": lambda: tiny.retrieval(model={"dropout": 0.2}, itm=0.0),
}
ALONE: dict[str, dict[str, Any]] = {
    "alone": {},
    "alone, in pieces": {"optim.accumulate": 4},
    "alone, blocks again": {"run.activation_checkpointing": True},
}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, in pieces": {"optim.accumulate": 2},
    "fsdp": {"run.parallel": "fsdp"},
    "fsdp, in pieces, blocks again": {
        "run.parallel": "fsdp", "optim.accumulate": 2, "run.activation_checkpointing": True
    },
}  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """The results of some steps."""

    losses: list[dict[str, float]]
    measures: dict[str, float]
    norms: list[float]
    gradients: dict[str, Tensor]
    """The whole gradients of the first step."""
    weights: dict[str, Tensor]
    """The task's state after the last step, with momentum encoder and queue."""


def rows_of(task: Task, rows: slice) -> Any:
    """Returns a share of the global batch, padded to its own longest text."""
    whole, width = tiny.batch(LENGTHS, IDS), max(LENGTHS[rows])
    texts = Texts(whole.texts.input_ids[rows, :width], whole.texts.attention_mask[rows, :width])
    if isinstance(task, VisionStage | VisualTokenizerTraining):
        size = task.model.config.image_size
        pixels = torch.nn.functional.interpolate(whole.pixels, size=(size, size))
        return PictureBatch(pixels[rows], whole.image_ids[rows])
    if type(task).__name__ == "LanguageStage":
        return TextBatch(texts)
    claims = Claims(CLAIMS.said[rows], CLAIMS.known[rows])
    return Batch(whole.pixels[rows], texts, whole.image_ids[rows], claims=claims, phrases=phrases_of(rows))


def recipe_of(changes: dict[str, Any]) -> Recipe:
    base = {"run.steps": 10, "run.batch_size": 8, "run.seed": 5, "optim.lr": 1e-3, "optim.clip": 5.0}
    return override(albef_tiny(), {**base, "optim.kind": "adamw", "schedule.warmup_steps": 0, **changes})


def steps(name: str, rank: int, size: int, changes: dict[str, Any], shares: tuple[int, ...] | None = None) -> Steps:
    task, recipe = TASKS[name](), recipe_of(changes)
    recipe = replace(recipe, task=task.config)
    task.train()
    shares = shares or (len(LENGTHS) // size,) * size
    first = sum(shares[:rank])
    batch = rows_of(task, slice(first, first + shares[rank]))
    world = World(rank, size)
    parallel = ParallelTask.of(task, recipe, world)
    parameters = parallel.parameters()
    optimizer = build_optimizer(task, recipe.optim, parameters)
    plan = Plan.of(recipe, steps_per_epoch=2)
    stepper = Stepper(parallel, parameters, optimizer, plan, recipe, Watch(World(), 60.0), StopSignals())
    gradients: dict[str, Tensor] = {}

    def note(*_: Any) -> None:
        if not gradients:
            gradients.update({name: value.grad.clone() for name, value in parameters.items() if value.grad is not None})

    optimizer.register_step_pre_hook(note)
    state, reports = RunState(step=3), []
    for _ in range(STEPS):
        reports.append(stepper.step(_always(batch), state))
        state = state.after_step(reports[-1].pairs, 0.0)
    return Steps(
        [{key: float(term.mean) for key, (_, term) in report.losses.terms.items()} for report in reports],
        {key: float(term.mean) for key, term in reports[0].losses.measures.items()},
        [float(report.gradient_norm) for report in reports],
        {key: whole(value, dict(task.named_parameters())[key]) for key, value in gradients.items()},
        {key: whole(own_part(value), value).clone() for key, value in task.state_dict().items()},
    )


def _always(batch: Any) -> Iterator[Loaded]:
    while True:
        yield Loaded(batch, (), (), 0)


def whole(part: Tensor, like: Tensor) -> Tensor:
    """Puts a tensor together from the shards of all processes, which all must call this."""
    if not hasattr(like, "placements") or not part.ndim:
        return part.detach()
    rows = like.shape[0]
    each = -(-rows // dist.get_world_size())
    padded = torch.zeros(each, *part.shape[1:], dtype=part.dtype)
    padded[: len(part)] = part.detach()
    places = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(places, padded)
    return torch.cat(places)[:rows]


def everything(rank: int, size: int) -> dict[tuple[str, str], Steps]:
    torch.set_num_threads(1)
    ways = {1: ALONE, 2: WAYS, 4: {way: changes for way, changes in WAYS.items() if "in pieces" in way}}[size]
    results = {(name, way): steps(name, rank, size, changes) for name in TASKS for way, changes in ways.items()}
    if size < 4:
        results["vlmo", "muon"] = steps("vlmo", rank, size, {"optim.kind": "muon", "optim.accumulate": size})
    if size == 2:
        for name in TASKS:
            results[name, "unequal shares"] = steps(name, rank, size, {}, shares=CUT_FIRST)
    return results
