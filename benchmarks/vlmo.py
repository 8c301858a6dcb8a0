"""VLMo at the paper's base size: a pre-training step beside the plain procedure, and the dual encoder's images.

    python -m benchmarks.vlmo pretrain | embed

Both sides of the step start from the same weights and take the same committed captions (8 to 18 tokens, mean 13), which
the plain one pads to 40 tokens, as published. Dropout and stochastic depth are off, so that both compute the same
numbers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from benchmarks import albef, machine
from benchmarks.albef import BATCH, SPECIAL
from benchmarks.plain_vlmo import PlainVlmo
from diptych.checkpoints.convert import from_published
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.recipes.vlmo import vlmo_base
from diptych.schema import VlmoConfig
from diptych.tasks.pretraining import Draws
from diptych.tasks.vlmo_pretraining import VlmoPretraining
from diptych.train.optim import build_optimizer
from diptych.types import Batch, Progress

PAD, IMAGES = 40, 32
RECIPE = vlmo_base()
CONFIG = replace(RECIPE.model, dropout=0.0, drop_path=0.0)
SHARE = 0.7
"""Of the machine's peak that embedding images is to reach in fp32."""


@dataclass
class Pair:
    """Both implementations with the same weights, and one batch."""

    plain: PlainVlmo
    ours: VlmoPretraining
    batch: Batch
    draws: Draws

    @classmethod
    def build(cls, config: VlmoConfig = CONFIG) -> Pair:
        torch.manual_seed(0)
        pair = cls(PlainVlmo(config), VlmoPretraining(Vlmo(config), RECIPE.task, SPECIAL), *batch(config.image_size))
        initialise(pair.plain)
        pair.copy_weights()
        return pair

    def copy_weights(self) -> None:
        """Gives the library's model the plain one's weights."""
        state, _ = from_published(self.plain.state_dict(), published_rules(self.ours.model.config))
        self.ours.load_state_dict({name: tensor.clone() for name, tensor in state.items()})


def initialise(plain: PlainVlmo) -> None:
    """Weights of a size that training meets; the bias of every position too, which begins at 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)


def batch(image_size: int) -> tuple[Batch, Draws]:
    """Eight pictures of noise with the first eight captions; 15 % of the words hidden; neighbours as negatives."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, image_size, image_size, generator=generator)
    read = albef.texts(BATCH)
    masked, labels = albef.hide_words(read, RECIPE.task.mask_probability, generator)
    order = torch.arange(BATCH)
    return Batch(pixels, read, order), Draws(masked, labels, torch.zeros(2, BATCH), order.roll(1), order.roll(-1))


class Steps:
    """One training step of either side: forward, backward, optimiser."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        optim = replace(RECIPE.optim, lr=1e-6)
        self.optimizers = {side: build_optimizer(getattr(pair, side), optim) for side in ("plain", "ours")}

    def plain(self, recorded: bool = False) -> list[float]:
        b, d = self.pair.batch, self.pair.draws
        ids, mask = (albef.widen(x, PAD, 0) for x in (b.texts.input_ids, b.texts.attention_mask.long()))
        masked, labels = albef.widen(d.masked_ids, PAD, 0), albef.widen(d.labels, PAD, -100)
        negatives = (d.negative_image, d.negative_text) if recorded else None
        losses = self.pair.plain(b.pixels, ids, mask, masked, labels, negatives)
        losses.total.backward()
        self._step("plain")
        return [losses.itc.item(), losses.itm.item(), losses.mlm.item()]

    def ours(self, bf16: bool = False, recorded: bool = False) -> list[float]:
        task = self.pair.ours
        task.before_step()
        draws = self.pair.draws if recorded else replace(self.pair.draws, negative_image=None, negative_text=None)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = task(self.pair.batch, Progress(0, epoch=1.0), draws)
        losses.total.backward()
        self._step("ours")
        return [weight * term.mean.item() for weight, term in (losses.terms[name] for name in ("itc", "itm", "mlm"))]

    def _step(self, side: str) -> None:
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()


def pretrain() -> dict[str, float]:
    """Times of a step; prints ratios beside what the FLOPs alone allow."""
    pair = Pair.build()
    steps = Steps(pair)
    counted = {"plain": machine.flops(steps.plain), "ours": machine.flops(steps.ours)}
    pair.copy_weights()
    plain_losses, our_losses = steps.plain(recorded=True), steps.ours(recorded=True)
    pair.copy_weights()
    reference, half = steps.plain(recorded=True), steps.ours(bf16=True, recorded=True)
    jobs = {"plain fp32": steps.plain, "ours fp32": steps.ours, "ours bf16": lambda: steps.ours(bf16=True)}
    if not machine.multiplies_bf16():
        del jobs["ours bf16"]
    found = machine.interleaved(jobs)
    difference = max(abs(a - b) for a, b in zip(plain_losses, our_losses, strict=True))
    relative = max(abs(a - b) / abs(a) for a, b in zip(reference, half, strict=True))
    print(f"VLMo pre-training step, {CONFIG.image_size} px, batch {BATCH}; ITC, ITM, MLM {our_losses}")
    print(f"  losses differ by {difference:.1e} in fp32 (allowed 1e-5), by {relative:.2%} in bf16 (allowed 1 %)")
    return albef.report("vlmo", counted, found)


def products(config: VlmoConfig, images: int) -> list[tuple[int, int, int]]:
    """The matrix products of a block on so many images: rows, width, output width."""
    rows, width = images * ((config.image_size // config.patch_size) ** 2 + 1), config.width
    hidden = int(width * config.mlp_ratio)
    return [(rows, width, 3 * width), (rows, width, width), (rows, width, hidden), (rows, hidden, width)]


def embed(config: VlmoConfig = CONFIG, images: int = IMAGES) -> dict[str, float]:
    """Images through the dual encoder, as a share of the best matrix product: a square one or the model's own."""
    torch.manual_seed(0)
    model = Vlmo(config).eval()
    pixels = torch.randn(images, 3, config.image_size, config.image_size)

    @torch.no_grad()
    def job() -> None:
        model.embed_image(model.image_state(pixels))

    counted, found = machine.flops(job), machine.interleaved({"embed": job})["embed"]
    best = max(machine.peak(torch.float32), machine.peak(torch.float32, products(config, images)))
    share = counted / found.seconds / best
    print(f"embedding {images} images at {config.image_size} px in fp32: {images / found.seconds:.1f} images/s")
    print(
        f"  {found.seconds:.2f} s  {counted / 1e9:.0f} GFLOP  {counted / found.seconds / 1e9:.0f} GFLOP/s"
        f" = {share:.0%} of {best / 1e9:.0f} (asked {SHARE:.0%})"
    )
    return {"vlmo embed share of peak": share}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"pretrain": pretrain, "embed": embed}[name]()
