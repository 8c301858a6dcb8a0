"""Pre-trains ALBEF: contrast (ITC), matching (ITM) and masked words (MLM) with a momentum encoder (ALBEF §3.2, §3.3).

`AlbefPretraining.forward` is one training step in the order of the paper. The optimiser and the loop are in
`diptych/train`; the two encoders and the fusion encoder are in `diptych/models/albef.py`.

Shapes: B pairs of this process, G pairs of all processes (G = B for a single one), M filled places of the queue,
K = G + M candidates of the contrast, E width of the shared embedding space, T image tokens, D width, N text tokens of
all texts end to end, L padded text length, R masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.data.record import Record
from diptych.losses.contrastive import Similarities, distilled_contrastive_loss, ignore, other_captions, similarity
from diptych.losses.distillation import alpha_at, mixed_word_loss
from diptych.losses.masked_lm import MaskDraws, mask_words, masked_lm_loss
from diptych.losses.matching import match_labels, matching_loss
from diptych.models.albef import Albef, ImageState
from diptych.nn.counter_rng import derived
from diptych.nn.gather import Processes
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.packed import TextState
from diptych.nn.queue import FeatureQueue
from diptych.schema import AlbefPretrainConfig, Released, SpecialIds
from diptych.seeds import seed_of
from diptych.tasks.distilled import DistilledTask
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
    nonzero,
    repeated_pictures,
    word_measures,
)
from diptych.types import Batch, Losses, Progress, Term, Texts, TokenPositions

TEACHER = 1
"""Number that sets the dropout draws of the momentum encoder apart from those of the trained model."""

Keys = tuple[Float[Tensor, "G E"], Float[Tensor, "G E"], Int[Tensor, "G"]]
"""Image features and text features of the momentum encoder, and the identities of their pictures, for the queue."""


@dataclass(frozen=True)
class AlbefTrace:
    """Holds the intermediate tensors of one step, for reports and tests."""

    similarities: Similarities
    """Logits of the contrast [B, K], of the model and of the momentum encoder."""
    positives: Float[Tensor, "B K"]
    ignored: Bool[Tensor, "B K"]
    """Candidates that are another caption of the same picture: neither positive nor negative."""
    keys: Keys | None
    negative_weights: NegativeWeights
    negatives: Negatives
    masked: TokenPositions
    labels: Int[Tensor, "R"]
    match_logits: Float[Tensor, "3*B 2"]
    word_logits: Float[Tensor, "R V"]
    teacher_word_logits: Float[Tensor, "R V"] | None


@dataclass(frozen=True)
class AlbefInspection(DrawnNegatives):
    """Shows what one step drew as negatives, and what the momentum encoder predicts beside the labels.

    The k likeliest words at each masked token and the n most similar texts of each image, best first.
    """

    masked: TokenPositions
    labels: Int[Tensor, "R"]
    teacher_words: Int[Tensor, "R k"]
    teacher_word_probabilities: Float[Tensor, "R k"]
    teacher_texts: Int[Tensor, "B n"]
    teacher_text_probabilities: Float[Tensor, "B n"]


class AlbefPretraining(DistilledTask):
    """Trains ALBEF by ITC + ITM + MLM, with labels softened by the pseudo-targets of a momentum encoder."""

    record = Record
    purpose = "matching pictures and texts (pre-training)"
    hub_tag = "zero-shot-image-classification"
    headed = False
    ranks_pairs = True
    inspectable = True
    keeps_teacher = True

    model: Albef
    teacher: Albef
    config: AlbefPretrainConfig

    def __init__(
        self, model: Albef, config: AlbefPretrainConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Copies the model as its momentum encoder and makes an empty queue. Raises ValueError for `fuse_start`."""
        super().__init__()
        check_fuse_start(config)
        self.model, self.config, self.special, self.released = model, config, special, released
        self.teacher = momentum_copy(model, without=("match_head", "temp"))
        self.queue = FeatureQueue(config.queue_size, model.config.embed_dim)
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.train()

    # ------------------------------------------------------------------ one step, in the paper's order

    def forward(
        self, batch: Batch, progress: Progress, draws: Draws | None = None, trace: list[AlbefTrace] | None = None
    ) -> Losses:
        """Computes ITC + ITM + MLM of a batch (ALBEF §3.2, §3.3). Changes no state.

        `draws` are the random masks and numbers of the step, by default a function of seed and step. `trace` receives
        the intermediate tensors; with it, all of them are computed, whatever `progress` says.
        """
        config, model, size = self.config, self.model, len(batch)
        uses_momentum, fuses, alpha = self._phase(progress, everything=trace is not None)
        processes = Processes.meet(size)  # the batch may be shared out over several processes
        if fuses:
            draws = draws or self.draw(batch, progress, processes)

        # 1. Encode (§3.1): each image once; each caption as it is and, behind those B, with 15 % of its words masked.
        texts = draws.with_masked(batch.texts) if fuses and draws else batch.texts  # 2B texts
        image_state = model.image_state(batch.pixels, rng_keys=batch.rng_keys)  # image tokens [B, T, D]
        text_state = model.text_state(texts)  # text tokens [N, D]
        image = model.embed_image(image_state)["main"]  # g_v(v_cls), of length 1 [B, E]
        text = model.embed_text(text_state)["main"][:size]  # g_w(w_cls) of the unmasked captions, of length 1 [B, E]

        # 2. Momentum encoder (§3.2, §3.3): it sees the same pairs and gives, without a gradient, the features that ITC
        # compares with, and its prediction of the masked words. Those of earlier batches wait in the queue.
        image_key, text_key, pseudo_words = image.detach(), text.detach(), None
        if uses_momentum:
            with_words = fuses and (trace is not None or alpha * config.alpha_mlm > 0)
            image_key, text_key, pseudo_words = self._momentum_outputs(batch, draws if with_words else None)
        keys = processes.gather(image_key), processes.gather(text_key), processes.gather(batch.image_ids)
        image_keys, text_keys, key_ids = self.queue.behind(*keys)  # K = G + M candidates [K, E], [K, E], [K]

        # 3. ITC (Eq. 1, 2): the positive of pair b is its own other half. Another caption of the same picture is
        # neither positive nor negative. The targets are (1 − α) · label + α · the momentum encoder's softmax (Eq. 6).
        positives = F.one_hot(processes.places(key_ids.device), len(key_ids)).float()  # [B, K]
        repeated = other_captions(batch.image_ids, key_ids, positives.bool())  # [B, K]
        ignored = repeated & (not self.released.keep_false_negatives)
        tau = model.temperature()
        similarities = Similarities(
            ignore(similarity(image, text_keys, tau), ignored),  # s(I, T) / τ [B, K]
            ignore(similarity(text, image_keys, tau), ignored),  # s(T, I) / τ [B, K]
            ignore(similarity(image_key, text_keys, tau.detach()), ignored),  # s'(I, T) / τ, the momentum encoder's
            ignore(similarity(text_key, image_keys, tau.detach()), ignored),  # s'(T, I) / τ
        )
        itc = distilled_contrastive_loss(similarities, positives, alpha * config.alpha_itc)
        measures = self._contrast_measures(similarities, positives, repeated, alpha)
        carry = keys if uses_momentum else None  # `after_step` puts them into the queue
        if not fuses or draws is None:
            return Losses.weighted(measures=measures, carry=carry, itc=(config.itc, itc))

        # 4. Hard negatives (§3.2): for each text an image and for each image a text, drawn from the batch with the
        # probability that ITC's softmax gives them: what the model mistakes most is drawn most.
        settings = config, self.released
        weights = hard_negative_weights(similarities, positives.bool(), ignored, processes, *settings)  # [B, G] each
        negatives = draw_hard_negatives(weights, draws)  # an image for each text [B], a text for each image [B]
        image_state, text_state, places = self._fetch_negatives(image_state, text_state, negatives, processes)

        # 5. Fusion: one call for 4B pairs: B pairs, B texts with a hard image, B images with a hard text, and the B
        # masked texts with their image. ITM (Eq. 4) tells by the fused [CLS] that the first B match and the next 2B do
        # not. MLM (Eq. 3) predicts the masked words; the momentum encoder's distribution is its soft target (Eq. 7).
        masked, labels = draws.masked_tokens()  # where [R], and the ids that were there [R]
        match_logits, word_logits = fuse_pairs(model, text_state, image_state, size, places, masked)  # [3B, 2], [R, V]
        itm = matching_loss(match_logits, match_labels(size, match_logits.device))
        mlm = hard_mlm = masked_lm_loss(word_logits, labels)
        if pseudo_words is not None:
            mlm = mixed_word_loss(hard_mlm, word_logits, pseudo_words, alpha * config.alpha_mlm)

        # 6. The whole loss is the sum of the three (Eq. 5).
        measures |= word_measures(hard_mlm, word_logits, labels) | matching_measures(match_logits)
        measures["negative_similarity"] = negative_similarity(similarities, *negatives, tau)
        if trace is not None:
            passed = (similarities, positives, ignored, carry, weights, negatives, masked, labels)
            trace.append(AlbefTrace(*passed, match_logits, word_logits, pseudo_words))
        terms = {"itc": (config.itc, itc), "itm": (config.itm, itm), "mlm": (config.mlm, mlm)}
        return Losses.weighted(measures=measures, carry=carry, **nonzero(terms))  # ALBEF Eq. 5

    def _phase(self, progress: Progress, everything: bool) -> tuple[bool, bool, float]:
        """Returns whether the momentum encoder is used, whether fusion trains, and α as a share of its end value.

        Published, both hold from the first step and α rises from 0 over the first epoch (§3.3).
        """
        config = self.config
        momentum_starts, alpha = progress.step >= config.momentum_start, 0.0
        if momentum_starts:
            alpha = alpha_at(progress.epoch_since(config.momentum_start), 1.0, config.alpha_ramp)
        return momentum_starts or everything, progress.step >= config.fuse_start or everything, alpha

    @torch.no_grad()
    def _momentum_outputs(
        self, batch: Batch, draws: Draws | None
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"], Float[Tensor, "R V"] | None]:
        """Computes the momentum encoder's image and text features and, with `draws`, its scores of the masked words.

        Its dropout, if it has any, is drawn apart from that of the trained model.
        """
        teacher, size = self.teacher, len(batch)
        texts = batch.texts if draws is None else draws.with_masked(batch.texts)
        image_keys, text_keys = (
            None if keys is None else derived(keys, TEACHER) for keys in (batch.rng_keys, texts.rng_keys)
        )
        image_state = teacher.image_state(batch.pixels, rng_keys=image_keys)
        text_state = teacher.text_state(replace(texts, rng_keys=text_keys))
        words = None
        if draws is not None:
            here = torch.arange(size, device=batch.pixels.device)
            fused = teacher.fuse(text_state, image_state, here + size, here, draws.masked_tokens()[0])  # masked texts
            assert fused.hidden is not None
            words = teacher.word_logits(fused.hidden).float()
        return teacher.embed_image(image_state)["main"], teacher.embed_text(text_state)["main"][:size], words

    def _fetch_negatives(
        self, images: ImageState, texts: TextState, negatives: Negatives, processes: Processes
    ) -> tuple[ImageState, TextState, Negatives]:
        """Appends the encoded negatives that other processes hold, and returns the places where all negatives are now.

        Gradients of a fetched negative lead back to the process that encoded it.
        """
        if processes.size == 1:
            return images, texts, negatives
        image_place, other_images = processes.locate(negatives[0], behind=len(images))
        text_place, other_texts = processes.locate(negatives[1], behind=len(texts))
        if self.config.negatives == "all":  # every process gathers, also one that drew no negative of the others
            keys = None if images.rng_keys is None else processes.gather(images.rng_keys)
            everyone = ImageState(processes.gather(images.tokens), rng_keys=keys)
            images = ImageState.cat([images, everyone[other_images]])
            texts = TextState.cat([texts, processes.gather_states(texts[: processes.rows])[other_texts]])
        return images, texts, (image_place, text_place)

    # ------------------------------------------------------------------ around the step

    @torch.no_grad()
    def before_step(self) -> None:
        """Clamps the temperature, then moves the momentum encoder: θ' ← 0.995 θ' + 0.005 θ (ALBEF §3.2)."""
        self.model.temp.clamp_(*self.config.temperature_bounds)
        move_towards(self.teacher, self.model, self.config.momentum)

    def after_step(self, carry: Keys | None) -> None:
        """Puts the momentum features of the step into the queue, in place of the oldest."""
        if carry is not None:
            self.queue.push(*carry)

    @classmethod
    def trained(cls, config: AlbefPretrainConfig) -> tuple[str, ...]:
        """Names the calls of the model that train. A term of weight 0 trains nothing."""
        weights = dict.fromkeys(("embed_image", "embed_text", "temperature"), config.itc)
        weights |= {"match_logits": config.itm, "word_logits": config.mlm, "fuse": config.itm + config.mlm}
        return tuple(call for call, weight in weights.items() if weight)

    def draw(self, batch: Batch, progress: Progress, processes: Processes | None = None) -> Draws:
        """Draws the masks and the random numbers of a step as a pure function of (seed, step).

        All processes draw for the global batch and take their own rows, so that the draws do not depend on how the
        batch is shared out, nor on how far its texts are padded.
        """
        processes = processes or Processes.meet(len(batch))
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        texts, vocabulary = batch.texts, self.model.config.text.vocab_size
        length = texts.input_ids.shape[1]
        width = max(length, self.model.config.text.max_positions)
        wide = MaskDraws.make(processes.total, width, self.config.mask_probability, vocabulary, generator)
        names, own = ("select", "replace", "randomise", "words"), processes.own
        masked_ids, labels = self.mask(texts, MaskDraws(*(getattr(wide, name)[own, :length] for name in names)))
        uniform = torch.rand(2, processes.total, generator=generator)[:, own]
        return Draws(masked_ids, labels, uniform.to(masked_ids.device))

    def mask(self, texts: Texts, draws: MaskDraws) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Masks words of the texts. Returns the ids with masks and the labels.

        [CLS] and padding are never masked, other special tokens only with
        `released.mask_special_tokens` (docs/released_code.md, defect 13).
        """
        ids, special = texts.input_ids, self.special
        kept = [special.cls, special.pad]
        if not self.released.mask_special_tokens:
            kept += [special.unk, special.sep, special.mask]
        maskable = texts.attention_mask.bool() & ~torch.isin(ids, torch.tensor(kept, device=ids.device))
        moved = MaskDraws(*(x.to(ids.device) for x in (draws.select, draws.replace, draws.randomise, draws.words)))
        return mask_words(ids, maskable, special.mask, moved)

    @torch.no_grad()
    def _contrast_measures(
        self, similarities: Similarities, positives: Float[Tensor, "B K"], repeated: Bool[Tensor, "B K"], alpha: float
    ) -> dict[str, Term]:
        """Measures whether the contrast is healthy, and how much probability the momentum encoder gives the labels."""
        momentum = similarities.momentum_image_to_text.softmax(1) + similarities.momentum_text_to_image.softmax(1)
        return {
            **contrast_measures(similarities, positives, self.model.temp),
            "false_negatives": repeated_pictures(repeated),
            "alpha": Term.over(positives.new_full((1,), alpha)),
            "teacher_label_probability": Term.over((momentum * positives).sum(1) / 2),
        }

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress, guesses: int = 5) -> AlbefInspection:
        """Runs a step in evaluation mode and returns what a report shows of it. Changes nothing."""
        training, traces = self.training, list[AlbefTrace]()
        self.eval()(batch, progress, trace=traces)
        self.train(training)
        (trace,) = traces
        assert trace.teacher_word_logits is not None
        words = trace.teacher_word_logits.softmax(1).topk(min(guesses, trace.teacher_word_logits.shape[1]))
        in_batch = trace.similarities.momentum_image_to_text[:, : len(batch)]
        texts = in_batch.softmax(1).topk(min(guesses, len(batch)))
        return AlbefInspection(
            **vars(DrawnNegatives.of(trace.negative_weights, trace.negatives)),
            masked=trace.masked, labels=trace.labels,
            teacher_words=words.indices, teacher_word_probabilities=words.values,
            teacher_texts=texts.indices, teacher_text_probabilities=texts.values,
        )  # fmt: skip
