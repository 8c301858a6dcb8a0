"""ALBEF pre-training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.data.record import Record
from diptych.losses.contrastive import Similarities, distilled_contrastive_loss, hide, similarity
from diptych.losses.distillation import alpha_at, mixed_word_loss
from diptych.losses.masked_lm import MaskDraws, mask_words, masked_lm_loss
from diptych.losses.matching import both_negative_weights, draw_negatives, match_labels, matching_loss
from diptych.models.albef import Albef, ImageState
from diptych.nn.counter_rng import derived
from diptych.nn.gather import Processes
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.packed import TextState
from diptych.nn.queue import FeatureQueue
from diptych.schema import AlbefPretrainConfig, SpecialIds
from diptych.seeds import seed_of
from diptych.tasks.distilled import DistilledTask
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
from diptych.types import Batch, Losses, Progress, RowList, Term, Texts

# --------------------------------------------------------------------------- pre-training (§3.2, §3.3)

TEACHER = 1
"""Sets its draws apart from the student's."""


@dataclass(frozen=True)
class Contrast(Similarities):
    """All that the contrast of one batch with batch and queue gives."""

    hidden: Bool[Tensor, "B K"]
    """Candidates that are the same picture under another caption: neither positive nor negative."""
    keys: tuple[Float[Tensor, "G E"], Float[Tensor, "G E"], Int[Tensor, "G"]] | None
    """The teacher's image and text features of all processes' pairs with their pictures' identities, for the queue;
    None where it was not asked."""
    places: Int[Tensor, "B"]
    """Where each pair stands among the candidates, which begin with the pairs of all processes."""
    false_negatives: Term | None = None
    """`repeated_pictures`, also where they are not hidden."""

    @cached_property
    def positives(self) -> Float[Tensor, "B K"]:
        """Pair b's own other half."""
        return F.one_hot(self.places, self.hidden.shape[1]).float()


@dataclass(frozen=True)
class Forward:
    """What one pass made, for the losses and for whoever wants to look inside."""

    contrast: Contrast
    negative_image: Int[Tensor, "B"]
    negative_text: Int[Tensor, "B"]
    """Among the pairs of all processes."""
    match_logits: Float[Tensor, "P 2"]
    masked: RowList
    """Hidden words, `pair` counting texts of the batch."""
    labels: Int[Tensor, "R"]
    word_logits: Float[Tensor, "R V"]
    teacher_word_logits: Float[Tensor, "R V"] | None


@dataclass(frozen=True)
class AlbefInspection(DrawnNegatives):
    """What one pass shows to a reader: the negatives that were drawn, and what the teacher would have said.

    k best words and n best texts of the batch, best first.
    """

    masked: RowList
    labels: Int[Tensor, "R"]
    teacher_words: Int[Tensor, "R k"]
    teacher_word_probabilities: Float[Tensor, "R k"]
    teacher_texts: Int[Tensor, "B n"]
    teacher_text_probabilities: Float[Tensor, "B n"]


