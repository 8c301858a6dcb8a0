"""Pre-trains VLMo on image-text pairs: image-text contrastive loss (ITC), matching (ITM) and masked language modelling
(MLM) (VLMo §3.3). This is the third stage of §3.4.

Stage 1 (`masked_image_modelling.py`) trains attention and V-FFNs on images alone. Stage 2
(`masked_language_modelling.py`) trains L-FFNs and text embeddings on texts alone, with attention and V-FFNs frozen.
Stage 3 trains everything; it adds the VL-FFNs and the heads.

`VlmoPretraining.forward` is one training step, in the order of computation. There is no momentum encoder and no queue:
the negatives of an image are the other texts of the global batch, those of a text the other images.

Shapes: B pairs of this process, G pairs of all processes, Q pairs that ITC is computed for (Q = B, or G as released),
T image tokens, D width, N text tokens of all texts packed end to end, R masked tokens, V vocabulary.
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
from diptych.losses.contrastive import Logits, contrastive_loss, in_batch_contrast, others_of_same_image, own_pairs
from diptych.losses.masked_lm import WordMasking, masked_lm_loss
from diptych.losses.matching import match_labels, matching_loss
from diptych.models.vlmo import FUSION_EXPERTS, Branch, ImageState, Vlmo
from diptych.models.vlmo_weights import untrained_parts
from diptych.nn.gather import Processes
from diptych.nn.packed import TextState
from diptych.schema import LanguageStageConfig, Recipe, Released, SpecialIds, VisionStageConfig, VlmoPretrainConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.tasks.phrases import PhraseContrast, add_phrases, phrase_matching_loss
from diptych.tasks.pretraining import (
    DrawnNegatives,
    Draws,
    Negatives,
    NegativeWeights,
    TrueTexts,
    check_losses,
    compared_claims,
    contrast_measures,
    draw_fused,
    draw_hard_negatives,
    fuse_pairs,
    hard_negative_weights,
    ignored_both_ways,
    matching_measures,
    negative_similarity,
    repeated_pictures,
    true_texts_measure,
    word_measures,
)
from diptych.types import Batch, Losses, Progress, Term


@dataclass(frozen=True)
class VlmoTrace:
    """Holds the intermediate tensors of one step, for reports and tests. What a recipe leaves out is None."""

    similarities: Mapping[Branch, Logits]
    """ITC's logits s / τ [Q, G] of each branch; the first branch draws the negatives."""
    positives: Bool[Tensor, "Q G"] | None
    ignored: Bool[Tensor, "Q G"] | None
    """Candidates with the same image as the query, other than its positive: neither positive nor negative."""
    negative_weights: NegativeWeights | None
    negatives: Negatives | None
    labels: Int[Tensor, "R"] | None
    match_logits: Float[Tensor, "3*F 2"] | None
    word_logits: Float[Tensor, "R V"] | None


@dataclass(frozen=True)
class _Comparison:
    """Holds what the dual encoder computes of a step, for ITC and for drawing ITM's negatives."""

    image: Mapping[str, Float[Tensor, "B D"]]
    """L2-normalised embeddings of the images in each branch."""
    similarities: Mapping[Branch, Logits]
    """s / τ [Q, G] in each branch, "main" first where it is trained."""
    positives: Bool[Tensor, "Q G"]
    same_image: Bool[Tensor, "Q G"]
    ignored: Bool[Tensor, "Q G"]
    true: TrueTexts | None

    @property
    def first(self) -> tuple[Branch, Logits]:
        """The branch that draws negatives, with its logits."""
        return next(iter(self.similarities.items()))


