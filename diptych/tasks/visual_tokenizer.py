"""Trains the visual tokenizer, a discrete VAE, to reconstruct images from their codes (BEiT §2.1; DALL-E §2.1).

The codes are the targets of masked image modelling. I images, S codes a side, K size of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.nn.gather import Processes
from diptych.schema import Released, SpecialIds, VisualTokenizerTrainingConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.types import Batch, Losses, PictureBatch, Progress, Term


@dataclass(frozen=True)
class Reconstruction:
    """Holds the codes of images and the images that the decoder makes of them."""

    codes: Int[Tensor, "I S S"]
    pixels: Float[Tensor, "I 3 H W"]
    error: Float[Tensor, "I"]
    """Mean squared error of each image, in normalised colours."""


class VisualTokenizerTraining(Task):
    """Trains a discrete VAE: a Gumbel-softmax of falling temperature samples the codes, the decoder paints the image.

    Reconstruction alone does not reward the use of many codes, and from the usual initialisation most codes die.
    Therefore the scores of the codes start far apart (models/visual_tokenizer.py), and a KL term (`kl`) rewards an even
    use of the codebook.
    """

    model: VisualTokenizer
    config: VisualTokenizerTrainingConfig

    def __init__(
        self,
        model: VisualTokenizer,
        config: VisualTokenizerTrainingConfig,
        special: SpecialIds | None = None,
        released: Released = Released(),
    ) -> None:
        super().__init__()
        self.model, self.config, self.released = model, config, released

    def forward(self, batch: PictureBatch | Batch, progress: Progress) -> Losses:
        """Computes the reconstruction error and, with `kl`, the KL term. Draws are a function of seed, step and row."""
        processes = Processes.meet(len(batch))
        logits = self.model.logits(batch.pixels)  # scores of the codes [I, K, S, S]
        temperature = temperature_at(progress.step, self.config)
        rows = range(processes.own.start, processes.own.stop)
        seeds = [seed_of(progress.seed, "codes", progress.step, row) for row in rows]
        painted = self.model.paint(gumbel_softmax(logits, temperature, seeds))
        error = (painted - batch.pixels).square().flatten(1).mean(1)
        measures = {
            "code_perplexity": Term.over(perplexity(use_of(logits.argmax(1), logits.shape[1]))[None]),
            "temperature": Term.over(logits.new_full((1,), temperature)),
        }
        uneven = (self.config.kl, Term.over(unevenness(logits, processes)[None]))
        terms = {"reconstruction": (1.0, Term.over(error))} | ({"uneven_use": uneven} if self.config.kl else {})
        return Losses.weighted(measures=measures, **terms)

    @torch.no_grad()
    def predict(self, batch: PictureBatch | Batch) -> Reconstruction:
        """Encodes each patch as its likeliest code and decodes the image from these."""
        codes = self.model.codes(batch.pixels)
        pixels = self.model.paint_codes(codes)
        return Reconstruction(codes, pixels, (pixels - batch.pixels).square().flatten(1).mean(1))

    def views(self, batch: PictureBatch | Batch) -> dict[str, Float[Tensor, "I 3 H W"]]:
        """Returns images for a report: as they are, and reconstructed from their codes."""
        return {"picture": batch.pixels, "given back": self.predict(batch).pixels}


def temperature_at(step: int, config: VisualTokenizerTrainingConfig) -> float:
    """Returns the temperature of a step, which falls geometrically from the first to the last value."""
    first, last = config.temperature
    return first * (last / first) ** min(1.0, step / max(1, config.anneal_steps))


def gumbel_softmax(
    logits: Float[Tensor, "I K S S"], temperature: float, seeds: Sequence[int]
) -> Float[Tensor, "I K S S"]:
    """Samples a code for each patch, relaxed so that it has a gradient (Jang et al., arXiv 1611.01144).

    Each image has its own seed.
    """
    generator, noise = torch.Generator(logits.device), torch.empty_like(logits)
    for row, seed in zip(noise, seeds, strict=True):
        row.exponential_(generator=generator.manual_seed(seed))
    noise = -noise.log()
    return ((logits + noise) / temperature).softmax(1)


def unevenness(logits: Float[Tensor, "I K S S"], processes: Processes) -> Float[Tensor, ""]:
    """Computes the KL divergence of the codes' mean probability from a uniform one, in nats, 0 … log K.

    The mean is over the batch of all processes.
    """
    use = processes.added(logits.softmax(1).mean((2, 3)).sum(0)) / processes.total
    return math.log(len(use)) - torch.special.entr(use).sum()


def use_of(codes: Int[Tensor, "*n"], size: int) -> Float[Tensor, "K"]:
    """Returns the share of each code."""
    counts = codes.flatten().bincount(minlength=size).float()
    return counts / counts.sum()


def perplexity(use: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """Computes the perplexity of the use of the codebook: the number of equally used codes, 1 … K, as hard to guess.

    >>> round(perplexity(torch.tensor([0.5, 0.5, 0.0])).item(), 3)
    2.0
    """
    return torch.special.entr(use).sum().exp()
