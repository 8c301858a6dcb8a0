"""Several texts about a picture at the paper's size. `python -m benchmarks.questions`

Four pictures at 384 px with five texts each in one batch, as VQA and SNLI-VE ask: each picture encoded once, against
once a text, which is what the released evaluation does.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import albef, machine
from diptych.schema import EntailmentConfig, SpecialIds
from diptych.tasks.entailment import Entailment
from diptych.types import Batch

PICTURES, TEXTS = 4, 5
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))


def measure() -> dict[str, float]:
    """Times of one batch both ways, which give the same probabilities."""
    _, model = albef.models(CONFIG)
    task = Entailment(model, EntailmentConfig(alpha=0.0), SpecialIds(0, 100, 101, 102, 103)).eval()
    size, noise = CONFIG.vision.image_size, torch.Generator().manual_seed(2)
    pixels = torch.randn(PICTURES, 3, size, size, generator=noise).repeat_interleave(TEXTS, 0)
    batch = Batch(pixels, albef.texts(len(pixels)), torch.arange(PICTURES).repeat_interleave(TEXTS))
    here = torch.arange(len(batch))

    @torch.no_grad()
    def apart() -> torch.Tensor:
        joint = model.fuse(model.text_state(batch.texts), model.image_state(batch.pixels), here, here)
        return task.head(joint.pooled).softmax(1)

    off = (task.predict(batch) - apart()).abs().max()
    counted = {"apart": machine.flops(apart), "once": machine.flops(lambda: task.predict(batch))}
    found = machine.interleaved({"apart": apart, "once": lambda: task.predict(batch)})
    times = machine.ratio(found["apart"], found["once"])
    print(f"{PICTURES} pictures, {TEXTS} texts each, {size} px: probabilities differ by {off:.1e}")
    print(f"  apart {found['apart'].seconds:.2f} s, once {found['once'].seconds:.2f} s: {times:.2f}×")
    print(f"  FLOPs {counted['apart'] / counted['once']:.2f}×")
    return {"questions": times}


if __name__ == "__main__":
    measure()
