"""Pre-trains ALBEF: image-text contrastive loss (ITC), matching (ITM) and masked language modelling (MLM), with
pseudo-targets of a momentum encoder (ALBEF §3.2, §3.3).

`AlbefPretraining.forward` is one training step, in the order of computation. The networks are in
`diptych/models/albef.py`; the optimiser and the loop are in `diptych/train`.

Shapes: B pairs of this process, G pairs of all processes (G = B for a single one), M filled entries of the queue,
K = G + M candidates of ITC, E width of the shared embedding space, T image tokens, D width, N text tokens of all texts
packed end to end, L padded text length, R masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.data.record import Record
from diptych.losses.contrastive import (
    Similarities,
    distilled_contrastive_loss,
    ignore,
    information_bound,
    others_of_same_image,
    similarity,
)
from diptych.losses.distillation import alpha_at, distilled_loss
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
from diptych.types import KNOWN, SAID, Batch, Claims, Losses, Progress, Term, Texts, TokenPositions

MOMENTUM_STREAM = 1
"""Stream of the momentum encoder's dropout draws, which are drawn apart from those of the trained model."""

QueueEntries = tuple[Float[Tensor, "G E"], Float[Tensor, "G E"], Int[Tensor, "G"]]
"""Image features and text features of the momentum encoder, and the identities of the images."""


@dataclass(frozen=True)
class AlbefTrace:
    """Holds the intermediate tensors of one step, for reports and tests."""

    similarities: Similarities
    """ITC's logits s / τ [B, K], of the model and of the momentum encoder."""
    positives: Bool[Tensor, "B K"]
    ignored: Bool[Tensor, "B K"]
    """Candidates with the same image as the query, other than its positive: neither positive nor negative."""
    queue_entries: QueueEntries
    negative_weights: NegativeWeights
    negatives: Negatives
    masked: TokenPositions
    labels: Int[Tensor, "R"]
    match_logits: Float[Tensor, "3*F 2"]
    word_logits: Float[Tensor, "R V"]
    momentum_word_logits: Float[Tensor, "R V"] | None


@dataclass(frozen=True)
class AlbefInspection(DrawnNegatives):
    """Shows what one step drew as negatives, and what the momentum encoder predicts beside the labels.

    At each masked token the k likeliest words, and for each image the n most similar texts of the batch, best first.
    Probabilities of the texts are a softmax over the batch alone, without the queue.
    """

    masked: TokenPositions
    labels: Int[Tensor, "R"]
    momentum_words: Int[Tensor, "R k"]
    momentum_word_probabilities: Float[Tensor, "R k"]
    momentum_texts: Int[Tensor, "B n"]
    momentum_text_probabilities: Float[Tensor, "B n"]


