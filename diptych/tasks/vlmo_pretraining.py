"""VLMo's third stage: contrast, matching and masked words on pairs, over all processes (§3.3, §3.4).

B pairs of this process, G those of all processes, Q pairs that a contrast is about, L padded text length, P judged
pairs, R hidden words, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.record import Record
from diptych.losses.contrastive import Logits, contrastive_loss, in_batch_contrast, own_halves, same_picture
from diptych.losses.masked_lm import WordMasking, masked_lm_loss
from diptych.losses.matching import both_negative_weights, draw_negatives, match_labels, matching_loss
from diptych.models.vlmo import FUSION_EXPERTS, Branch, ImageState, Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.nn.packed import TextState
from diptych.schema import LanguageStageConfig, Recipe, SpecialIds, VisionStageConfig, VlmoPretrainConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.tasks.pretraining import (
    DrawnNegatives,
    Draws,
    contrast_measures,
    drawn_negatives,
    fuse_pairs,
    matching_measures,
    negative_similarity,
    repeated_pictures,
    word_measures,
)
from diptych.types import Batch, Losses, Progress, Term


@dataclass(frozen=True)
class Contrast:
    """Pairs that the loss is about (Q, beginning with this process's) against those of all processes."""

    branches: Mapping[Branch, Logits]
    own: Bool[Tensor, "Q G"]
    """The pair itself."""
    hidden: Bool[Tensor, "Q G"]
    """The same picture under another caption: neither positive nor negative."""
    false_negatives: Term
    """`repeated_pictures`, also where they are not hidden."""

    @property
    def leading_branch(self) -> Branch:
        """That by which negatives are drawn: `main` wherever it is there."""
        return next(iter(self.branches))

    @property
    def leading(self) -> Logits:
        return self.branches[self.leading_branch]


@dataclass(frozen=True)
class Forward:
    """What one pass made, for the losses and for whoever wants to look inside. What no loss needs is None."""

    contrast: Contrast | None = None
    negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None = None
    """The hard image of each text and the hard text of each image, among the pairs of all processes as gathered."""
    match_logits: Float[Tensor, "P 2"] | None = None
    labels: Int[Tensor, "R"] | None = None
    word_logits: Float[Tensor, "R V"] | None = None


class VlmoPretraining(Task):
    """ITC + ITM + MLM. Processes hold equal shares of one global batch, and see all of it for their negatives."""

    record = Record
    purpose = "matching pictures and texts (pre-training)"
    hub_tag = "zero-shot-image-classification"
    headed = False
    ranks_pairs = True
    inspectable = True

    model: Vlmo
    config: VlmoPretrainConfig

    def __init__(self, model: Vlmo, config: VlmoPretrainConfig, special: SpecialIds) -> None:
        super().__init__()
        if config.fuse_start > 0 and not config.itc:
            raise ValueError(f"task.fuse_start={config.fuse_start} trains ITC alone first, but task.itc is 0")
        if "vl" in contrasted(config) and not model.config.has_fusion_experts:
            raise ValueError(
                f"task.itc_branches={config.itc_branches} needs vision-language experts, which this model lacks: "
                f"set task.itc_branches=main, or {FUSION_EXPERTS}"
            )
        if config.fusion_experts != "fresh" and not model.config.has_fusion_experts:
            raise ValueError(
                f"task.fusion_experts={config.fusion_experts} starts vision-language experts, which this model lacks: "
                f"set task.fusion_experts=fresh, or {FUSION_EXPERTS}"
            )
        self.model, self.config = model, config
        self.masking = WordMasking(config, special, model.config.vocab_size, model.config.max_positions)
        model.freeze(model.unused(*self.trained(config)))  # what only a term of weight 0 would train
        self.train()

    @classmethod
    def trained(cls, config: VlmoPretrainConfig) -> tuple[str, ...]:
        """A term of weight 0 trains nothing."""
        calls: list[str] = []
        if "main" in contrasted(config):
            calls += ["embed_image", "embed_text", "temperature"]
        if "vl" in contrasted(config):
            calls += ["vl"]
        if config.itm or config.mlm:
            calls += ["fuse"]
        return (*calls, *["pooled", "match_logits"] * bool(config.itm), *["word_logits"] * bool(config.mlm))

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """What the stages before have not taught. Raises ValueError where experts to be copied are among it."""
        if self.config.fusion_experts == "language" and isinstance(origin.task, VisionStageConfig):
            raise ValueError("task.fusion_experts=language needs a start that has learnt texts: the language stage")
        return untrained_parts(origin.task, self.model.config.depth)

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """After a stage of one modality, the vision-language experts begin as `fusion_experts` says (§3.4)."""
        found = super().adapt(state, origin)
        source = {"vision": "image", "language": "text"}.get(self.config.fusion_experts)
        if source and isinstance(origin.task, VisionStageConfig | LanguageStageConfig):
            for number in range(self.model.config.fusion_start, self.model.config.depth):
                expert = f"model.blocks.{number}.experts"
                copied = {name: value for name, value in found.items() if name.startswith(f"{expert}.{source}.")}
                found |= {name.replace(f".{source}.", ".fusion.", 1): value for name, value in copied.items()}
        return found

    @torch.no_grad()
    def before_step(self) -> None:
        if self.config.temperature_bounds is not None:
            low, high = self.config.temperature_bounds
            for scale in (self.model.log_scale, self.model.vl_log_scale):
                scale.clamp_(-math.log(high), -math.log(low))

    def meet(self, batch: Batch) -> Processes:
        """The processes that share the global batch. Raises ValueError where their shares are not equal."""
        return Processes.meet(len(batch), own_first=self.config.gather == "released")

    def draw(self, batch: Batch, progress: Progress, processes: Processes | None = None) -> Draws:
        """This process's part of the draws for the global batch, which are a pure function of (seed, step).

        They are the same however the batch is shared out, and however far its texts are padded.
        """
        processes = processes or self.meet(batch)
        draws = self.masking.draw(len(batch), progress, processes.own.start)
        masked_ids, labels = self.masking(batch.texts, draws)
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        uniform = torch.rand(2, processes.total, generator=generator)[:, processes.own]
        return Draws(masked_ids, labels, uniform.to(masked_ids.device))

    def forward(self, batch: Batch, progress: Progress, draws: Draws | None = None) -> Losses:
        processes = self.meet(batch)
        if progress.step < self.config.fuse_start:
            return self.losses(self.align(batch, processes), processes)
        draws = draws or self.draw(batch, progress, processes)
        return self.losses(self.run(batch, draws, processes), processes)

    def align(self, batch: Batch, processes: Processes) -> Forward:
        """ITC alone, with nothing computed for the other terms (`fuse_start`)."""
        images, texts = self.model.image_state(batch.pixels, keys=batch.keys), self.model.text_state(batch.texts)
        return Forward(self._contrast(images, texts, batch.image_ids, processes))

    def run(self, batch: Batch, draws: Draws, processes: Processes | None = None) -> Forward:
        """Every pass of a step: each image and each text once, then all fusions in one call (§3.3)."""
        config, processes, size = self.config, processes or self.meet(batch), len(batch)
        given = draws.with_masked(batch.texts) if config.mlm else batch.texts
        images, texts = self.model.image_state(batch.pixels, keys=batch.keys), self.model.text_state(given)
        made = Forward()
        if config.itc or config.itm:
            made = Forward(self._contrast(images, texts[:size], batch.image_ids, processes))
        if config.itm:
            assert made.contrast is not None
            made = replace(made, negatives=self._negatives(made.contrast, draws, processes))
        if not (config.itm or config.mlm):
            return made
        images, texts, negatives = self._with_negatives(images, texts, made.negatives, batch, processes)
        masked, labels = draws.hidden_words()
        match_logits, word_logits = fuse_pairs(
            self.model, texts, images, size, negatives, masked if config.mlm else None
        )
        return replace(made, match_logits=match_logits, labels=labels, word_logits=word_logits)

    def _contrast(self, images: ImageState, texts: TextState, ids: Int[Tensor, "B"], processes: Processes) -> Contrast:
        """Similarities with the pairs of all processes (§3.3); without a gradient where only negatives need them."""
        branches = contrasted(self.config)
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(branches)):
            asked = branches or ("main",)
            image, text = self.model.embed_image(images, asked), self.model.embed_text(texts, asked)
            own = own_halves(processes, ids.device)
            hidden = same_picture(ids, processes) & ~own
            false_negatives = repeated_pictures(hidden)
            if self.config.false_negatives == "keep":
                hidden = torch.zeros_like(hidden)
            logits = {
                branch: in_batch_contrast(
                    image[branch], text[branch], self.model.temperature(branch), processes, hidden
                )
                for branch in asked
            }
        return Contrast(logits, own, hidden, false_negatives)

    def _negatives(
        self, contrast: Contrast, draws: Draws, processes: Processes
    ) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
        """For each text an image, for each image a text, as hard as the contrast finds them."""
        if draws.negative_image is not None and draws.negative_text is not None:
            return draws.negative_image, draws.negative_text
        for_texts, for_images = self.negative_weights(contrast, processes)
        return draw_negatives(for_texts, draws.uniform[0]), draw_negatives(for_images, draws.uniform[1])

    def negative_weights(
        self, contrast: Contrast, processes: Processes
    ) -> tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]]:
        """Sampling weights of images for each text, and of texts for each image, over all processes or the own one."""
        config, excluded = self.config, (contrast.own | contrast.hidden)[: processes.rows]
        if config.negatives == "own":
            excluded = excluded | ~contrast.own[: processes.rows].any(dim=0)
        return both_negative_weights(contrast.leading, excluded, config.negatives_mask, config.hard_negatives)

    def _with_negatives(
        self,
        images: ImageState,
        texts: TextState,
        negatives: tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None,
        batch: Batch,
        processes: Processes,
    ) -> tuple[ImageState, TextState, tuple[Int[Tensor, "B"], Int[Tensor, "B"]] | None]:
        """The states with what was drawn of other processes behind them, and where they now hold the negatives."""
        if negatives is None or processes.size == 1:
            return images, texts, negatives
        image_place, other_images = processes.locate(negatives[0], behind=len(images))
        text_place, other_texts = processes.locate(negatives[1], behind=len(texts))
        if self.config.negatives == "all":
            pixels, everyone = processes.gather(batch.pixels), processes.gather_texts(batch.texts)
            keys = None if batch.keys is None else processes.gather(batch.keys)
            if len(other_images):
                own_keys = None if keys is None else keys[other_images]
                images = ImageState.cat([images, self.model.image_state(pixels[other_images], keys=own_keys)])
            if len(other_texts):
                texts = TextState.cat([texts, self.model.text_state(everyone[other_texts])])
        return images, texts, (image_place, text_place)

    def losses(self, made: Forward, processes: Processes) -> Losses:
        """The terms of one pass. As released, MLM's counts each process alike, however many words it hides."""
        config, terms, measures = self.config, {}, self._contrast_measures(made)
        if made.contrast is not None and config.itc:
            terms["itc"] = (config.itc, _itc(made.contrast))
        if made.match_logits is not None:
            labels = match_labels(len(made.match_logits) // 3, made.match_logits.device)
            terms["itm"] = (config.itm, matching_loss(made.match_logits, labels))
            measures |= matching_measures(made.match_logits)
        if made.word_logits is not None and made.labels is not None:
            mlm = masked_lm_loss(made.word_logits, made.labels)
            alike = Term(mlm.mean * processes.rows, mlm.count.new_tensor(processes.rows))
            terms["mlm"] = (config.mlm, alike if config.gather == "released" else mlm)
            measures |= word_measures(mlm, made.word_logits, made.labels)
        return Losses.weighted(measures=measures, **terms)

    @torch.no_grad()
    def _contrast_measures(self, made: Forward) -> dict[str, Term]:
        """Of the branch that negatives are drawn by."""
        if made.contrast is None:
            return {}
        logits, temperature = made.contrast.leading, self.model.temperature(made.contrast.leading_branch)
        measures = contrast_measures(logits, made.contrast.own.float(), temperature)
        measures["false_negatives"] = made.contrast.false_negatives
        if made.negatives is not None:
            measures["negative_similarity"] = negative_similarity(logits, *made.negatives, temperature)
        return measures

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress) -> DrawnNegatives | None:
        """What a pass in evaluation mode draws, for a report; None where ITM is left out. Changes nothing."""
        training, processes = self.training, self.meet(batch)
        made = self.eval().run(batch, self.draw(batch, progress, processes), processes)
        self.train(training)
        if made.contrast is None or made.negatives is None:
            return None
        return drawn_negatives(*self.negative_weights(made.contrast, processes), *made.negatives)


def contrasted(config: VlmoPretrainConfig) -> tuple[Branch, ...]:
    """The branches that ITC trains; none if it is left out."""
    if not config.itc:
        return ()
    return get_args(Branch) if config.itc_branches == "both" else (config.itc_branches,)


def _itc(contrast: Contrast) -> Term:
    """Both ways, and the mean of the branches."""
    targets = contrast.own.float()
    rows = [contrastive_loss(x.image_to_text, x.text_to_image, targets, targets) for x in contrast.branches.values()]
    return Term(torch.stack([term.sum for term in rows]).mean(), rows[0].count)  # VLMo §3.3
