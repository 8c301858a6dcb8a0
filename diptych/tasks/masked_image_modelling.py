"""Trains VLMo's first stage: masked image modelling on images alone (VLMo §3.4; BEiT §2).

A frozen visual tokenizer turns each image into a grid of codes, one for each patch. The model sees the image with 40 %
of the patches masked and predicts their codes. This trains the attention and the V-FFNs.

I images, S patches a side, N = S² patches, R masked patches, K size of the codebook, D width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.checkpoints import store
from diptych.data.loader import EvaluationBatch
from diptych.data.record import Picture
from diptych.data.tokenizer import Tokenizer
from diptych.facts import TaskReport
from diptych.losses.masked_image import block_mask, masked_image_loss
from diptych.metrics.accuracy import estimate
from diptych.metrics.task_evaluation import MAIN, Decision, TaskEvaluation, check_finite
from diptych.models.visual_tokenizer import VisualTokenizer
from diptych.models.vlmo import Vlmo
from diptych.models.vlmo_weights import grid_side, untrained_parts
from diptych.nn.blocks import init_weights
from diptych.nn.embeddings import resize_positions
from diptych.nn.gather import Processes
from diptych.schema import Recipe, Released, SpecialIds, VisionStageConfig, VisualTokenizerConfig
from diptych.seeds import seed_of
from diptych.serialize import from_dict
from diptych.task import Task
from diptych.types import Batch, Losses, PictureBatch, Progress, Term


class CodeHead(nn.Module):
    """Holds the mask token and predicts the code of a masked patch."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.scores = nn.Linear(width, codes)
        self.apply(init_weights)

    def forward(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, "R K"]:
        """Scores each code of the codebook."""
        scores: Tensor = self.scores(hidden)
        return scores.float()


@dataclass(frozen=True)
class CodePredictions:
    """Holds what the model predicts at the masked patches, image after image."""

    masked: Bool[Tensor, "I N"]
    logits: Float[Tensor, "R K"]
    codes: Int[Tensor, "R"]
    """The visual tokens that the patches have."""