class AlbefPretraining(DistilledTask):
    """Trains ALBEF by ITC + ITM + MLM, with labels softened by the pseudo-targets of a momentum encoder."""

    record = Record
    purpose = "matching pictures and texts (pre-training)"
    hub_tag = "zero-shot-image-classification"
    headed = False
    measured_as_retrieval = True
    inspectable = True
    keeps_momentum_encoder = True

    model: Albef
    momentum_encoder: Albef
    config: AlbefPretrainConfig

    def __init__(
        self, model: Albef, config: AlbefPretrainConfig, special: SpecialIds, released: Released = Released()
    ) -> None:
        """Copies the model as its momentum encoder and makes an empty queue.

        Raises ValueError if ITC should train alone until `fuse_start`, but has weight 0, and for a `fused_share`
        outside (0, 1].
        """
        super().__init__()
        check_losses(config)
        self.model, self.config, self.special, self.released = model, config, special, released
        self.momentum_encoder = momentum_copy(model, without=("match_head", "temp"))
        claims = (SAID, KNOWN) if config.ignore_true_texts else None
        self.queue = FeatureQueue(config.queue_size, model.config.embed_dim, claims)
        model.freeze(model.parts_unused_by(*self.trained(config)))
        self.train()

    # ------------------------------------------------------------------ one step

    def forward(
        self, batch: Batch, progress: Progress, draws: Draws | None = None, trace: list[AlbefTrace] | None = None
    ) -> Losses:
        """Computes ITC + ITM + MLM of a batch (ALBEF §3.2, §3.3). Changes no state.

        `draws` are the token masks and the uniform numbers that draw negatives, by default a function of seed and step.
        `trace` receives the intermediate tensors. A traced step uses the momentum encoder and fusion even before
        `momentum_start` and `fuse_start`, and fuses all pairs.
        """
        config, model, released, batch_size = self.config, self.model, self.released, len(batch)
        uses_momentum, fuses, ramp = self._phase(progress, traced=trace is not None)
        alpha_itc, alpha_mlm = ramp * config.alpha_itc, ramp * config.alpha_mlm  # α, the weight of pseudo-targets
        processes = Processes.meet(batch_size)  # the global batch may be split across several processes
        draws = (draws or self.draw(batch, progress, processes)) if fuses else None
        if draws and trace is not None:
            draws = replace(draws, some=None)

        # 1. Encode (§3.1): each image once; the B captions, then the captions of the F pairs that are fused (all B in
        # the paper; task.fused_share) with a share task.mask_probability of the tokens masked (0.15 in the paper). Our
        # own addition: a phrase of each caption (task.phrases).
        texts = draws.with_masked(batch.texts) if draws else batch.texts  # B + F texts; B before fuse_start
        with_phrases = config.phrases > 0 and (trace is None or batch.phrases is not None)
        texts = add_phrases(texts, batch) if with_phrases else texts  # B more
        image_state = model.image_state(batch.pixels, rng_keys=batch.rng_keys)  # image tokens [B, T, D]
        text_state = model.text_state(texts)  # text tokens [N, D]
        image = model.embed_image(image_state)["main"]  # g_v(v_cls), L2-normalised [B, E]
        every_text = model.embed_text(text_state)["main"]  # g_w(w_cls), L2-normalised
        text, phrase = every_text[:batch_size], every_text[-batch_size:]  # captions, and phrases if there are: [B, E]

        # 2. Momentum encoder (§3.2, §3.3): an EMA copy of the whole model. It sees the same batch and gives, without a
        # gradient, the candidates of ITC and its prediction of the masked tokens. Features of earlier batches wait in
        # the queue. Before momentum_start the model's own features stand in, and the queue is empty: K = G.
        momentum_image, momentum_text, momentum_word_logits = image.detach(), text.detach(), None
        if uses_momentum:
            with_words = trace is not None or alpha_mlm > 0
            outputs = self._momentum_outputs(batch, draws if with_words else None)
            momentum_image, momentum_text, momentum_word_logits = outputs  # g'_v [B, E], g'_w [B, E], [R, V]
        entries = processes.gather(momentum_image), processes.gather(momentum_text), processes.gather(batch.image_ids)
        candidate_images, candidate_texts, candidate_ids = self.queue.candidates(*entries)  # [K, E], [K, E], [K]

        # 3. ITC (Eq. 1, 2): text b is the positive of image b and the reverse; the other candidates are negatives.
        # Unlike in the paper, candidates with the same image are ignored. Targets are (1 − α) · one-hot + α · the
        # momentum encoder's softmax, its pseudo-targets; up to a constant that is Eq. 6.
        positives = F.one_hot(processes.places(candidate_ids.device), len(candidate_ids)).bool()  # [B, K]
        same_image = others_of_same_image(batch.image_ids, candidate_ids, positives)  # without the positive [B, K]
        ignored = same_image & (not released.keep_false_negatives)
        # With ignore_true_texts, texts that are known to be true of an image are ignored, too.
        true = claims = None
        if config.ignore_true_texts:
            own_claims, claims = compared_claims(batch, processes)
            true = TrueTexts.of(own_claims, self.queue.claims(claims), positives)
        ignored_texts, ignored_images = ignored_both_ways(ignored, true)  # of each image, of each text: [B, K]
        tau = model.temperature()
        similarities = Similarities(
            ignore(similarity(image, candidate_texts, tau), ignored_texts),  # s(I, T) / τ [B, K]
            ignore(similarity(text, candidate_images, tau), ignored_images),  # s(T, I) / τ [B, K]
            ignore(similarity(momentum_image, candidate_texts, tau.detach()), ignored_texts),  # s'(I, T) / τ [B, K]
            ignore(similarity(momentum_text, candidate_images, tau.detach()), ignored_images),  # s'(T, I) / τ [B, K]
        )
        itc = distilled_contrastive_loss(similarities, positives.float(), alpha_itc)
        phrases: dict[str, tuple[float, Term]] = {}
        contrast = PhraseContrast.of(image, phrase, batch, processes) if with_phrases else None
        if contrast is not None:
            phrases["phrases"] = (config.phrases, contrast.loss)
        measures = self._contrast_measures(similarities, positives, same_image, ramp) | true_texts_measure(true)
        carry = None
        if uses_momentum:  # `after_step` puts the entries into the queue
            carry = entries if claims is None else (*entries, claims)
        if draws is None:
            return Losses.weighted(measures=measures, carry=carry, itc=(config.itc, itc), **phrases)

        # 4. Hard negatives (§3.2): for each text an image and for each image a text, drawn with the probabilities of
        # ITC's softmax over the G pairs (or this process's B: task.negatives=own), without positives and ignored ones.
        weights = hard_negative_weights(similarities, positives, ignored, processes, config, released, true)  # 2×[B, G]
        rows, negatives = draws.fused, draw_hard_negatives(weights, draws)  # [F]; an image [F] and a text [F] for each
        drawn = negatives
        if contrast is not None and config.match_phrases and config.itm:
            drawn = contrast.extended(negatives, rows, config, progress, processes)  # images [2F], texts [F]
        image_state, text_state, local = self._fetch_negatives(image_state, text_state, drawn, processes)

        # 5. Fusion: one call for 4F pairs: F matched pairs, F texts with their hard-negative image, F images with their
        # hard-negative text, F masked captions with their image. ITM (Eq. 4) classifies the fused [CLS] of the first 3F
        # as matched or not. MLM (Eq. 3) predicts the masked tokens of the last F; the momentum encoder's distribution
        # over the vocabulary is a second target of weight α (Eq. 7). With match_phrases, 2F pairs of phrases
        # stand between.
        masked, labels = draws.masked_tokens()  # where [R], and the token ids that were there [R]
        match_logits, word_logits = fuse_pairs(model, text_state, image_state, batch_size, rows, local, masked)
        match_logits, phrase_logits = match_logits[: 3 * len(rows)], match_logits[3 * len(rows) :]
        if len(phrase_logits):
            phrases["phrases_itm"] = (config.phrases, phrase_matching_loss(phrase_logits))  # from [2F, 2]
        itm = matching_loss(match_logits, match_labels(len(rows), match_logits.device))  # from [3F, 2]
        mlm = one_hot_mlm = masked_lm_loss(word_logits, labels)  # from [R, V]
        if momentum_word_logits is not None:
            mlm = distilled_loss(one_hot_mlm, word_logits, momentum_word_logits, alpha_mlm)

        measures |= word_measures(one_hot_mlm, word_logits, labels) | matching_measures(match_logits)
        measures["negative_similarity"] = negative_similarity(similarities, rows, *negatives, tau)
        if trace is not None:
            trace.append(AlbefTrace(
                similarities=similarities, positives=positives, ignored=ignored, queue_entries=entries,
                negative_weights=weights, negatives=negatives, masked=masked, labels=labels,
                match_logits=match_logits, word_logits=word_logits, momentum_word_logits=momentum_word_logits,
            ))  # fmt: skip
        # 6. The sum of the three; the paper's weights are 1, and a loss of weight 0 is left out.
        terms = {"itc": (config.itc, itc), "itm": (config.itm, itm), "mlm": (config.mlm, mlm)}
        trained = {name: term for name, term in terms.items() if term[0]}
        return Losses.weighted(measures=measures, carry=carry, **trained, **phrases)  # ALBEF Eq. 5

    def _phase(self, progress: Progress, traced: bool) -> tuple[bool, bool, float]:
        """Returns whether the momentum encoder is used, whether fusion trains, and how far α has risen, 0 to 1.

        In the paper both are on from the first step, and α rises linearly during the first epoch (§3.5).
        """
        config = self.config
        momentum_starts, ramp = progress.step >= config.momentum_start, 0.0
        if momentum_starts:
            ramp = alpha_at(progress.epoch_since(config.momentum_start), 1.0, config.alpha_ramp)
        return momentum_starts or traced, progress.step >= config.fuse_start or traced, ramp

    @torch.no_grad()
    def _momentum_outputs(
        self, batch: Batch, draws: Draws | None
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"], Float[Tensor, "R V"] | None]:
        """Computes the momentum encoder's image and text features and, with `draws`, its logits at the masked tokens.

        The momentum encoder has no dropout, unless `released.momentum_encoder_dropout` gives it draws of its own.
        """
        momentum_encoder, batch_size = self.momentum_encoder, len(batch)
        texts = batch.texts if draws is None else draws.with_masked(batch.texts)
        image_rng, text_rng = (
            None if k is None else derived(k, MOMENTUM_STREAM) for k in (batch.rng_keys, texts.rng_keys)
        )
        image_state = momentum_encoder.image_state(batch.pixels, rng_keys=image_rng)
        text_state = momentum_encoder.text_state(replace(texts, rng_keys=text_rng))
        word_logits = None
        if draws is not None:
            rows = draws.fused
            masked_texts = torch.arange(len(rows), device=rows.device) + batch_size  # behind the B unmasked ones
            fused = momentum_encoder.fuse(text_state, image_state, masked_texts, rows, draws.masked_tokens()[0])
            assert fused.hidden is not None
            word_logits = momentum_encoder.word_logits(fused.hidden).float()
        text = momentum_encoder.embed_text(text_state)["main"][:batch_size]
        return momentum_encoder.embed_image(image_state)["main"], text, word_logits

    def _fetch_negatives(
        self, images: ImageState, texts: TextState, negatives: Negatives, processes: Processes
    ) -> tuple[ImageState, TextState, Negatives]:
        """Appends the encoded negatives that other processes hold. Returns the negatives as indices of the new states.

        The gradient of a fetched negative flows back to the process that encoded it.
        """
        if processes.size == 1:
            return images, texts, negatives
        image_index, other_images = processes.locate(negatives[0], behind=len(images))
        text_index, other_texts = processes.locate(negatives[1], behind=len(texts))
        if self.config.negatives == "all":  # every process gathers, also one that drew no negative of the others
            rng_keys = None if images.rng_keys is None else processes.gather(images.rng_keys)
            everyone = ImageState(processes.gather(images.tokens), rng_keys=rng_keys)
            images = ImageState.cat([images, everyone[other_images]])
            texts = TextState.cat([texts, processes.gather_states(texts[: processes.rows])[other_texts]])
        return images, texts, (image_index, text_index)

    # ------------------------------------------------------------------ around the step

    @torch.no_grad()
    def before_step(self) -> None:
        """Clamps τ and updates the momentum encoder, θ' ← m θ' + (1 − m) θ, from the first step on.

        In the paper m is 0.995 (§3.5). The released code clamps τ too.
        """
        self.model.temp.clamp_(*self.config.temperature_bounds)
        move_towards(self.momentum_encoder, self.model, self.config.momentum)

    def after_step(self, carry: QueueEntries | tuple[Tensor, Tensor, Tensor, Claims] | None) -> None:
        """Puts the momentum features of the step into the queue, where they overwrite the oldest ones."""
        if carry is not None:
            self.queue.push(*carry)

    @classmethod
    def trained(cls, config: AlbefPretrainConfig) -> tuple[str, ...]:
        """Names the model's methods whose parameters train: a term of weight 0 trains nothing."""
        weights = dict.fromkeys(("embed_image", "embed_text", "temperature"), config.itc)
        weights |= {"match_logits": config.itm, "word_logits": config.mlm, "fuse": config.itm + config.mlm}
        return tuple(call for call, weight in weights.items() if weight)

    def draw(self, batch: Batch, progress: Progress, processes: Processes | None = None) -> Draws:
        """Draws the token masks and the uniform numbers of a step as a pure function of (seed, step).

        All processes draw for the global batch and take their own rows. So the draws do not depend on how the batch is
        split across processes, nor on how far its texts are padded.
        """
        processes = processes or Processes.meet(len(batch))
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        texts, vocabulary, own = batch.texts, self.model.config.text.vocab_size, processes.own
        length = texts.input_ids.shape[1]
        width = max(length, self.model.config.text.max_positions)
        everyone = MaskDraws.make(processes.total, width, self.config.mask_probability, vocabulary, generator)
        select, replace_, randomise, words = (
            draw[own, :length] for draw in (everyone.select, everyone.replace, everyone.randomise, everyone.words)
        )
        masked_ids, labels = self.mask(texts, MaskDraws(select, replace_, randomise, words))
        uniform = torch.rand(2, processes.total, generator=generator)[:, own].to(masked_ids.device)
        return Draws(masked_ids, labels, uniform, some=draw_fused(self.config, processes, generator, uniform.device))

    def mask(self, texts: Texts, draws: MaskDraws) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Masks single tokens (VLMo masks whole words). Returns the masked ids and the labels.

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
        self, similarities: Similarities, positives: Bool[Tensor, "B K"], same_image: Bool[Tensor, "B K"], ramp: float
    ) -> dict[str, Term]:
        """Measures ITC: its bound on mutual information, cosines, τ, repeated images, and the pseudo-targets' trust.

        `teacher_label_probability` is the probability that the momentum encoder gives the positive. `mi_bound_teacher`
        is the bound where the other view of an image is a text that the momentum encoder draws, and the reverse: ALBEF
        §4 regards distillation as such a view. It is measured while pseudo-targets have a weight.
        """
        teacher = similarities.momentum_image_to_text.softmax(1), similarities.momentum_text_to_image.softmax(1)
        both_ways = teacher[0] + teacher[1]
        views = {}
        if ramp > 0:
            bound = information_bound(similarities.image_to_text, teacher[0])
            bound = bound + information_bound(similarities.text_to_image, teacher[1])
            views["mi_bound_teacher"] = Term.over(bound / 2)
        return views | {
            **contrast_measures(similarities, positives.float(), self.model.temp),
            "false_negatives": repeated_pictures(same_image),
            "alpha": Term.over(similarities.image_to_text.new_full((1,), ramp)),
            "teacher_label_probability": Term.over((both_ways * positives).sum(1) / 2),
        }

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress, guesses: int = 5) -> AlbefInspection:
        """Runs a step in evaluation mode and returns what a report shows of it. Changes nothing."""
        training, traces = self.training, list[AlbefTrace]()
        self.eval()(batch, progress, trace=traces)
        self.train(training)
        (trace,) = traces
        assert trace.momentum_word_logits is not None
        words = trace.momentum_word_logits.softmax(1).topk(min(guesses, trace.momentum_word_logits.shape[1]))
        in_batch = trace.similarities.momentum_image_to_text[:, : len(batch)]
        texts = in_batch.softmax(1).topk(min(guesses, len(batch)))
        return AlbefInspection(
            **vars(DrawnNegatives.of(trace.negative_weights, trace.negatives)),
            masked=trace.masked, labels=trace.labels,
            momentum_words=words.indices, momentum_word_probabilities=words.values,
            momentum_texts=texts.indices, momentum_text_probabilities=texts.values,
        )  # fmt: skip
