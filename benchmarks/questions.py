"""Several texts about an image, as in VQA and SNLI-VE, at the paper's size: `python -m benchmarks.questions`

A batch holds four images at 384 px with five texts each. Ours encodes each image once; the released evaluation encodes
it for each text.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import albef, machine, steps
from diptych.schema import EntailmentConfig
from diptych.tasks.entailment import Entailment
from diptych.types import Batch

PICTURES, TEXTS = 4, 5
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))


def measure() -> dict[str, float]:
    """Times one batch both ways, which give the same probabilities."""
    _, model = albef.models(CONFIG)
    task = Entailment(model, EntailmentConfig(alpha=0.0), steps.SPECIAL).eval()
    size, noise = CONFIG.vision.image_size, torch.Generator().manual_seed(2)
    pixels = torch.randn(PICTURES, 3, size, size, generator=noise).repeat_interleave(TEXTS, 0)
    batch = Batch(pixels, steps.texts(len(pixels)), torch.arange(PICTURES).repeat_interleave(TEXTS))
    here = torch.arange(len(batch))

    @torch.no_grad()
    def apart() -> torch.Tensor:
        joint = model.fuse(model.text_state(batch.texts), model.image_state(batch.pixels), here, here)
        return task.head(joint.pooled).softmax(1)

    difference = (task.predict(batch) - apart()).abs().max()
    flops = {"apart": machine.flops(apart), "once": machine.flops(lambda: task.predict(batch))}
    times = machine.interleaved({"apart": apart, "once": lambda: task.predict(batch)})
    ratio = machine.ratio(times["apart"], times["once"])
    print(f"{PICTURES} images, {TEXTS} texts each, {size} px: probabilities differ by {difference:.1e}")
    print(f"  apart {times['apart'].seconds:.2f} s, once {times['once'].seconds:.2f} s: {ratio:.2f}×")
    print(f"  FLOPs {flops['apart'] / flops['once']:.2f}×")
    return {"questions": ratio}


if __name__ == "__main__":
    measure()