class AlbefPretraining(DistilledTask):
    """ITC + ITM + MLM, learnt from pseudo-targets of a momentum teacher."""

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

    def __init__(self, model: Albef, config: AlbefPretrainConfig, special: SpecialIds) -> None:
        super().__init__()
        if config.fuse_start > 0 and not config.itc:
            raise ValueError(f"task.fuse_start={config.fuse_start} trains ITC alone first, but task.itc is 0")
        self.model, self.config, self.special = model, config, special
        self.teacher = momentum_copy(model, without=("match_head", "temp"))
        self.queue = FeatureQueue(config.queue_size, model.config.embed_dim)
        model.freeze(model.unused(*self.trained(config)))
        self.train()

    @classmethod
    def trained(cls, config: AlbefPretrainConfig) -> tuple[str, ...]:
        """A term of weight 0 trains nothing."""
        reached = dict.fromkeys(("embed_image", "embed_text", "temperature"), config.itc)
        reached |= {"match_logits": config.itm, "word_logits": config.mlm, "fuse": config.itm + config.mlm}
        return tuple(call for call, weight in reached.items() if weight)

    @torch.no_grad()
    def before_step(self) -> None:
        self.model.temp.clamp_(*self.config.temperature_bounds)
        move_towards(self.teacher, self.model, self.config.momentum)

    def after_step(self, carry: tuple[Tensor, Tensor, Tensor] | None) -> None:
        if carry is not None:
            self.queue.push(*carry)

    def draw(self, batch: Batch, progress: Progress, processes: Processes | None = None) -> Draws:
        """This process's part of the draws for the global batch, which are a pure function of (seed, step).

        They are the same however the batch is shared out, and however far its texts are padded.
        """
        processes = processes or Processes.meet(len(batch))
        generator = torch.Generator().manual_seed(seed_of(progress.seed, "pretrain", progress.step))
        texts, vocabulary = batch.texts, self.model.config.text.vocab_size
        length = texts.input_ids.shape[1]
        width = max(length, self.model.config.text.max_positions)
        wide = MaskDraws.make(processes.total, width, self.config.mask_probability, vocabulary, generator)
        names, own = ("select", "replace", "randomise", "words"), processes.own
        draws = MaskDraws(*(getattr(wide, name)[own, :length] for name in names))
        masked_ids, labels = self.mask(texts, draws)
        uniform = torch.rand(2, processes.total, generator=generator)[:, own]
        return Draws(masked_ids, labels, uniform.to(masked_ids.device))

    def mask(self, texts: Texts, draws: MaskDraws) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Hide words of the texts. Never [CLS] or padding; other special tokens only with `mask_special_tokens`."""
        ids, special = texts.input_ids, self.special
        kept = [special.cls, special.pad]
        if not self.config.mask_special_tokens:
            kept += [special.unk, special.sep, special.mask]
        maskable = texts.attention_mask.bool() & ~torch.isin(ids, torch.tensor(kept, device=ids.device))
        moved = MaskDraws(*(x.to(ids.device) for x in (draws.select, draws.replace, draws.randomise, draws.words)))
        return mask_words(ids, maskable, special.mask, moved)

    def forward(self, batch: Batch, progress: Progress, draws: Draws | None = None) -> Losses:
        config = self.config
        taught = progress.step >= config.teacher_start
        alpha = alpha_at(progress.epoch_since(config.teacher_start), 1.0, config.alpha_ramp) if taught else 0.0
        processes = Processes.meet(len(batch))
        if progress.step < config.fuse_start:
            return self.align(batch, alpha, taught, processes)
        draws = draws or self.draw(batch, progress, processes)
        made = self.run(batch, draws, taught, with_teacher_words=alpha * config.alpha_mlm > 0, processes=processes)
        return self.losses(made, alpha)

    def align(self, batch: Batch, alpha: float, taught: bool = True, processes: Processes | None = None) -> Losses:
        """ITC alone, with nothing computed for the other terms (`fuse_start`)."""
        processes = processes or Processes.meet(len(batch))
        images, texts = self.model.image_state(batch.pixels, keys=batch.keys), self.model.text_state(batch.texts)
        with torch.no_grad():
            teacher = self._teacher_states(batch, batch.texts) if taught else None
        contrast = self._contrast(images, texts, teacher, batch.image_ids, processes)
        itc = (self.config.itc, self._itc(contrast, alpha))
        return Losses.weighted(measures=self._contrast_measures(contrast, alpha), carry=contrast.keys, itc=itc)

    def run(
        self,
        batch: Batch,
        draws: Draws,
        taught: bool = True,
        with_teacher_words: bool = True,
        processes: Processes | None = None,
    ) -> Forward:
        """Every pass of a step: each image and each text once, then all fusions in one call.

        Not `taught`: the teacher is not asked for anything (`teacher_start`).
        """
        processes, both = processes or Processes.meet(len(batch)), draws.with_masked(batch.texts)
        images, texts = self.model.image_state(batch.pixels, keys=batch.keys), self.model.text_state(both)
        masked, labels = draws.hidden_words()
        teacher, teacher_words = None, None
        if taught:
            with torch.no_grad():
                teacher = self._teacher_states(batch, both if with_teacher_words else batch.texts)
                teacher_words = self._teacher_words(*teacher, masked) if with_teacher_words else None
        contrast = self._contrast(images, texts, teacher, batch.image_ids, processes)
        drawn = self._negatives(contrast, draws, processes)
        images, texts, negatives = self._with_negatives(images, texts, drawn, processes)
        matched, words = fuse_pairs(self.model, texts, images, len(batch), negatives, masked)
        assert matched is not None
        assert words is not None
        return Forward(contrast, *drawn, matched, masked, labels, words, teacher_words)

    def _teacher_states(self, batch: Batch, texts: Texts) -> tuple[ImageState, TextState]:
        """What the teacher makes of them. Where it has dropout, what it drops is not what the student does."""
        keys = None if batch.keys is None else derived(batch.keys, TEACHER)
        text_keys = None if texts.keys is None else derived(texts.keys, TEACHER)
        images = self.teacher.image_state(batch.pixels, keys=keys)
        return images, self.teacher.text_state(replace(texts, keys=text_keys))

    def _with_negatives(
        self,
        images: ImageState,
        texts: TextState,
        drawn: tuple[Int[Tensor, "B"], Int[Tensor, "B"]],
        processes: Processes,
    ) -> tuple[ImageState, TextState, tuple[Int[Tensor, "B"], Int[Tensor, "B"]]]:
        """The states with what was drawn of other processes behind them, and where they now hold the negatives."""
        if processes.size == 1:
            return images, texts, drawn
        image_place, other_images = processes.locate(drawn[0], behind=len(images))
        text_place, other_texts = processes.locate(drawn[1], behind=len(texts))
        if self.config.negatives == "all":  # every process gathers, also one that drew none of the others'
            keys = None if images.keys is None else processes.gather(images.keys)
            everyone = ImageState(processes.gather(images.tokens), keys=keys)
            images = ImageState.cat([images, everyone[other_images]])
            texts = TextState.cat([texts, processes.gather_states(texts[: processes.rows])[other_texts]])
        return images, texts, (image_place, text_place)

    def _teacher_words(self, images: ImageState, texts: TextState, masked: RowList) -> Float[Tensor, "R V"]:
        """The teacher's word scores at the hidden words; the masked texts are the second half of `texts`."""
        size = len(images)
        here = torch.arange(size, device=images.tokens.device)
        rows = self.teacher.fuse(texts, images, here + size, here, masked).rows
        assert rows is not None
        return self.teacher.word_logits(rows).float()

    def _contrast(
        self, images: ImageState, texts: TextState, teacher: tuple[ImageState, TextState] | None, ids: Tensor,
        processes: Processes,
    ) -> Contrast:  # fmt: skip
        """Similarities of the batch's images and texts with the teacher's features of batch and queue (§3.2).

        The batch is that of all processes, of which each compares its own pairs.

        Without a teacher, the student's own features stand in for its, as if its momentum were 0; none are queued.
        """
        size = len(images)
        temperature = self.model.temperature()
        image = self.model.embed_image(images)["main"]
        text = self.model.embed_text(texts)["main"][:size]
        with torch.no_grad():
            image_key, text_key = image.detach(), text.detach()
            if teacher is not None:
                image_key = self.teacher.embed_image(teacher[0])["main"]
                text_key = self.teacher.embed_text(teacher[1])["main"][:size]
            keys = processes.gather(image_key), processes.gather(text_key), processes.gather(ids)
            image_keys, text_keys, key_ids = self.queue.behind(*keys)
            places = processes.places(ids.device)
            hidden = (ids[:, None] == key_ids[None]) & ~F.one_hot(places, len(key_ids)).bool()
            false_negatives = repeated_pictures(hidden)
            if self.config.false_negatives == "keep":
                hidden.zero_()
            teacher_i2t = hide(similarity(image_key, text_keys, temperature), hidden)
            teacher_t2i = hide(similarity(text_key, image_keys, temperature), hidden)
        i2t = hide(similarity(image, text_keys, temperature), hidden)
        t2i = hide(similarity(text, image_keys, temperature), hidden)
        keys_kept = keys if teacher else None
        return Contrast(i2t, t2i, teacher_i2t, teacher_t2i, hidden, keys_kept, places, false_negatives)

    def _negatives(
        self, contrast: Contrast, draws: Draws, processes: Processes
    ) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
        """For each text an image, for each image a text, as hard as the contrast finds them (§3.2)."""
        if draws.negative_image is not None and draws.negative_text is not None:
            return draws.negative_image, draws.negative_text
        weights_image, weights_text = self.negative_weights(contrast, processes)
        return draw_negatives(weights_image, draws.uniform[0]), draw_negatives(weights_text, draws.uniform[1])

    def negative_weights(
        self, contrast: Contrast, processes: Processes
    ) -> tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]]:
        """Sampling weights of images for each text, and of texts for each image, over all processes or the own one."""
        own = F.one_hot(contrast.places, processes.total).bool()
        excluded = contrast.hidden[:, : processes.total] | own
        if self.config.negatives == "own":
            excluded = excluded | ~own.any(dim=0)
        return both_negative_weights(contrast, excluded, self.config.negatives_mask, self.config.hard_negatives)

    @torch.no_grad()
    def inspect(self, batch: Batch, progress: Progress, guesses: int = 5) -> AlbefInspection:
        """A pass in evaluation mode, for a report. Changes nothing."""
        training, processes = self.training, Processes(len(batch))
        made = self.eval().run(batch, self.draw(batch, progress, processes), processes=processes)
        self.train(training)
        drawn = drawn_negatives(
            *self.negative_weights(made.contrast, processes), made.negative_image, made.negative_text
        )
        assert made.teacher_word_logits is not None
        words = made.teacher_word_logits.softmax(1).topk(min(guesses, made.teacher_word_logits.shape[1]))
        texts = made.contrast.teacher_image_to_text[:, : len(batch)].softmax(1).topk(min(guesses, len(batch)))
        return AlbefInspection(
            **vars(drawn), masked=made.masked, labels=made.labels,
            teacher_words=words.indices, teacher_word_probabilities=words.values,
            teacher_texts=texts.indices, teacher_text_probabilities=texts.values,
        )  # fmt: skip

    def losses(self, made: Forward, alpha: float) -> Losses:
        """The terms of one pass; `alpha` in 0..1 is how far the teacher has been let in."""
        config, contrast = self.config, made.contrast
        itm = matching_loss(made.match_logits, match_labels(len(made.match_logits) // 3, made.match_logits.device))
        mlm = hard_mlm = masked_lm_loss(made.word_logits, made.labels)
        if made.teacher_word_logits is not None:
            mlm = mixed_word_loss(hard_mlm, made.word_logits, made.teacher_word_logits, alpha * config.alpha_mlm)
        terms = {"itc": (config.itc, self._itc(contrast, alpha)), "itm": (config.itm, itm), "mlm": (config.mlm, mlm)}
        terms = {name: term for name, term in terms.items() if term[0]}
        measures = self._contrast_measures(contrast, alpha) | self._fusion_measures(made, hard_mlm)
        return Losses.weighted(measures=measures, carry=contrast.keys, **terms)  # ALBEF Eq. 5

    def _itc(self, contrast: Contrast, alpha: float) -> Term:
        """The contrastive loss against labels and teacher."""
        return distilled_contrastive_loss(contrast, contrast.positives, alpha * self.config.alpha_itc)

    @torch.no_grad()
    def _contrast_measures(self, contrast: Contrast, alpha: float) -> dict[str, Term]:
        """Whether the contrast is healthy, and how much the teacher trusts the labels."""
        labelled = torch.softmax(contrast.teacher_image_to_text, 1) + torch.softmax(contrast.teacher_text_to_image, 1)
        return {
            **contrast_measures(contrast, contrast.positives, self.model.temp),
            **({"false_negatives": contrast.false_negatives} if contrast.false_negatives else {}),
            "alpha": Term.over(contrast.positives.new_full((1,), alpha)),
            "teacher_label_probability": Term.over((labelled * contrast.positives).sum(1) / 2),
        }

    def _fusion_measures(self, made: Forward, hard_mlm: Term) -> dict[str, Term]:
        """Whether fusion learns, and how hard its negatives are."""
        negatives = (made.contrast, made.negative_image, made.negative_text, self.model.temp)
        return {
            **word_measures(hard_mlm, made.word_logits, made.labels),
            **matching_measures(made.match_logits),
            "negative_similarity": negative_similarity(*negatives),
        }