class VisionStage(Task):
    """Predicts the codes of masked patches from the visible patches (BEiT §2.3)."""

    record = Picture
    headed = False
    report = TaskReport(
        title="Masked image modelling",
        measure="Visual-token accuracy",
        how="Which code of the visual tokenizer belongs to each masked patch? Every picture has its own mask, always "
        "the same.",
        references={"commonest": "Always the commonest answer"},
        examples="views",
    )

    model: Vlmo
    config: VisionStageConfig

    def __init__(
        self, model: Vlmo, config: VisionStageConfig, special: SpecialIds | None = None, released: Released = Released()
    ) -> None:
        """Raises ValueError where codes and patches do not cover the same squares of an image."""
        super().__init__()
        self.model, self.config, self.released = model, config, released
        self.tokenizer = VisualTokenizer(config.visual).requires_grad_(False)
        self.side = grid_side(model.config)
        if self.side != self.tokenizer.side:
            raise ValueError(
                f"the model cuts a picture into {self.side} × {self.side} patches, the visual tokenizer into "
                f"{self.tokenizer.side} × {self.tokenizer.side}: choose model.image_size and model.patch_size for its, "
                "or another task.tokenizer"
            )
        self.head = CodeHead(model.config.width, config.visual.codes)
        model.freeze(untrained_parts(config, model.config.depth))

    def forward(self, batch: PictureBatch | Batch, progress: Progress) -> Losses:
        """Computes the loss of masked image modelling of a batch (BEiT §2.3).

        The masks are a pure function of seed, step and row of the global batch.
        """
        first = Processes.meet(len(batch)).own.start
        seeds = (seed_of(progress.seed, "patches", progress.step, first + row) for row in range(len(batch)))
        predictions = self.predict_codes(batch.pixels, self._masks(seeds), batch.rng_keys)
        loss = masked_image_loss(predictions.logits, predictions.codes)  # VLMo §3.4
        measures = {
            "code_accuracy": Term.over((predictions.logits.argmax(1) == predictions.codes).float()),
            "commonest_code": Term.over((predictions.codes == predictions.codes.mode().values).float()),
        }
        return Losses.weighted(measures=measures, masked_image=(1.0, loss))

    def evaluate(self, batches: Iterable[EvaluationBatch], tokenizer: Tokenizer, resamples: int) -> TaskEvaluation:
        """Measures how often the likeliest code of a masked patch is the one that the visual tokenizer gives it.

        The patches of one picture are resampled together.
        """
        decisions: list[Decision] = []
        hits, owners, codes = [], [], []
        for chunk in batches:
            predictions = self.predict(chunk.batch)
            records = [chunk.records[row] for row in predictions.masked.nonzero()[:, 0].tolist()]
            predicted, counts = check_finite(predictions.logits, records).argmax(1), predictions.masked.sum(1).tolist()
            pictures = zip(chunk.records, predicted.split(counts), predictions.codes.split(counts), strict=True)
            for record, guessed, right in pictures:
                hits.append(guessed == right)
                codes.append(right)
                owners += [record.image_id] * len(right)
                score = hits[-1].double().mean().item()
                decisions.append(Decision(record.id, guessed.tolist(), None, right.tolist(), score))
        right = torch.cat(codes).cpu()
        always = right == right.bincount().argmax()
        accuracy, commonest = (
            estimate(values.double().cpu().numpy(), owners, resamples) for values in (torch.cat(hits), always)
        )
        return TaskEvaluation({MAIN: accuracy}, {"commonest": commonest}, decisions=tuple(decisions))

    @classmethod
    def relinked(cls, config: VisionStageConfig, link: Callable[[str], str]) -> VisionStageConfig:
        return replace(config, tokenizer=link(config.tokenizer))

    @classmethod
    def resolved(cls, recipe: Recipe) -> Recipe:
        """Adds the configuration of the visual tokenizer. Raises ValueError if the task names none that fits."""
        task = recipe.task
        assert isinstance(task, VisionStageConfig)
        if not task.tokenizer:
            raise ValueError(
                "task.tokenizer names no visual tokenizer: train one, as with `diptych train visual_tokenizer_tiny`, "
                "and name its run: task.tokenizer=runs/visual_tokenizer_tiny"
            )
        origin = from_dict(store.load_from(task.tokenizer).recipe)
        if not isinstance(origin.model, VisualTokenizerConfig):
            raise ValueError(f"task.tokenizer={task.tokenizer} is a run of {origin.name}, which is no visual tokenizer")
        if origin.data.normalise != recipe.data.normalise:
            raise ValueError(
                f"the visual tokenizer was trained with data.normalise={origin.data.normalise}: set it so here too"
            )
        return replace(recipe, task=replace(task, visual=origin.model))

    def predict_codes(
        self, pixels: Float[Tensor, "I 3 H W"], masked: Bool[Tensor, "I N"], rng_keys: Int[Tensor, "I"] | None = None
    ) -> CodePredictions:
        """Scores the codes of the masked patches and returns them beside the right ones. `rng_keys` seed dropout."""
        masked = masked.to(pixels.device)
        hidden = self.model.encode_image(
            self._masked_patches(pixels, masked), rng_keys
        )  # class token first [I, 1 + N, D]
        return CodePredictions(masked, self.head(hidden[:, 1:][masked]), self._codes(pixels)[masked])

    def _masked_patches(self, pixels: Float[Tensor, "I 3 H W"], masked: Bool[Tensor, "I N"]) -> Float[Tensor, "I T D"]:
        """Embeds the images with the mask token in place of each masked patch.

        The pixels of masked patches are set to 0 too, because a convolutional stem sees beyond its own patch. Where
        the model adds absolute positions to patches, the mask token gets them as well.
        """
        patches = self.model.image_state(blanked(pixels, masked)).patches  # [I, 1 + N, D]
        token: Tensor = self.head.mask_token
        if self.model.image.positions is not None:
            token = token + resize_positions(self.model.image.positions, self.side)[:, 1:]
        return torch.cat([patches[:, :1], torch.where(masked[..., None], token, patches[:, 1:])], dim=1)

    def _codes(self, pixels: Float[Tensor, "I 3 H W"]) -> Int[Tensor, "I N"]:
        return self.tokenizer.codes(resized(pixels, self.config.visual.image_size)).flatten(1)

    def _masks(self, seeds: Iterable[int]) -> Bool[Tensor, "I N"]:
        config = self.config
        masks = [
            block_mask(self.side, config.mask_share, config.min_block, config.min_aspect, random.Random(seed).random)
            for seed in seeds
        ]
        return torch.stack(masks).flatten(1)

    @torch.no_grad()
    def predict(self, batch: PictureBatch | Batch) -> CodePredictions:
        """Predicts the codes of masked patches, each image always under the same mask, whatever batch it is in."""
        masks = self._masks(seed_of("patches", identity) for identity in batch.image_ids.tolist())
        return self.predict_codes(batch.pixels, masks)

    @torch.no_grad()
    def views(self, batch: PictureBatch | Batch) -> dict[str, Float[Tensor, "I 3 H W"]]:
        """Returns images for a report: as they are, masked, and decoded from visible and predicted codes."""
        predictions = self.predict(batch)
        codes = self._codes(batch.pixels)
        codes[predictions.masked] = predictions.logits.argmax(1)
        painted = self.tokenizer.paint_codes(codes.unflatten(1, (self.side, self.side)))
        return {"picture": batch.pixels, "seen": blanked(batch.pixels, predictions.masked), "guessed": painted}

    def borrowed(self) -> Mapping[str, str]:
        """Names the visual tokenizer as a network that comes from another run."""
        return {"tokenizer": self.config.tokenizer}


def blanked(pixels: Float[Tensor, "I 3 H W"], masked: Bool[Tensor, "I N"]) -> Float[Tensor, "I 3 H W"]:
    """Sets the pixels of masked patches to 0."""
    side = round(masked.shape[1] ** 0.5)
    squares = masked.unflatten(1, (1, side, side)).to(pixels.dtype)
    return pixels * (1 - F.interpolate(squares, size=pixels.shape[-2:], mode="nearest"))


def resized(pixels: Float[Tensor, "I 3 H W"], size: int) -> Float[Tensor, "I 3 S S"]:
    """Resizes images to `size` pixels a side, as the visual tokenizer reads them."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
