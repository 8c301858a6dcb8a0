"""Several texts about an image, as in VQA and SNLI-VE, at the paper's size: `python -m benchmarks.questions`

In evaluation a batch holds four images at 384 px with five texts each, and in training two images at 256 px with four
texts each. Ours encodes each image once (in training with `data.texts_per_image=4`); the released code encodes it for
each text.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import albef, machine, steps
from diptych.schema import EntailmentConfig
from diptych.tasks.entailment import Entailment
from diptych.types import Batch, LabelledBatch, Progress, Repeats

PICTURES, TEXTS = 4, 5
CONFIG = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=384))
TRAINING_PICTURES, TRAINING_TEXTS, TRAINING_SIDE = 2, 4, 256


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


def measure_training() -> dict[str, float]:
    """Times a step, forward and backward, both ways. They give the same loss."""
    config = replace(albef.CONFIG, vision=replace(albef.CONFIG.vision, image_size=TRAINING_SIDE))
    _, model = albef.models(config)
    task = Entailment(model, EntailmentConfig(alpha=0.0), steps.SPECIAL)
    noise = torch.Generator().manual_seed(2)
    pixels = torch.randn(TRAINING_PICTURES, 3, TRAINING_SIDE, TRAINING_SIDE, generator=noise)
    rows = torch.arange(TRAINING_PICTURES * TRAINING_TEXTS)
    apart = LabelledBatch(
        pixels.repeat_interleave(TRAINING_TEXTS, 0), steps.texts(len(rows)), rows // TRAINING_TEXTS, labels=rows % 3
    )
    once = replace(apart, repeats=Repeats(rows[::TRAINING_TEXTS], rows // TRAINING_TEXTS))

    def step(batch: LabelledBatch) -> torch.Tensor:
        task.zero_grad(set_to_none=True)
        loss = task(batch, Progress(step=0, epoch=0.0)).total
        loss.backward()
        return loss.detach()

    difference = (step(once) - step(apart)).abs()
    times = machine.interleaved({"apart": lambda: step(apart), "once": lambda: step(once)})
    ratio = machine.ratio(times["apart"], times["once"])
    size = f"{TRAINING_PICTURES} images, {TRAINING_TEXTS} texts each, {TRAINING_SIDE} px"
    print(f"training, {size}: losses differ by {difference:.1e}")
    print(f"  apart {times['apart'].seconds:.2f} s, once {times['once'].seconds:.2f} s: {ratio:.2f}×")
    return {"questions in training": ratio}


if __name__ == "__main__":
    measure()
    measure_training()
