"""Pre-trains VLMo on image-text pairs: contrast (ITC), matching (ITM) and masked words (MLM) (VLMo §3.3, §3.4).

This is the third stage. The first, on images alone, is `masked_image_modelling.py`; the second, on texts alone, is
`masked_language_modelling.py`. `VlmoPretraining.forward` is one training step in the order of the paper. There is no
momentum encoder and no queue: the negatives of a pair are the other pairs of the batch, over all processes.

Shapes: B pairs of this process, G pairs of all processes, Q pairs that the contrast is computed for (Q = B, or G as in
the released code), L padded text length, T image tokens, D width, R masked tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.record import Record
from diptych.losses.contrastive import Logits, contrastive_loss, in_batch_contrast, other_captions, own_halves
from diptych.losses.masked_lm import WordMasking, masked_lm_loss
from diptych.losses.matching import match_labels, matching_loss
from diptych.models.vlmo import FUSION_EXPERTS, Branch, ImageState, Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.nn.packed import TextState
from diptych.schema import LanguageStageConfig, Recipe, Released, SpecialIds, VisionStageConfig, VlmoPretrainConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.tasks.pretraining import (
    DrawnNegatives,
    Draws,
    Negatives,
    NegativeWeights,
    check_fuse_start,
    contrast_measures,
    draw_hard_negatives,
    fuse_pairs,
    hard_negative_weights,
    matching_measures,
    negative_similarity,
    repeated_pictures,
    word_measures,
)
from diptych.types import Batch, Losses, Progress, Term


@dataclass(frozen=True)
class VlmoTrace:
    """Holds the intermediate tensors of one step, for reports and tests. What no loss needs is None."""

    similarities: Mapping[Branch, Logits]
    """Logits of the contrast by branch [Q, G]; the first branch draws the negatives."""
    positives: Bool[Tensor, "Q G"] | None
    ignored: Bool[Tensor, "Q G"] | None
    """Candidates that are another caption of the same picture: neither positive nor negative."""
    negative_weights: NegativeWeights | None
    negatives: Negatives | None
    labels: Int[Tensor, "R"] | None
    match_logits: Float[Tensor, "3*B 2"] | None
    word_logits: Float[Tensor, "R V"] | None


class VlmoPretraining(Task):
    """Trains VLMo by ITC + ITM + MLM on pairs. All processes see the whole global batch for their negatives."""

    record = Record
    purpose = "matching pictures and texts (pre-training)"
    hub_tag = "zero-shot-image-classification"
    headed = False
    ranks_pairs = True
    inspectable = True

    model: Vlmo
    config: VlmoPretrainConfig

    def __init__(
        self, model: Vlmo, config: VlmoPretrainConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Raises ValueError for settings that need VL-FFNs where the model has none, and for `fuse_start`."""
        super().__init__()
        check_fuse_start(config)
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
        self.model, self.config, self.released = model, config, released
        sizes = (model.config.vocab_size, model.config.max_positions)
        self.masking = WordMasking(config, special, *sizes, released.masking_of_padding)
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.train()

    # ------------------------------------------------------------------ one step, in the paper's order

    def forward(
        self, batch: Batch, progress: Progress, draws: Draws | None = None, trace: list[VlmoTrace] | None = None
    ) -> Losses:
        """Computes ITC + ITM + MLM of a batch (VLMo §3.3). Changes no state.

        `draws` are the random masks and numbers of the step, by default a function of seed and step. `trace` receives
        the intermediate tensors; with it, matching and masked words are computed, whatever `progress` says.
        """
        config, model, size = self.config, self.model, len(batch)
        processes = self.meet(batch)  # the batch may be shared out over several processes
        fuses = trace is not None or progress.step >= config.fuse_start
        draws = (draws or self.draw(batch, progress, processes)) if fuses else None
        terms, measures = dict[str, tuple[float, Term]](), dict[str, Term]()
        positives = ignored = weights = negatives = labels = match_logits = word_logits = None

        # 1. Embed (§3.1): patches of each image; tokens of each caption as it is and, behind those B, with 15 % of its
        # words masked. They are the input of one transformer, which serves as dual encoder and as fusion encoder.
        texts = draws.with_masked(batch.texts) if draws and config.mlm else batch.texts  # 2B texts
        image_state = model.image_state(batch.pixels, rng_keys=batch.rng_keys)  # patches [B, T, D]
        text_state = model.text_state(texts)  # text tokens [N, D]

        # 2. ITC (§3.3): the dual encoder routes images alone through the V-FFNs and texts alone through the L-FFNs.
        # Each image is compared with the texts of all G pairs, each text with their images. The branch "main" compares
        # these features; the branch "vl", as released, those that pass the VL-FFNs in the upper layers instead.
        branches, similarities = contrasted(config), dict[Branch, Logits]()
        needed: tuple[Branch, ...] = branches or ("main",)
        if branches or (draws and config.itm):
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(branches)):  # negatives need no gradient
                image = model.embed_image(image_state, needed)  # by branch, of length 1 [B, D]
                text = model.embed_text(text_state[:size], needed)  # by branch, of length 1 [B, D]
                positives = own_halves(processes, batch.image_ids.device)  # [Q, G]
                repeated = other_captions(*processes.compared(batch.image_ids), positives)  # of the same picture [Q, G]
                ignored = repeated & (not self.released.keep_false_negatives)  # neither positive nor negative
                for branch in needed:
                    pair = image[branch], text[branch], model.temperature(branch)
                    similarities[branch] = in_batch_contrast(*pair, processes, ignored)  # s / τ, both ways [Q, G]
            measures |= self._contrast_measures(similarities, positives, repeated)
            if branches:
                terms["itc"] = (config.itc, mean_of_branches(similarities, positives))

        # 3. Hard negatives (§3.3): for each text an image and for each image a text, drawn from the pairs of all
        # processes with the probability that ITC's softmax gives them.
        if draws and config.itm and positives is not None and ignored is not None:
            branch, leading = next(iter(similarities.items()))
            settings = config, self.released
            weights = hard_negative_weights(leading, positives, ignored, processes, *settings)  # [B, G] each
            negatives = draw_hard_negatives(weights, draws)  # an image for each text [B], a text for each image [B]
            measures["negative_similarity"] = negative_similarity(leading, *negatives, model.temperature(branch))

        # 4. Fusion (§3.3): text and image side by side, own FFNs below, VL-FFNs on top; one call for 4B pairs: B pairs,
        # B texts with a hard image, B images with a hard text, and the B masked texts with their image. ITM tells by
        # the pooled [CLS] that the first B match and the next 2B do not; MLM predicts the masked words.
        if draws and (config.itm or config.mlm):
            image_state, text_state, places = self._fetch_negatives(
                image_state, text_state, negatives, batch, processes
            )
            masked, labels = draws.masked_tokens()  # where [R], and the ids that were there [R]
            match_logits, word_logits = fuse_pairs(
                model, text_state, image_state, size, places, masked if config.mlm else None
            )  # [3B, 2], [R, V]
        if match_logits is not None:
            terms["itm"] = (config.itm, matching_loss(match_logits, match_labels(size, match_logits.device)))
            measures |= matching_measures(match_logits)
        if word_logits is not None and labels is not None:
            mlm = masked_lm_loss(word_logits, labels)
            measures |= word_measures(mlm, word_logits, labels)
            if self.released.gather_without_gradient:  # each process counts alike, however many words it masks
                mlm = Term(mlm.mean * processes.rows, mlm.count.new_tensor(processes.rows))
            terms["mlm"] = (config.mlm, mlm)

        if trace is not None:
            contrast = (similarities, positives, ignored, weights, negatives)
            trace.append(VlmoTrace(*contrast, labels, match_logits, word_logits))
        return Losses.weighted(measures=measures, **terms)  # VLMo §3.3

    def _fetch_negatives(
        self, images: ImageState, texts: TextState, negatives: Negatives | None, batch: Batch, processes: Processes
    ) -> tuple[ImageState, TextState, Negatives | None]:
        """Appends the negatives that other processes hold, and returns the places where all negatives are now.

        Pixels and token ids are gathered, and embedded here.
        """
        if negatives is None or processes.size == 1:
            return images, texts, negatives
        image_place, other_images = processes.locate(negatives[0], behind=len(images))
        text_place, other_texts = processes.locate(negatives[1], behind=len(texts))
        if self.config.negatives == "all":
            pixels, everyone = processes.gather(batch.pixels), processes.gather_texts(batch.texts)
            keys = None if batch.rng_keys is None else processes.gather(batch.rng_keys)
            if len(other_images):
                own_keys = None if keys is None else keys[other_images]
                images = ImageState.cat([images, self.model.image_state(pixels[other_images], rng_keys=own_keys)])
            if len(other_texts):
                texts = TextState.cat([texts, self.model.text_state(everyone[other_texts])])
        return images, texts, (image_place, text_place)

    # ------------------------------------------------------------------ around the step

    @torch.no_grad()
    def before_step(self) -> None:
        """Clamps the temperatures. The released code does not (docs/released_code.md, defect 16)."""
        if not self.released.unbounded_temperature:
            low, high = self.config.temperature_bounds
            for scale in (self.model.log_scale, self.model.vl_log_scale):
                scale.clamp_(-math.log(high), -math.log(low))

    @classmethod
    def trained(cls, config: VlmoPretrainConfig) -> tuple[str, ...]:
        """Names the calls of the model that train. A term of weight 0 trains nothing."""
        calls: list[str] = []
        if "main" in contrasted(config):
            calls += ["embed_image", "embed_text", "temperature"]
        if "vl" in contrasted(config):
            calls += ["vl"]
        if config.itm or config.mlm:
            calls += ["fuse"]
        return (*calls, *["pooled", "match_logits"] * bool(config.itm), *["word_logits"] * bool(config.mlm))

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Names the parts that the stages before have not trained.

        Raises ValueError where the VL-FFNs should start from L-FFNs that no text has trained.
        """
        if self.config.fusion_experts == "language" and isinstance(origin.task, VisionStageConfig):
            raise ValueError("task.fusion_experts=language needs a start that has learnt texts: the language stage")
        return untrained_parts(origin.task, self.model.config.depth)

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Starts from a stage of one modality (§3.4); the VL-FFNs begin as `fusion_experts` says."""
        adapted = super().adapt(state, origin)
        source = {"vision": "vision_ffn", "language": "language_ffn"}.get(self.config.fusion_experts)
        if source and isinstance(origin.task, VisionStageConfig | LanguageStageConfig):
            for number in range(self.model.config.fusion_start, self.model.config.depth):
                expert = f"model.blocks.{number}.{source}."
                copied = {name: value for name, value in adapted.items() if name.startswith(expert)}
                adapted |= {name.replace(f".{source}.", ".vl_ffn.", 1): value for name, value in copied.items()}
        return adapted

    def meet(self, batch: Batch) -> Processes:
        """Returns the processes that share the global batch."""
        return Processes.meet(len(batch), own_first=self.released.gather_without_gradient)

    def draw(self, batch: Batch, progress: Progress, processes: Processes | None = None) -> Draws:
        """Draws the masks and the random numbers of a step as a pure function of (seed, step).

        The draws do not depend on how the batch is shared out, nor on how far its texts are padded.
        """
        processes = processes or self.meet(batch)
        draws = self.masking.draw(len(batch), progress, processes.own.start)
        masked_ids, labels = self.masking(batch.texts, draws)
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        uniform = torch.rand(2, processes.total, generator=generator)[:, processes.own]
        return Draws(masked_ids, labels, uniform.to(masked_ids.device))

    @torch.no_grad()
    def _contrast_measures(
        self, similarities: Mapping[Branch, Logits], positives: Bool[Tensor, "Q G"], repeated: Bool[Tensor, "Q G"]
    ) -> dict[str, Term]:
        """Measures whether the contrast of the branch that draws the negatives is healthy."""
        branch, leading = next(iter(similarities.items()))
        measures = contrast_measures(leading, positives.float(), self.model.temperature(branch))
        return measures | {"false_negatives": repeated_pictures(repeated)}

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress) -> DrawnNegatives | None:
        """Runs a step in evaluation mode and returns its negatives for a report; None without ITM. Changes nothing."""
        training, traces = self.training, list[VlmoTrace]()
        self.eval()(batch, progress, trace=traces)
        self.train(training)
        weights, negatives = traces[0].negative_weights, traces[0].negatives
        return None if weights is None or negatives is None else DrawnNegatives.of(weights, negatives)


def contrasted(config: VlmoPretrainConfig) -> tuple[Branch, ...]:
    """Returns the branches that ITC trains, none where its weight is 0. The first one draws the negatives."""
    if not config.itc:
        return ()
    return get_args(Branch) if config.itc_branches == "both" else (config.itc_branches,)


def mean_of_branches(similarities: Mapping[Branch, Logits], positives: Bool[Tensor, "Q G"]) -> Term:
    """Averages the contrastive loss, both ways, over the branches (VLMo §3.3; the released code has two)."""
    targets = positives.float()
    losses = [contrastive_loss(x.image_to_text, x.text_to_image, targets, targets) for x in similarities.values()]
    return Term(torch.stack([loss.sum for loss in losses]).mean(), losses[0].count)