class VlmoPretraining(Task):
    """Trains VLMo by ITC + ITM + MLM on pairs. All processes see the whole global batch for their negatives."""

    record = Record
    purpose = "matching pictures and texts (pre-training)"
    hub_tag = "zero-shot-image-classification"
    headed = False
    measured_as_retrieval = True
    inspectable = True

    model: Vlmo
    config: VlmoPretrainConfig

    def __init__(
        self, model: Vlmo, config: VlmoPretrainConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Raises ValueError for settings that need VL-FFNs where the model has none.

        Likewise if ITC should train alone until `fuse_start`, but has weight 0, and for a `fused_share` outside (0, 1].
        """
        super().__init__()
        check_losses(config)
        if "vl" in self.branches(config) and not model.config.has_fusion_experts:
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

    # ------------------------------------------------------------------ one step

    def forward(
        self, batch: Batch, progress: Progress, draws: Draws | None = None, trace: list[VlmoTrace] | None = None
    ) -> Losses:
        """Computes ITC + ITM + MLM of a batch (VLMo §3.3). Changes no state.

        `draws` are the token masks and the uniform numbers that draw negatives, by default a function of seed and step.
        `trace` receives the intermediate tensors. A traced step computes ITM and MLM even before `fuse_start`,
        and of all pairs.
        """
        config, model, batch_size = self.config, self.model, len(batch)
        processes = self.meet(batch)  # the global batch may be split across several processes
        fuses = trace is not None or progress.step >= config.fuse_start
        draws = (draws or self.draw(batch, progress, processes)) if fuses else None
        if draws and trace is not None:
            draws = replace(draws, some=None)
        trains_itm, trains_mlm = fuses and config.itm > 0, fuses and config.mlm > 0
        terms, measures = dict[str, tuple[float, Term]](), dict[str, Term]()

        # 1. Input (§3.1): patch embeddings of each image; token embeddings of the B captions, then of the captions of
        # the F pairs that are fused (all B in the paper; task.fused_share) with a share task.mask_probability of the
        # tokens masked (0.15 in the paper). One MoME transformer reads them, as a dual encoder and as a fusion encoder.
        # Our own addition: a phrase of each caption (task.phrases).
        texts = draws.with_masked(batch.texts) if draws and trains_mlm else batch.texts  # B + F texts, or B without MLM
        phrases_from, with_phrases = len(texts), config.phrases > 0 and (trace is None or batch.phrases is not None)
        texts = add_phrases(texts, batch) if with_phrases else texts  # B more
        image_state = model.image_state(batch.pixels, rng_keys=batch.rng_keys)  # patches [B, T, D]
        text_state = model.text_state(texts)  # text tokens [N, D]

        # 2. ITC (§3.3) by the dual encoder: self-attention is shared, then image tokens pass the V-FFNs and text tokens
        # the L-FFNs (§3.2). Text b is the positive of image b and the reverse; the others of all G pairs are negatives.
        # Unlike in the paper, candidates with the same image are ignored. Branch "main" is the paper's. Branch "vl" is
        # of the released code only: images and texts still pass apart, but use the VL-FFNs in the upper layers.
        compared = contrast = None
        if config.itc or trains_itm:
            compared = self._compare(image_state, text_state[:batch_size], batch, processes)  # of unmasked captions
            measures |= self._contrast_measures(compared)
            if config.itc:
                terms["itc"] = (config.itc, mean_of_branches(compared.similarities, compared.positives))
            if with_phrases:
                branch, _ = compared.first
                phrase = model.embed_text(text_state[phrases_from:], (branch,))[branch]  # [B, D]
                contrast = PhraseContrast.of(compared.image[branch], phrase, batch, processes)
                terms["phrases"] = (config.phrases, contrast.loss)

        # 3. Hard negatives (§3.3): for each text an image and for each image a text, drawn with the probabilities of
        # ITC's softmax over the G pairs (or this process's B: task.negatives=own), without positives and ignored ones.
        weights = negatives = None
        if draws and trains_itm and compared:
            branch, logits = compared.first
            weights = hard_negative_weights(  # 2 × [B, G]
                logits, compared.positives, compared.ignored, processes, config, self.released, compared.true
            )
            negatives = draw_hard_negatives(weights, draws)  # an image [F] and a text [F] for each fused pair
            tau = model.temperature(branch)
            measures["negative_similarity"] = negative_similarity(logits, draws.fused, *negatives, tau)

        # 4. Fusion encoder (§3.1, §3.2): text and image tokens are concatenated and attend to each other. Lower layers
        # route them to L-FFN and V-FFN, the upper layers to one VL-FFN. One call for up to 4F pairs: F matched pairs,
        # F texts with their hard-negative image, F images with their hard-negative text, F masked captions with their
        # image. ITM classifies the pooled [CLS] of the first 3F, MLM predicts the masked tokens of the last F. With
        # match_phrases, 2F pairs of phrases stand between.
        labels = match_logits = word_logits = None
        if draws and (trains_itm or trains_mlm):
            drawn = negatives
            if negatives and contrast and config.match_phrases:  # images [2F], texts [F]
                drawn = contrast.extended(negatives, draws.fused, config, progress, processes)
            fetched = self._fetch_negatives(image_state, text_state, drawn, batch, processes)
            image_state, text_state, local = fetched
            masked, labels = draws.masked_tokens()  # where [R], and the token ids that were there [R]
            positions, rows = masked if trains_mlm else None, draws.fused
            match_logits, word_logits = fuse_pairs(model, text_state, image_state, batch_size, rows, local, positions)
            if match_logits is not None and len(match_logits) > 3 * len(rows):
                match_logits, phrase_logits = match_logits[: 3 * len(rows)], match_logits[3 * len(rows) :]
                terms["phrases_itm"] = (config.phrases, phrase_matching_loss(phrase_logits))  # from [2F, 2]
        if match_logits is not None:  # [3F, 2]
            match = match_labels(len(match_logits) // 3, match_logits.device)
            terms["itm"] = (config.itm, matching_loss(match_logits, match))
            measures |= matching_measures(match_logits)
        if word_logits is not None and labels is not None:  # [R, V]
            mlm = masked_lm_loss(word_logits, labels)
            measures |= word_measures(mlm, word_logits, labels)
            if self.released.gather_without_gradient:  # the released code averages MLM per process, then over processes
                mlm = Term(mlm.mean * processes.rows, mlm.count.new_tensor(processes.rows))
            terms["mlm"] = (config.mlm, mlm)

        if trace is not None:
            trace.append(VlmoTrace(
                similarities=compared.similarities if compared else {},
                positives=None if compared is None else compared.positives,
                ignored=None if compared is None else compared.ignored,
                negative_weights=weights, negatives=negatives, labels=labels, match_logits=match_logits,
                word_logits=word_logits,
            ))  # fmt: skip
        return Losses.weighted(measures=measures, **terms)  # VLMo §3.3

    def _compare(self, images: ImageState, texts: TextState, batch: Batch, processes: Processes) -> _Comparison:
        """Runs the dual encoder in the branches of ITC and compares all images with all texts.

        Where ITC has weight 0, branch "main" is compared without a gradient, to draw the negatives of ITM.
        """
        config, model, trained = self.config, self.model, self.branches(self.config)
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(trained)):
            branches = trained or ("main",)
            image, text = model.embed_image(images, branches), model.embed_text(texts, branches)  # L2-normalised [B, D]
            positives = own_pairs(processes, batch.image_ids.device)  # [Q, G]
            same_image = others_of_same_image(*processes.compared(batch.image_ids), positives)  # [Q, G]
            ignored = same_image & (not self.released.keep_false_negatives)
            # With ignore_true_texts, texts that are known to be true of an image are ignored, too.
            true = TrueTexts.of(*compared_claims(batch, processes), positives) if config.ignore_true_texts else None
            both = ignored_both_ways(ignored, true)  # texts of each image, images of each text: 2 × [Q, G]
            similarities = {
                branch: in_batch_contrast(image[branch], text[branch], model.temperature(branch), processes, both)
                for branch in branches
            }  # both ways [Q, G]
        return _Comparison(image, similarities, positives, same_image, ignored, true)

    def _fetch_negatives(
        self, images: ImageState, texts: TextState, negatives: Negatives | None, batch: Batch, processes: Processes
    ) -> tuple[ImageState, TextState, Negatives | None]:
        """Appends the negatives that other processes hold. Returns the negatives as indices of the new states.

        Before fusion, VLMo's states are mere embeddings. So pixels and token ids are exchanged and embedded here, by
        every process, also one that drew no negative of the others.
        """
        if negatives is None or processes.size == 1:
            return images, texts, negatives
        image_index, other_images = processes.locate(negatives[0], behind=len(images))
        text_index, other_texts = processes.locate(negatives[1], behind=len(texts))
        if self.config.negatives == "all":
            pixels, everyone = processes.gather(batch.pixels), processes.gather_texts(batch.texts)
            rng_keys = None if batch.rng_keys is None else processes.gather(batch.rng_keys)
            if len(other_images):
                rng_keys = None if rng_keys is None else rng_keys[other_images]
                images = ImageState.cat([images, self.model.image_state(pixels[other_images], rng_keys=rng_keys)])
            if len(other_texts):
                texts = TextState.cat([texts, self.model.text_state(everyone[other_texts])])
        return images, texts, (image_index, text_index)

    # ------------------------------------------------------------------ around the step

    @torch.no_grad()
    def before_step(self) -> None:
        """Clamps the temperatures. The released code does not (docs/released_code.md, defect 16)."""
        if not self.released.unbounded_temperature:
            low, high = self.config.temperature_bounds
            for scale in (self.model.log_scale, self.model.vl_log_scale):
                scale.clamp_(-math.log(high), -math.log(low))  # the scale is log(1 / τ)

    @classmethod
    def branches(cls, config: VlmoPretrainConfig) -> tuple[Branch, ...]:
        """Returns the branches that ITC trains, "main" first; none where its weight is 0."""
        if not config.itc:
            return ()
        return get_args(Branch) if config.itc_branches == "both" else (config.itc_branches,)

    @classmethod
    def trained(cls, config: VlmoPretrainConfig) -> tuple[str, ...]:
        """Names the model's methods (and the branch "vl") whose parameters train: a term of weight 0 trains nothing."""
        names: list[str] = []
        if "main" in cls.branches(config):
            names += ["embed_image", "embed_text", "temperature"]
        if "vl" in cls.branches(config):
            names += ["vl"]
        if config.itm or config.mlm:
            names += ["fuse"]
        if config.itm:
            names += ["pooled", "match_logits"]
        if config.mlm:
            names += ["word_logits"]
        return tuple(names)

    def fresh_from(self, origin: Recipe) -> tuple[str, ...]:
        """Names the parts that the stages before have not trained, which start with new weights.

        Raises ValueError where the VL-FFNs should start from L-FFNs that no text has trained.
        """
        if self.config.fusion_experts == "language" and isinstance(origin.task, VisionStageConfig):
            raise ValueError("task.fusion_experts=language needs a start that has learnt texts: the language stage")
        return untrained_parts(origin.task, self.model.config.depth)

    def adapt(self, state: Mapping[str, Tensor], origin: Recipe) -> dict[str, Tensor]:
        """Adapts the weights of an earlier run to this model (§3.4).

        After the vision or the language stage, the VL-FFN of each upper layer starts as a copy of its V-FFN or L-FFN,
        or with new weights, as `task.fusion_experts` says.
        """
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
        """Draws the token masks and the uniform numbers of a step as a pure function of (seed, step).

        The draws do not depend on how the batch is split across processes, nor on how far its texts are padded.
        """
        processes = processes or self.meet(batch)
        draws = self.masking.draw(len(batch), progress, processes.own.start)
        masked_ids, labels = self.masking(batch.texts, draws)
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        uniform = torch.rand(2, processes.total, generator=generator)[:, processes.own].to(masked_ids.device)
        return Draws(masked_ids, labels, uniform, some=draw_fused(self.config, processes, generator, uniform.device))

    @torch.no_grad()
    def _contrast_measures(self, compared: _Comparison) -> dict[str, Term]:
        """Measures ITC of the first branch: its bound on mutual information, cosines, τ, repeated images."""
        branch, logits = compared.first
        return {
            **contrast_measures(logits, compared.positives.float(), self.model.temperature(branch)),
            "false_negatives": repeated_pictures(compared.same_image),
            **true_texts_measure(compared.true),
        }

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress) -> DrawnNegatives | None:
        """Runs a step in evaluation mode and returns its negatives for a report; None without ITM. Changes nothing."""
        training, traces = self.training, list[VlmoTrace]()
        self.eval()(batch, progress, trace=traces)
        self.train(training)
        weights, negatives = traces[0].negative_weights, traces[0].negatives
        return None if weights is None or negatives is None else DrawnNegatives.of(weights, negatives)


def mean_of_branches(similarities: Mapping[Branch, Logits], positives: Bool[Tensor, "Q G"]) -> Term:
    """Averages the contrastive loss, both ways, over the branches. The paper has one, the released code two."""
    targets = positives.float()
    losses = [contrastive_loss(x.image_to_text, x.text_to_image, targets, targets) for x in similarities.values()]
    return Term(torch.stack([loss.sum for loss in losses]).mean(), losses[0].count)
