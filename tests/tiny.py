"""A small ALBEF, small batches and random numbers for tests that need a whole model but none of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.models.albef import Albef, AlbefPretraining
from diptych.schema import AlbefConfig, AlbefPretrainConfig, SpecialIds, TextConfig, VisionConfig
from diptych.types import Batch, Texts

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
SIDE, PATCHES, VOCABULARY, POSITIONS = 16, 16, 40, 12

VISION = VisionConfig(image_size=SIDE, patch_size=4, width=16, depth=2, heads=2)
TEXT = TextConfig(
    vocab_size=VOCABULARY, width=24, layers=4, fusion_start=2, heads=3, intermediate=32, max_positions=POSITIONS,
    dropout=0.0,
)  # fmt: skip
VARIANTS = [("post", "patch"), ("pre", "conv")]
"""Places of the norms, kinds of stem."""


def albef_config(norm: str = "post", stem: str = "patch", keep_padding: bool = False, **text: Any) -> AlbefConfig:
    """Image width, text width and embedding width all differ, so that no mix-up fits."""
    vision = replace(VISION, stem=stem)
    return AlbefConfig(vision, replace(TEXT, norm=norm, **text), embed_dim=8, keep_padding=keep_padding)


def shake(module: nn.Module, seed: int = 0) -> None:
    """Biases off 0 and norms off 1: what a zero would hide shows."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name != "temp" and not name.endswith(".temp"):
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=0.1)


def albef(seed: int = 0, **changes: Any) -> Albef:
    torch.manual_seed(seed)
    model = Albef(albef_config(**changes))
    shake(model, seed)
    return model.eval()


def pretraining(seed: int = 0, model: dict[str, Any] | None = None, **changes: Any) -> AlbefPretraining:
    """A task whose teacher is not the student, and whose queue is half full."""
    config = replace(AlbefPretrainConfig(queue_size=6, mask_probability=0.4), **changes)
    task = AlbefPretraining(albef(seed, **(model or {})), config, SPECIAL)
    shake(task.teacher, seed + 1)
    if config.queue_size:
        image, text = nn.functional.normalize(uniform(2, 3, 8, seed=seed) - 0.5, dim=-1)
        task.queue.push(image, text, torch.tensor([100, 101, 102]))
    return task


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def texts(lengths: Sequence[int], seed: int = 0) -> Texts:
    """[CLS] and ordinary words, `lengths` tokens in all."""
    words = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    words[:, 0] = SPECIAL.cls
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Texts(words.masked_fill(~mask, SPECIAL.pad), mask)


def padded(given: Texts, length: int) -> Texts:
    """The same texts in wider storage. The ids there are words: only the mask may decide what is padding."""
    more = length - given.input_ids.shape[1]
    ids = nn.functional.pad(given.input_ids, (0, more), value=7)
    return Texts(ids, nn.functional.pad(given.attention_mask, (0, more)))


def batch(lengths: Sequence[int] = (5, 9, 3, 7), ids: Sequence[int] = (10, 11, 12, 13), seed: int = 0) -> Batch:
    return Batch(uniform(len(lengths), 3, SIDE, SIDE, seed=seed) * 2 - 1, texts(lengths, seed), torch.tensor(ids))
