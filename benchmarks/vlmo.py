"""VLMo at the paper's base size: a pre-training step beside the plain procedure, and the dual encoder's images.

    python -m benchmarks.vlmo pretrain | embed

Both sides of the step start from the same weights and read the same committed captions (8 to 18 tokens, mean 13), which
the plain one pads to 40 tokens, as published. Dropout and stochastic depth are off, so that both compute the same
numbers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from benchmarks import machine, steps
from benchmarks.plain_vlmo import PlainVlmo
from benchmarks.steps import BATCH, SPECIAL
from diptych.checkpoints.convert import from_published
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.recipes.vlmo import vlmo_base
from diptych.schema import VlmoConfig
from diptych.tasks.vlmo_pretraining import VlmoPretraining

IMAGES = 32
RECIPE = vlmo_base()
CONFIG = replace(RECIPE.model, dropout=0.0, drop_path=0.0)
SHARE = 0.7
"""The share of the machine's peak that embedding images should reach in fp32."""


@dataclass
class Pair(steps.Pair):
    """Both VLMos."""

    plain: PlainVlmo
    ours: VlmoPretraining
    recipe = RECIPE
    pad = 40

    @classmethod
    def build(cls, config: VlmoConfig = CONFIG, pairs: int = BATCH) -> Pair:
        """Builds both sides with equal weights."""
        torch.manual_seed(0)
        plain, ours = PlainVlmo(config), VlmoPretraining(Vlmo(config), RECIPE.task, SPECIAL)
        pair = cls(plain, ours, *steps.batch(config.image_size, RECIPE.task.mask_probability, pairs))
        steps.initialise(plain)
        pair.copy_weights()
        return pair

    def copy_weights(self) -> None:
        """Gives the library's model the plain one's weights."""
        state, _ = from_published(self.plain.state_dict(), published_rules(self.ours.model.config))
        self.ours.load_state_dict({name: tensor.clone() for name, tensor in state.items()})


def pretrain() -> dict[str, float]:
    """Times a step."""
    return steps.compare(Pair.build(), "vlmo", "VLMo pre-training step", "1e-5")


def products(config: VlmoConfig, images: int) -> list[tuple[int, int, int]]:
    """Lists the matrix products of a block on so many images: tokens, width, output width."""
    tokens, width = images * ((config.image_size // config.patch_size) ** 2 + 1), config.width
    mlp_width = int(width * config.mlp_ratio)
    return [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, mlp_width), (tokens, mlp_width, width)]


def embed(config: VlmoConfig = CONFIG, images: int = IMAGES) -> dict[str, float]:
    """Embeds images with the dual encoder, and compares its rate with the best matrix product.

    That is a square product or one of the model's own, whichever is faster.
    """
    torch.manual_seed(0)
    model = Vlmo(config).eval()
    pixels = torch.randn(images, 3, config.image_size, config.image_size)

    @torch.no_grad()
    def job() -> None:
        model.embed_image(model.image_state(pixels))

    flops, seconds = machine.flops(job), machine.interleaved({"embed": job})["embed"].seconds
    best = max(machine.peak(torch.float32), machine.peak(torch.float32, products(config, images)))
    share = flops / seconds / best
    print(f"embedding {images} images at {config.image_size} px in fp32: {images / seconds:.1f} images/s")
    print(
        f"  {seconds:.2f} s  {flops / 1e9:.0f} GFLOP  {flops / seconds / 1e9:.0f} GFLOP/s"
        f" = {share:.0%} of {best / 1e9:.0f} (target {SHARE:.0%})"
    )
    return {"vlmo embed share of peak": share}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"pretrain": pretrain, "embed": embed}[name]()
