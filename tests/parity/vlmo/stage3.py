"""VLMo's third stage as released, in a golden folder's state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import VLMO_AS_RELEASED, Released, VlmoPretrainConfig
from diptych.tasks.pretraining import Draws
from diptych.tasks.vlmo_pretraining import VlmoPretraining
from diptych.types import Batch, Losses, Texts
from tests.parity.golden import padded
from tests.parity.vlmo.golden import Golden, load_stage, special_ids, vlmo_config

TERMS = {"itc_loss": "itc", "itm_loss": "itm", "mlm_loss": "mlm"}
"""The folder's losses and ours."""


def build_task(
    folder: Path, keep_padding: bool = True, released: Released = VLMO_AS_RELEASED, **changes: Any
) -> VlmoPretraining:
    """The task in the folder's stored state."""
    model = padded(Vlmo(vlmo_config(folder)), keep_padding)
    task = VlmoPretraining(model, VlmoPretrainConfig(**changes), special_ids(folder), released)
    load_stage(task, folder, "pretrain")
    return task


def pairs(file: Golden, group: str, rows: slice = slice(None)) -> Batch:
    """Some of a group's pairs, each of a picture of its own."""
    texts = Texts(file[f"{group}/text_ids"][rows], file[f"{group}/text_masks"][rows].bool())
    return Batch(file[f"{group}/image"][rows], texts, torch.arange(len(file[f"{group}/image"]))[rows])


def recorded(
    file: Golden, group: str, negative_image: Tensor, negative_text: Tensor, rows: slice = slice(None)
) -> Draws:
    """The masking of a group, and the negatives that were drawn."""
    masked, labels = file[f"{group}/text_ids_mlm"][rows], file[f"{group}/text_labels_mlm"][rows]
    return Draws(masked, labels, torch.zeros(2, len(masked)), negative_image, negative_text)


def weighted(losses: Losses) -> dict[str, Tensor]:
    """The terms as the folder has them, which is times their weights, and their sum."""
    found = {name: losses.terms[term][0] * losses.terms[term][1].mean for name, term in TERMS.items()}
    return found | {"total_loss": losses.total}


def gradients(task: VlmoPretraining, loss: Tensor) -> dict[str, Tensor]:
    """Of one loss, by published names; of what it does not reach, zeros."""
    task.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return published(task, {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in task.named_parameters()})


def published(task: VlmoPretraining, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return to_published(ours, published_rules(task.model.config))
