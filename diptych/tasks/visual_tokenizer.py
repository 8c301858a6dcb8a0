"""Trains the visual tokenizer, a discrete VAE, to reconstruct images from their codes (BEiT §2.1; DALL-E §2.1).

The codes are the targets of masked image modelling. I images, S codes a side, K size of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.loader import EvaluationBatch
from diptych.data.record import AnyRecord, Picture
from diptych.data.tokenizer import Tokenizer
from diptych.facts import TaskReport
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite
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

    record = Picture
    headed = False
    report = TaskReport(
        title="Visual tokenizer",
        measure="Variance given back",
        how="How much of what differs between and within the pictures comes back from their codes, one a patch?",
        references={"one_colour": "Its mean colour for each picture"},
        figures={
            "reconstruction_error": "Mean square error, in normalised colours",
            "code_perplexity": "Perplexity of the codes' use",
            "codes_used": "Codes used",
            "codes": "Codes in all",
        },
        examples="views",
    )

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

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures the share of the pictures' variance that their codes give back, and how evenly codes are used."""
        errors, within, sums, squares, codes = [], [], [], [], []
        records: list[AnyRecord] = []
        for chunk in batches:
            painted, pixels = self.predict(chunk.batch), chunk.batch.pixels.double()
            errors.append(check_finite(painted.error[:, None], chunk.records)[:, 0].double())
            sums.append(pixels.mean((2, 3)))
            squares.append(pixels.square().mean((2, 3)))
            within.append((squares[-1] - sums[-1].square()).mean(1))  # the error of each picture's mean colour
            codes.append(painted.codes)
            records += chunk.records
        mean = torch.cat(sums).mean(0)
        variance = (torch.cat(squares).mean(0) - mean.square()).mean().clamp(min=torch.finfo(torch.double).tiny)
        given_back, of_one_colour = ((1 - torch.cat(each) / variance).cpu().numpy() for each in (errors, within))
        use = use_of(torch.cat(codes), self.model.config.codes)
        pictures = zip(records, torch.cat(codes).tolist(), given_back.tolist(), strict=True)
        return TaskEvaluation(
            {MAIN: estimate(given_back, None, resamples)},
            {"one_colour": estimate(of_one_colour, None, resamples)},
            decisions=tuple(Decision(record.id, grid, None, None, max(0.0, share)) for record, grid, share in pictures),
            figures={
                "reconstruction_error": torch.cat(errors).mean().item(),
                "code_perplexity": perplexity(use).item(),
                "codes_used": float((use > 0).sum()),
                "codes": float(len(use)),
            },
        )

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
