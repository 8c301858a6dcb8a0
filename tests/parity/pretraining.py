"""ALBEF's pre-training as released, in a golden folder's state, with the folder's batch and recorded draws."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from diptych.checkpoints.convert import from_published
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING
from diptych.schema import AlbefPretrainConfig, Released
from diptych.tasks.albef_pretraining import AlbefPretraining
from diptych.tasks.pretraining import Draws
from diptych.types import Batch, Texts
from tests.parity.golden import Golden, albef_config, padded, read_tensors, special_ids

CONFIG = AlbefPretrainConfig(alpha_itc=1.0, alpha_mlm=1.0)
"""Alphas of 1 so that the weight given to `losses` is the case's own."""
RELEASED = Released(negatives_mask_after_softmax=True, keep_false_negatives=True, mask_special_tokens=True)


def build(folder: Path, keep_padding: bool = True, **changes: Any) -> AlbefPretraining:
    """The pre-training task in the folder's stored state."""
    sizes = json.loads((folder / "config.json").read_text())
    options = dataclasses.replace(CONFIG, queue_size=sizes["queue_size"], momentum=sizes["momentum"], **changes)
    task = AlbefPretraining(padded(Albef(albef_config(folder)), keep_padding), options, special_ids(folder), RELEASED)
    state, _ = from_published(read_tensors(folder / "state" / "pretrain.safetensors"), PUBLISHED_PRETRAINING)
    state |= {"queue.ids": task.queue.ids, "queue.filled": torch.tensor(sizes["queue_size"])}
    task.load_state_dict(state)
    return task


def batch_of(golden: Golden, image: str = "in.image") -> Batch:
    texts = Texts(golden["in.input_ids"], golden["in.attention_mask"].bool())
    return Batch(golden[image], texts, torch.arange(len(texts)))


def draws_of(golden: Golden) -> Draws:
    masked, labels = golden["in.masked_input_ids"], golden["in.mlm_labels"]
    uniform = torch.zeros(2, len(masked))
    return Draws(masked, labels, uniform, golden["in.neg_image_idx"], golden["in.neg_text_idx"])
