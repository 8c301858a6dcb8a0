"""Computes losses and gradients in a process that has its share of one global batch, for test_pretraining.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diptych.train.distributed import World, global_losses, loss_share
from diptych.types import Batch, Claims, Phrases, Progress, Texts
from tests import tiny
from tests.traces import traced
from tests.worlds import mean_gradients

LENGTHS = (5, 9, 3, 7, 12, 4, 6, 2)
"""Lengths of the texts in the global batch. The longest one differs between the shares."""
IDS = (10, 11, 12, 13, 10, 15, 12, 17)
"""Image ids of the global batch. Some images return with another caption in another share."""
CLAIMS = tiny.claims(
    [[1], [2], [1, 2], [1], [3], [4], [5], [3]], [[1], [1, 2], [1, 2], [1, 3], [3, 2], [4], [5], [3, 1]]
)
"""What the texts of the global batch say, and what is known of its images: some texts are true of other images."""
PROGRESS = Progress(step=3, epoch=2.0, seed=5)

CASES: dict[str, dict[str, Any]] = {
    "all three losses": {},
    "absolute positions": {"model": {"positions": "absolute", "layer_scale": None}},
    "main branch": {"itc_branches": "main"},
    "vl branch": {"itc_branches": "vl"},
    "ITC alone": {"itm": 0.0, "mlm": 0.0},
    "ITM alone": {"itc": 0.0, "mlm": 0.0},
    "MLM alone": {"itc": 0.0, "itm": 0.0},
    "one word in eight texts": {"mask_probability": 0.001, "whole_words": False},
    "easy negatives": {"hard_negatives": False},
    "false negatives": {"keep_false_negatives": True},
    "known true texts": {"ignore_true_texts": True},
    "phrases": {"phrases": 0.5, "match_phrases": True},
    "align first": {"fuse_start": 10},
    "half of the pairs fused": {"fused_share": 0.5},
}
"""Changes of the task that leave its results independent of the number of processes."""
OWN = {"negatives": "own"}
RELEASED = {"gather_without_gradient": True}


@dataclass(frozen=True)
class StepResult:
    """Losses and gradients, averaged over the processes."""

    losses: dict[str, float]
    gradients: dict[str, Tensor]
    drawn: list[tuple[int, int]] = field(default_factory=list)
    """The images and texts, by their places in the global batch, that were drawn as this process's negatives."""
    width: int = 0
    """The padded length of this process's texts."""


def share_of(rank: int, size: int) -> Batch:
    """Returns this process's pairs of the global batch, padded to their own longest text."""
    whole, each = tiny.batch(LENGTHS, IDS), len(LENGTHS) // size
    rows = slice(rank * each, (rank + 1) * each)
    width = max(LENGTHS[rows])
    texts = Texts(whole.texts.input_ids[rows, :width], whole.texts.attention_mask[rows, :width])
    claims = Claims(CLAIMS.said[rows], CLAIMS.known[rows])
    return Batch(whole.pixels[rows], texts, whole.image_ids[rows], claims=claims, phrases=phrases_of(rows))


def phrases_of(rows: slice) -> Phrases:
    """Returns a phrase of two to four tokens for each text, which says what the text says first."""
    lengths = [2 + place % 3 for place in range(len(LENGTHS))]
    words, width = tiny.texts(lengths, seed=3), max(lengths[rows])
    texts = Texts(words.input_ids[rows, :width], words.attention_mask[rows, :width])
    return Phrases(texts, CLAIMS.said[rows, :1])


def step(rank: int, size: int, changes: dict[str, Any]) -> StepResult:
    task, batch = tiny.vlmo_pretraining(**changes), share_of(rank, size)
    losses = task(batch, PROGRESS)
    world = World(rank, size)
    loss_share(losses, world).backward()
    means = {name: term.mean.item() for name, (_, term) in global_losses(losses, world).terms.items()}
    trace, _ = traced(task, batch, PROGRESS)
    drawn = [] if trace.negatives is None else list(zip(*(part.tolist() for part in trace.negatives), strict=True))
    return StepResult(means, mean_gradients(task), drawn, batch.texts.input_ids.shape[1])


def dual_encoder(rank: int, size: int) -> StepResult:
    """Takes a step of retrieval without fusion, where every caption of an image is a positive, in any process."""
    task = tiny.retrieval(model={"system": "vlmo"}, keys="batch", queue_size=0, alpha=0.0, itm=0.0)
    batch = share_of(rank, size)
    losses, world = task(batch, PROGRESS), World(rank, size)
    loss_share(losses, world).backward()
    means = {name: term.mean.item() for name, (_, term) in global_losses(losses, world).terms.items()}
    return StepResult(means, mean_gradients(task))


def everything(rank: int, size: int) -> dict[str, Any]:
    """Computes all cases that the tests compare."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: step(rank, size, changes) for name, changes in CASES.items()}
    results |= {"own": step(rank, size, OWN), "released": step(rank, size, RELEASED)}
    results["dual encoder"] = dual_encoder(rank, size)
    return results
