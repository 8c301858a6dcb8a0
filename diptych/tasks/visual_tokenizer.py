"""What the visual tokenizer learns from pictures alone: to give them back through its codes (BEiT §2.1; DALL-E §2.1).

I pictures, S codes a side, K size of the codebook.
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
from diptych.schema import SpecialIds, VisualTokenizerTrainingConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.types import Batch, Losses, PictureBatch, Progress, Term


@dataclass(frozen=True)
class Repainted:
    """Pictures, their codes, and what these give back."""

    codes: Int[Tensor, "I S S"]
    pixels: Float[Tensor, "I 3 H W"]
    error: Float[Tensor, "I"]
    """Mean square of the difference, in normalised colours."""


class VisualTokenizerTraining(Task):
    """A discrete VAE: codes are drawn by a Gumbel-softmax whose temperature falls, and a picture is made of them.

    Nothing of the reconstruction asks for many codes, and from a plain start most are never used again. So the codes'
    scores begin far apart (nn/visual_tokenizer.py), and their use is drawn towards an even one (`kl`).
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
        self, model: VisualTokenizer, config: VisualTokenizerTrainingConfig, special: SpecialIds | None = None
    ) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: PictureBatch | Batch, progress: Progress) -> Losses:
        """The draws are a function of seed, step and row of the batch of all processes."""
        processes = Processes.meet(len(batch))
        logits = self.model.logits(batch.pixels)
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
    def predict(self, batch: PictureBatch | Batch) -> Repainted:
        """The likeliest code of each patch, and the picture of these."""
        codes = self.model.codes(batch.pixels)
        pixels = self.model.paint_codes(codes)
        return Repainted(codes, pixels, (pixels - batch.pixels).square().flatten(1).mean(1))

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
        """For people: pictures beside what their codes give back."""
        return {"picture": batch.pixels, "given back": self.predict(batch).pixels}


def temperature_at(step: int, config: VisualTokenizerTrainingConfig) -> float:
    """From the first to the last, in equal ratios."""
    first, last = config.temperature
    return first * (last / first) ** min(1.0, step / max(1, config.anneal_steps))


def gumbel_softmax(
    logits: Float[Tensor, "I K S S"], temperature: float, seeds: Sequence[int]
) -> Float[Tensor, "I K S S"]:
    """A draw from the codes of each patch, relaxed so that it has a gradient (Jang et al., arXiv 1611.01144).

    Each picture has its own seed.
    """
    generator, noise = torch.Generator(logits.device), torch.empty_like(logits)
    for row, seed in zip(noise, seeds, strict=True):
        row.exponential_(generator=generator.manual_seed(seed))
    noise = -noise.log()
    return ((logits + noise) / temperature).softmax(1)


def unevenness(logits: Float[Tensor, "I K S S"], processes: Processes) -> Float[Tensor, ""]:
    """The divergence (KL) of the codes' mean probability, in the batch of all processes, from an even one.

    0 … log K, in nats.
    """
    use = processes.added(logits.softmax(1).mean((2, 3)).sum(0)) / processes.total
    return math.log(len(use)) - torch.special.entr(use).sum()


def use_of(codes: Int[Tensor, "*n"], size: int) -> Float[Tensor, "K"]:
    """The share of each code."""
    counts = codes.flatten().bincount(minlength=size).float()
    return counts / counts.sum()


def perplexity(use: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """How many codes, each used equally often, would be as hard to guess: 1 … K.

    >>> round(perplexity(torch.tensor([0.5, 0.5, 0.0])).item(), 3)
    2.0
    """
    return torch.special.entr(use).sum().exp()
