"""A pre-training step of both implementations, from the same weights and on the same batch.

The plain side pads texts as published; ours packs them. Dropout is off, so that both compute the same numbers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from benchmarks import machine
from diptych.schema import Recipe, SpecialIds
from diptych.task import Task
from diptych.tasks.pretraining import Draws
from diptych.train.optim import build_optimizer
from diptych.types import Batch, Progress, Texts, to_device

CAPTIONS = Path(__file__).with_name("captions.json")
SPECIAL = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
BATCH = 8
SIDES = ("plain", "ours")


@dataclass
class Pair(ABC):
    """Both implementations with the same weights, and one batch for them."""

    plain: nn.Module
    ours: Task
    batch: Batch
    draws: Draws
    recipe: ClassVar[Recipe]
    pad: ClassVar[int]
    """The length that the plain side pads texts to."""
    arguments: ClassVar[tuple[Any, ...]] = ()
    """Further arguments of the plain side's forward."""

    @abstractmethod
    def copy_weights(self) -> None:
        """Gives the library's model the weights of the plain one."""

    def to(self, device: torch.device | str) -> Self:
        """Moves both models, and gives the pair with its batch on the device."""
        batch, draws = to_device(self.batch, device), to_device(self.draws, device)
        return replace(self, plain=self.plain.to(device), ours=self.ours.to(device), batch=batch, draws=draws)


def initialise(plain: nn.Module) -> None:
    """Draws weights as BERT starts with, positions and class token included, but not those of momentum copies."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in plain.named_parameters():
        if parameter.ndim > 1 and not name.partition(".")[0].endswith("_m"):
            parameter.data.normal_(0, 0.02, generator=generator)


def texts(count: int, pad_to: int | None = None) -> Texts:
    """Returns the first captions, padded to the longest one or to `pad_to`. After the last one, the first follows."""
    ids = [entry["ids"] for entry in islice(cycle(json.loads(CAPTIONS.read_text())), count)]
    width = pad_to or max(map(len, ids))
    padded = torch.tensor([row + [SPECIAL.pad] * (width - len(row)) for row in ids])
    return Texts(padded, padded != SPECIAL.pad)


def batch(image_size: int, mask_probability: float, pairs: int = BATCH) -> tuple[Batch, Draws]:
    """Makes images of noise with the first captions, and takes neighbours as negatives."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(pairs, 3, image_size, image_size, generator=generator)
    captions, order = texts(pairs), torch.arange(pairs)
    masked_ids, labels = mask_words(captions, mask_probability, generator)
    draws = Draws(masked_ids, labels, torch.zeros(2, pairs), order.roll(1), order.roll(-1))
    return Batch(pixels, captions, order), draws


def mask_words(captions: Texts, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns ids in which words are replaced by [MASK], and the ids of these words, -100 elsewhere."""
    masked = torch.rand(captions.input_ids.shape, generator=generator) < probability
    masked &= captions.attention_mask & (captions.input_ids != SPECIAL.cls)
    return captions.input_ids.masked_fill(masked, SPECIAL.mask), captions.input_ids.masked_fill(~masked, -100)


def widen(ids: Tensor, width: int, fill: int) -> Tensor:
    """Pads ids to `width`."""
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=fill)


class Steps:
    """Takes training steps of either side: momentum encoder, forward, backward, optimiser."""

    def __init__(self, pair: Pair, sides: Sequence[str] = SIDES) -> None:
        self.pair, self.device = pair, pair.batch.pixels.device.type
        optim = replace(pair.recipe.optim, lr=1e-6)
        self.optimizers = {side: build_optimizer(getattr(pair, side), optim) for side in sides}

    def plain(self, bf16: bool = False, recorded: bool = False) -> list[float]:
        """Takes a step of the plain side and returns its losses. `recorded`: with the negatives of `batch`."""
        batch, draws, pad = self.pair.batch, self.pair.draws, self.pair.pad
        ids, mask = (widen(x, pad, 0) for x in (batch.texts.input_ids, batch.texts.attention_mask.long()))
        masked_ids, labels = widen(draws.masked_ids, pad, 0), widen(draws.labels, pad, -100)
        negatives = (draws.negative_image, draws.negative_text) if recorded else None
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            losses = self.pair.plain(batch.pixels, ids, mask, masked_ids, labels, *self.pair.arguments, negatives)
        losses.total.backward()
        self._move("plain")
        return [losses.itc.item(), losses.itm.item(), losses.mlm.item()]

    def ours(self, bf16: bool = False, recorded: bool = False) -> list[float]:
        """Takes a step of the library and returns its losses, weighted."""
        task = self.pair.ours
        task.before_step()
        draws = self.pair.draws if recorded else replace(self.pair.draws, negative_image=None, negative_text=None)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            losses = task(self.pair.batch, Progress(0, epoch=1.0), draws)
        losses.total.backward()
        self._move("ours")
        task.after_step(losses.carry)
        return [weight * term.mean.item() for weight, term in (losses.terms[name] for name in ("itc", "itm", "mlm"))]

    def _move(self, side: str) -> None:
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()


def compare(pair: Pair, name: str, title: str, allowed: str) -> dict[str, float]:
    """Times a step of both sides, and prints by how much their losses differ (in fp32 `allowed` is allowed)."""
    steps = Steps(pair)
    flops = {"plain": machine.flops(steps.plain), "ours": machine.flops(steps.ours)}
    pair.copy_weights()
    plain_losses, our_losses = steps.plain(recorded=True), steps.ours(recorded=True)
    pair.copy_weights()
    reference, half = steps.plain(recorded=True), steps.ours(bf16=True, recorded=True)
    times = machine.interleaved(
        {"plain fp32": steps.plain, "ours fp32": steps.ours, "ours bf16": lambda: steps.ours(bf16=True)}
    )
    difference = max(abs(a - b) for a, b in zip(plain_losses, our_losses, strict=True))
    relative = max(abs(a - b) / abs(a) for a, b in zip(reference, half, strict=True))
    print(f"{title}, {pair.batch.pixels.shape[-1]} px, batch {BATCH}; ITC, ITM, MLM {our_losses}")
    print(f"  losses differ by {difference:.1e} in fp32 (allowed {allowed}), by {relative:.2%} in bf16 (allowed 1 %)")
    return machine.report(name, flops, times)
