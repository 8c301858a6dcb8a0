"""ALBEF at the paper's size: a pre-training step and re-ranking, beside the plain procedure.

    python -m benchmarks.albef pretrain | memory | rerank

Both sides start from the same weights and read the same committed captions (8 to 18 tokens, mean 13). The plain side
pads texts to 25 tokens (for re-ranking 30), as published. Dropout is off, so that both compute the same numbers.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import machine, steps
from benchmarks.plain import PlainAlbef
from benchmarks.steps import BATCH, SPECIAL, Steps
from diptych.checkpoints.convert import from_published
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING
from diptych.recipes.albef import albef_base
from diptych.schema import AlbefConfig
from diptych.tasks.albef_pretraining import AlbefPretraining

ALPHA, PAD_RERANKING = 0.4, 30
RECIPE = albef_base()
CONFIG = replace(RECIPE.model, text=replace(RECIPE.model.text, dropout=0.0))


@dataclass
class Pair(steps.Pair):
    """Both ALBEFs."""

    plain: PlainAlbef
    ours: AlbefPretraining
    recipe = RECIPE
    pad = 25
    arguments = (ALPHA,)

    @classmethod
    def build(cls, config: AlbefConfig = CONFIG, pairs: int = BATCH) -> Pair:
        """Builds both sides with equal weights."""
        torch.manual_seed(0)
        ours = AlbefPretraining(Albef(config), RECIPE.task, SPECIAL)
        plain = PlainAlbef(config, RECIPE.task.queue_size, RECIPE.task.momentum)
        pair = cls(plain, ours, *steps.batch(config.vision.image_size, RECIPE.task.mask_probability, pairs))
        steps.initialise(plain)
        pair.copy_weights()
        return pair

    def copy_weights(self) -> None:
        """Gives the library's model the plain one's weights and queue. Momentum encoders become equal to students."""
        for name in self.plain.copied:
            momentum_copy = getattr(self.plain, f"{name}_m")
            momentum_copy.load_state_dict(getattr(self.plain, name).state_dict())
        state, _ = from_published(self.plain.state_dict(), PUBLISHED_PRETRAINING)
        full = {"queue.ids": self.ours.queue.ids, "queue.filled": torch.tensor(self.plain.queue_size)}
        self.ours.load_state_dict({name: tensor.clone() for name, tensor in state.items()} | full)


def models(config: AlbefConfig) -> tuple[PlainAlbef, Albef]:
    """Returns both models with the same weights, in evaluation mode."""
    pair = Pair.build(config)
    return pair.plain.eval(), pair.ours.model.eval()


def pretrain() -> dict[str, float]:
    """Times a step."""
    return steps.compare(Pair.build(), "pretrain", "pre-training step", "1e-4")


def rerank() -> dict[str, float]:
    """Scores 128 captions for one image at 384 px: the fusion encoder's part of a retrieval test."""
    count, size = 128, 384
    plain_model, model = models(CONFIG)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    captions, padded = steps.texts(count), steps.texts(count, PAD_RERANKING)
    index, image_index = torch.arange(count), torch.zeros(count, dtype=torch.long)
    with torch.no_grad():
        image, words = model.image_state(pixels), model.text_state(captions)
        plain_words = plain_model.text_encoder.bert.text(padded.input_ids, padded.attention_mask.long())

    @torch.no_grad()
    def ours(bf16: bool = False) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model.match_logits(model.fuse(words, image, index, image_index))[:, 1]

    def plain() -> Tensor:
        return plain_model.rerank(image.tokens[0], plain_words, padded.attention_mask.long())

    flops = {"plain": machine.flops(plain), "ours": machine.flops(ours)}
    difference = (plain() - ours()).abs().max().item()
    times = machine.interleaved({"plain fp32": plain, "ours fp32": ours, "ours bf16": lambda: ours(bf16=True)})
    print(f"re-ranking {count} captions for one image at {size} px")
    half = (plain() - ours(True)).abs().max().item()
    print(f"  scores differ by {difference:.1e} in fp32 (allowed 1e-4), by {half:.1e} in bf16")
    return machine.report("rerank", flops, times)


def memory() -> dict[str, float]:
    """Measures what a step needs beside weights, gradients, Adam, momentum encoder and queue.

    Each side runs in a process of its own.
    """
    grown = {}
    for side in steps.SIDES:
        command = [sys.executable, "-m", "benchmarks.albef", f"memory-{side}"]
        grown[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    share = grown["ours"] / grown["plain"]
    print(f"memory of a pre-training step in fp32 beside what lasts, batch {BATCH}")
    print(
        f"  plain {grown['plain'] / 1e9:.2f} GB, ours {grown['ours'] / 1e9:.2f} GB: {share:.2f}x (target at most 0.5)"
    )
    return {"memory ratio": share}


def memory_of(side: str) -> None:
    """Takes a step, after which everything that lasts is allocated, and measures the next one. Gradients stay."""
    pair = Pair.build()
    setattr(pair, {"plain": "ours", "ours": "plain"}[side], None)
    one_side = Steps(pair, [side])
    optimizer = one_side.optimizers[side]
    zero = optimizer.zero_grad
    optimizer.zero_grad = lambda: zero(set_to_none=False)  # type: ignore[method-assign, assignment]
    getattr(one_side, side)()
    with machine.PeakMemory() as peak:
        getattr(one_side, side)()
    print(peak.grown)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name.startswith("memory-"):
            memory_of(name.removeprefix("memory-"))
        else:
            {"pretrain": pretrain, "rerank": rerank, "memory": memory}[name]()
