"""ALBEF: align before fuse (Li et al., NeurIPS 2021, arXiv 2107.07651), in the order of the paper.

The model (§3.1) behind the contract of a model with a task, its pre-training (§3.2, §3.3), and the names its parts have
in published checkpoints.

B samples, I images, T image tokens, L text length, N packed text rows, P pairs, R rows, D width, E embedding width,
V vocabulary, K contrastive candidates (batch, then queue).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.checkpoints.convert import Absent, Alias, Count, Rename, Rule, Stack
from diptych.losses.contrastive import Similarities, distilled_contrastive_loss, hide, similarity
from diptych.losses.distillation import alpha_at, mixed_word_loss
from diptych.losses.masked_lm import MaskDraws, mask_words, masked_lm_loss
from diptych.losses.matching import both_negative_weights, draw_negatives, match_labels, matching_loss
from diptych.losses.pretraining import (
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
from diptych.nn.blocks import Queried, TextBlock, TextFrame, VisionBlock, init_weights, stacked
from diptych.nn.draws import derived
from diptych.nn.embeddings import ImageEmbedding, WordEmbedding, resize_positions
from diptych.nn.gather import Processes
from diptych.nn.layout import Layout, Packed, TextState, all_or_none, pack
from diptych.nn.momentum import momentum_copy, move_towards
from diptych.nn.pieces import can_be_cut, cuts, fuse_in_pieces, recomputed
from diptych.nn.queue import FeatureQueue
from diptych.nn.taught import DistilledTask
from diptych.nn.words import WordHead
from diptych.schema import AlbefConfig, AlbefPretrainConfig, ModelConfig, SpecialIds, TextConfig, VisionConfig
from diptych.seeds import seed_of
from diptych.task import Model
from diptych.types import Batch, Joint, Losses, Progress, RowList, Rows, Term, Texts

# --------------------------------------------------------------------------- states


@dataclass(frozen=True)
class ImageState:
    """Encoded images: all that fusion and alignment need of them."""

    tokens: Float[Tensor, "I T D"]
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Int[Tensor, "I"] | None = None
    """Of each image, for dropout (nn/draws.py)."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor | slice) -> ImageState:
        return ImageState(self.tokens[index], keys=None if self.keys is None else self.keys[index])

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    @classmethod
    def cat(cls, states: Sequence[ImageState]) -> ImageState:
        return cls(torch.cat([state.tokens for state in states]), keys=all_or_none([state.keys for state in states]))


# --------------------------------------------------------------------------- the model (§3.1)


class VisionEncoder(nn.Module):
    """ViT: patches and a class token through pre-norm blocks; every token normalised at the end."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embedding = ImageEmbedding(config.image_size, config.patch_size, config.width, config.stem)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        args = (config.width, config.heads, config.mlp_ratio, config.norm_eps)
        self.blocks = stacked(VisionBlock(*args, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks.apply(init_weights)

    def forward(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        hidden, kept = self.embedding(pixels), {}
        for number, block in enumerate(self.blocks):
            hidden, attention = block(hidden, number in maps, keys)
            if attention is not None:
                kept[number] = attention
        return ImageState(self.norm(hidden), kept, keys)


class TextEncoder(nn.Module):
    """BERT in two parts: text only below `fusion_start`, with cross-attention to the image from there on.

    With S images a text (NLVR2: 2; ALBEF §5), each fusion layer stands there S times, one for each image in turn; the
    S layers share the projections to keys and values, which the first of them holds.
    """

    def __init__(self, config: TextConfig, image_width: int, images_per_text: int = 1) -> None:
        super().__init__()
        self.fusion_start, self.images_per_text = config.fusion_start, images_per_text
        self.embedding = WordEmbedding(
            config.vocab_size,
            config.pad_id,
            config.max_positions,
            config.width,
            config.norm_eps,
            config.norm,
            config.dropout,
        )
        args = (
            config.width, config.heads, config.intermediate, config.norm_eps, config.norm, config.dropout,
            config.attention_dropout,
        )  # fmt: skip
        fusion_layers = (config.layers - config.fusion_start) * images_per_text
        lower = [TextBlock(*args, image_width=None) for _ in range(config.fusion_start)]
        upper = [
            TextBlock(*args, image_width=image_width, projects=number % images_per_text == 0)
            for number in range(fusion_layers)
        ]
        self.layers = stacked([*lower, *upper])
        pre = config.norm == "pre"
        self.text_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if pre else nn.Identity()
        self.fusion_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if pre else nn.Identity()
        self.layers.apply(init_weights)

    def forward(self, ids: Int[Tensor, "N"], packed: Packed, visible: Bool[Tensor, "N"] | None) -> TextState:
        """The text-only part."""
        hidden = self.embedding(ids, packed.position, packed.row_keys)
        frame = TextFrame(packed.layout, packed.layout.filled(visible), packed.row_keys)
        for layer in self.layers[: self.fusion_start]:
            hidden, *_ = layer(hidden, frame)
        return TextState(hidden, packed, visible)

    def fuse(
        self, hidden: Tensor, frames: Sequence[TextFrame], image: Tensor, queried: Queried | None, maps: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The part with cross-attention. `frames[s]` leads to each text's image number s, and layers take turns.

        The last layer is computed at the `queried` rows only.
        """
        kept: dict[int, Tensor] = {}
        shared: Tensor | None = None
        for number in range(self.fusion_start, len(self.layers)):
            turn = (number - self.fusion_start) % self.images_per_text
            wanted = queried if number == len(self.layers) - 1 else None
            before = shared if turn else None
            hidden, attention, shared = self.layers[number](hidden, frames[turn], image, wanted, number in maps, before)
            if attention is not None:
                kept[number] = attention
        return self.fusion_norm(hidden), kept


class Albef(Model):
    """Both encoders, the fusion encoder and their heads, behind the contract that every task uses (§3.1)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        if not 0 < config.text.fusion_start < config.text.layers:
            raise ValueError(f"text.fusion_start must lie within 1..{config.text.layers - 1}")
        if config.images_per_text < 1:
            raise ValueError(f"images_per_text must be at least 1, not {config.images_per_text}")
        self.config, self.embed_dim = config, config.embed_dim
        self.vision = VisionEncoder(config.vision)
        self.text = TextEncoder(config.text, config.vision.width, config.images_per_text)
        self.map_layers = range(config.text.fusion_start, len(self.text.layers))
        self.parts = {
            "embed_image": ("image_proj",),
            "embed_text": ("text_proj", "text.text_norm"),
            "temperature": ("temp",),
            "fuse": (*(f"text.layers.{number}" for number in self.map_layers), "text.fusion_norm"),
            "match_logits": ("match_head",),
            "word_logits": ("word_head",),
        }
        self.word_head = WordHead(config.text.vocab_size, config.text.width, config.text.norm_eps)
        self.image_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.match_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))

    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        """Encode images of any square size that is a multiple of the patch.

        `maps`: block numbers whose attention from [CLS] to the patches [I, heads, 1, patches] is kept in the graph.
        """
        if maps or self.pieces == 1:
            return self.vision(pixels, maps, keys)
        parts = [(pixels[cut], (), None if keys is None else keys[cut]) for cut in cuts(len(pixels), self.pieces)]
        return ImageState.cat([recomputed(self.vision, *part) for part in parts])

    def text_state(self, texts: Texts) -> TextState:
        """Encode texts, without their padding. Raises ValueError for texts longer than the position table."""
        if self.pieces == 1:
            return self._text_state(texts)
        return TextState.cat([recomputed(self._text_state, texts[cut]) for cut in cuts(len(texts), self.pieces)])

    def _text_state(self, texts: Texts) -> TextState:
        return self.text(*pack(texts, self.config.keep_padding, self.config.text.max_positions))

    def embed_image(self, state: ImageState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I E"]]:
        """g_v of the image's [CLS], normalised."""
        return {"main": F.normalize(self.image_proj(state.tokens[:, 0]).float(), dim=-1)}

    def embed_text(self, state: TextState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B E"]]:
        """g_w of the text's [CLS], normalised."""
        first = self.text.text_norm(state.hidden[state.packed.starts])
        return {"main": F.normalize(self.text_proj(first).float(), dim=-1)}

    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """The learnt τ that similarities are divided by."""
        return self.temp

    def fuse(
        self,
        texts: TextState,
        images: ImageState,
        text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
        rows: Rows = None,
        maps: Sequence[int] = (),
    ) -> Joint:
        """Fuse text text_index[p] with image image_index[p], or with the S images image_index[p], for P pairs.

        An image's keys and values are projected once, however many pairs it is in. The last layer is computed for
        [CLS] and the `rows` only. `maps`: layer numbers, counted over the whole text stack, whose cross-attention
        [P, heads, L, patches] is kept in the graph. S is `images_per_text`; raises ValueError for another.
        """
        self._turns(image_index)
        if wrong := [number for number in maps if number not in self.map_layers]:
            raise ValueError(
                f"layers {wrong} have no cross-attention; those from {self.config.text.fusion_start} on have"
            )
        if self.pieces > 1 and can_be_cut(rows, maps):
            assert rows != "all"
            return fuse_in_pieces(self._fuse, self.pieces, texts, images, text_index, image_index, rows)
        return self._fuse(texts, images, text_index, image_index, rows, maps)

    def _fuse(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"], rows: Rows = None, maps: Sequence[int] = (),
    ) -> Joint:  # fmt: skip
        turns = self._turns(image_index)
        packed, source = texts.packed.select(text_index)
        visible = None if texts.visible is None else texts.visible[source]
        seen, places = packed.layout.filled(visible), [index[packed.sequence] for index in turns]
        for index in turns:
            packed = packed.meeting(None if images.keys is None else images.keys[index])
        frames = [
            TextFrame(packed.layout, seen, packed.row_keys, Layout.of(image_of_row, len(images)), index)
            for image_of_row, index in zip(places, turns, strict=True)
        ]
        everything = rows == "all" or bool(maps)
        queried = None if everything else self._queried(packed, places[-1], len(images), rows)
        hidden, kept = self.text.fuse(texts.hidden[source], frames, images.tokens, queried, maps)
        if queried is not None:
            pairs = len(text_index)
            return Joint(hidden[:pairs], hidden[pairs:] if isinstance(rows, RowList) else None)
        return self._joint(hidden, packed, visible, rows, kept)

    def joint_width(self, images: int = 1) -> int:
        """Width of `Joint.pooled` when a text is fused with so many images. Raises ValueError for another number."""
        self._require_images(images)
        return self.config.text.width

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Positions resized to this image size (§3.1), fusion layers repeated for each image of a text (§5, NLVR2)."""
        fitted = repeat_fusion_layers(state, self.config)
        side = self.config.vision.image_size // self.config.vision.patch_size
        tables = [name for name in fitted if name.endswith("vision.embedding.positions")]
        return fitted | {name: resize_positions(fitted[name], side) for name in tables}

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """§5, VQA."""
        return start_of_answer_decoder(state, self.config)

    def _turns(self, image_index: Int[Tensor, "P"] | Int[Tensor, "P S"]) -> Sequence[Int[Tensor, "P"]]:
        """The first, second … image of each pair."""
        table = image_index[:, None] if image_index.ndim == 1 else image_index
        self._require_images(table.shape[1])
        return table.unbind(1)

    def _require_images(self, images: int) -> None:
        own = self.config.images_per_text
        if images != own:
            raise ValueError(
                f"this model fuses a text with {own} image{'s' * (own > 1)}, not {images}: "
                f"build it with model.images_per_text={images}"
            )

    @staticmethod
    def _queried(packed: Packed, image_of_row: Int[Tensor, "N"], images: int, rows: Rows) -> Queried:
        """[CLS] of each pair, then the listed rows."""
        wanted = packed.starts
        if isinstance(rows, RowList):
            wanted = torch.cat([wanted, packed.starts[rows.pair] + rows.position])
        layout = Layout.of(packed.sequence[wanted], len(packed.lengths))
        keys = None if packed.row_keys is None else packed.row_keys[wanted]
        return Queried(wanted, layout, Layout.of(image_of_row[wanted], images), keys)

    @staticmethod
    def _joint(
        hidden: Float[Tensor, "N D"], packed: Packed, visible: Tensor | None, rows: Rows, maps: Mapping[int, Tensor]
    ) -> Joint:
        """A Joint from all rows."""
        pooled = hidden[packed.starts]
        if isinstance(rows, RowList):
            return Joint(pooled, hidden[packed.starts[rows.pair] + rows.position], maps=maps)
        if rows is None:
            return Joint(pooled, None, maps=maps)
        grid = packed.layout.pad(hidden)
        mask = packed.layout.filled(visible)
        mask = torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device) if mask is None else mask
        return Joint(pooled, grid, mask, mask, maps)

    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """ITM: no match, match."""
        return self.match_head(joint.pooled).float()

    def word_logits(self, rows: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """MLM: scores of each word at each row."""
        return self.word_head(rows, self.text.embedding.words.weight)


_LAYER = re.compile(r"(?P<before>(?:.*\.)?text\.layers\.)(?P<number>\d+)\.(?P<part>.*)")


def repeat_fusion_layers(state: Mapping[str, Tensor], config: AlbefConfig) -> dict[str, Tensor]:
    """The state of a model with one image a text as the start of one with `config.images_per_text` (§5, NLVR2).

    Each fusion layer is copied for each image. Names may have a prefix (`model.`, `teacher.`). A state whose fusion
    layers are repeated already is returned as it is.
    """
    start, times = config.text.fusion_start, config.images_per_text
    found = {name: match for name in state if (match := _LAYER.fullmatch(name))}
    if max((int(match["number"]) for match in found.values()), default=0) >= config.text.layers:
        return dict(state)
    repeated: dict[str, Tensor] = {}
    for name, value in state.items():
        number = int(found[name]["number"]) if name in found else 0
        if number < start:
            repeated[name] = value
            continue
        before, part = found[name]["before"], found[name]["part"]
        copies = 1 if part.startswith("cross.kv.") else times
        for turn in range(copies):
            repeated[f"{before}{start + (number - start) * times + turn}.{part}"] = value
    return repeated


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


# --------------------------------------------------------------------------- published names


def _model_rules(mark: str, ours: str, with_words: bool = True) -> list[Rule]:
    """Published names of one copy of the model: mark "" the student's, "_m" the teacher's.

    `with_words`: has word prediction; the text encoder's parts then stand one level deeper.
    """
    vision, text = f"visual_encoder{mark}", f"text_encoder{mark}"
    bert = f"{text}.bert" if with_words else text
    renames = {
        f"{vision}.cls_token": "vision.embedding.cls_token",
        f"{vision}.pos_embed": "vision.embedding.positions",
        f"{vision}.patch_embed.proj.{{p}}": "vision.embedding.proj.{p}",
        f"{vision}.blocks.{{i}}.attn.qkv.{{p}}": "vision.blocks.{i}.qkv.{p}",
        f"{vision}.blocks.{{i}}.attn.proj.{{p}}": "vision.blocks.{i}.out.{p}",
        f"{vision}.blocks.{{i}}.mlp.fc1.{{p}}": "vision.blocks.{i}.fc1.{p}",
        f"{vision}.blocks.{{i}}.mlp.fc2.{{p}}": "vision.blocks.{i}.fc2.{p}",
        f"{vision}.blocks.{{i}}.norm1.{{p}}": "vision.blocks.{i}.norm1.{p}",
        f"{vision}.blocks.{{i}}.norm2.{{p}}": "vision.blocks.{i}.norm2.{p}",
        f"{vision}.norm.{{p}}": "vision.norm.{p}",
        f"vision_proj{mark}.{{p}}": "image_proj.{p}",
        f"text_proj{mark}.{{p}}": "text_proj.{p}",
    }
    return [
        *(Rename(published, ours + name) for published, name in renames.items()),
        *_bert_rules(bert, f"{ours}text."),
        *(_word_rules(f"{text}.cls.predictions", bert, f"{ours}word_head") if with_words else []),
    ]


def _bert_rules(bert: str, ours: str) -> list[Rule]:
    """Published names of a BERT at `bert`; its layers may have cross-attention."""
    words, layer, target = f"{bert}.embeddings", f"{bert}.encoder.layer.{{i}}", f"{ours}layers.{{i}}"
    attention, cross = f"{layer}.attention", f"{layer}.crossattention"
    return [
        Rename(f"{words}.word_embeddings.weight", f"{ours}embedding.words.weight"),
        Rename(f"{words}.position_embeddings.weight", f"{ours}embedding.positions.weight"),
        Rename(f"{words}.token_type_embeddings.weight", f"{ours}embedding.types.weight"),
        Rename(f"{words}.LayerNorm.{{p}}", f"{ours}embedding.norm.{{p}}"),
        Stack(tuple(f"{attention}.self.{n}.{{p}}" for n in ("query", "key", "value")), f"{target}.attention.qkv.{{p}}"),
        Rename(f"{attention}.output.dense.{{p}}", f"{target}.attention.out.{{p}}"),
        Rename(f"{attention}.output.LayerNorm.{{p}}", f"{target}.attention_norm.{{p}}"),
        Rename(f"{cross}.self.query.{{p}}", f"{target}.cross.q.{{p}}"),
        Stack(tuple(f"{cross}.self.{n}.{{p}}" for n in ("key", "value")), f"{target}.cross.kv.{{p}}"),
        Rename(f"{cross}.output.dense.{{p}}", f"{target}.cross.out.{{p}}"),
        Rename(f"{cross}.output.LayerNorm.{{p}}", f"{target}.cross_norm.{{p}}"),
        Rename(f"{layer}.intermediate.dense.{{p}}", f"{target}.fc1.{{p}}"),
        Rename(f"{layer}.output.dense.{{p}}", f"{target}.fc2.{{p}}"),
        Rename(f"{layer}.output.LayerNorm.{{p}}", f"{target}.mlp_norm.{{p}}"),
        Count(f"{words}.position_ids", of=f"{words}.position_embeddings.weight"),
    ]


def _word_rules(words: str, bert: str, ours: str) -> list[Rule]:
    """Published names of a word head at `words`, whose matrix is the word table of `bert`."""
    return [
        Rename(f"{words}.transform.dense.{{p}}", f"{ours}.dense.{{p}}"),
        Rename(f"{words}.transform.LayerNorm.{{p}}", f"{ours}.norm.{{p}}"),
        Rename(f"{words}.bias", f"{ours}.bias"),
        Alias(f"{words}.decoder.weight", of=f"{bert}.embeddings.word_embeddings.weight"),
        Alias(f"{words}.decoder.bias", of=f"{words}.bias"),
    ]


_SHARED: list[Rule] = [
    Rename("temp", "model.temp"),
    Rename("itm_head.{p}", "model.match_head.{p}"),
    Rename("image_queue", "queue.image", transpose=True),
    Rename("text_queue", "queue.text", transpose=True),
    Rename("queue_ptr", "queue.pointer", squeeze=True),
]

PUBLISHED_PRETRAINING: list[Rule] = [
    *_model_rules("", "model."),
    *_model_rules("_m", "teacher."),
    *_SHARED,
]
"""Names in the released pre-training checkpoint (`model` entry) → names in AlbefPretraining's state."""

PUBLISHED_RETRIEVAL: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "teacher.", with_words=False),
    *_SHARED,
    Rename("idx_queue", "queue.ids", squeeze=True),
]
"""Names in the released retrieval checkpoint, which has no word prediction."""

PUBLISHED_ENTAILMENT: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "teacher.", with_words=False),
    Rename("cls_head.{i}.{p}", "head.{i}.{p}"),
    Rename("cls_head_m.{i}.{p}", "teacher_head.{i}.{p}"),
]
"""Names in the released visual entailment checkpoint → names in the state of tasks.entailment.Entailment."""


def _repeated_rules(mark: str, ours: str, config: AlbefConfig) -> list[Rule]:
    """Names of one copy of a model with several images a text.

    Published, a shared projection has a name in each of its layers. Loaded one by one, the last one's numbers count.
    """
    rules: list[Rule] = []
    start, times = config.text.fusion_start, config.images_per_text
    for number in range(config.text.layers - start):
        first = start + number * times
        *others, last = (
            f"text_encoder{mark}.encoder.layer.{layer}.crossattention.self" for layer in range(first, first + times)
        )
        projection = f"{ours}text.layers.{first}.cross.kv.{{p}}"
        rules.append(Stack((f"{last}.key.{{p}}", f"{last}.value.{{p}}"), projection))
        for n in ("key", "value"):
            rules += [Alias(f"{other}.{n}.{{p}}", of=f"{last}.{n}.{{p}}", must_agree=False) for other in others]
    return [*rules, *_model_rules(mark, ours, with_words=False)]


def published_nlvr2(config: AlbefConfig) -> list[Rule]:
    """Names in the released NLVR2 checkpoint → names in the state of tasks.nlvr2.Nlvr2 with a model of `config`."""
    return [
        *_repeated_rules("", "model.", config),
        *_repeated_rules("_m", "teacher.", config),
        Rename("cls_head.{i}.{p}", "head.{i}.{p}"),
        Rename("cls_head_m.{i}.{p}", "teacher_head.{i}.{p}"),
        *_absent("image_proj", "text_proj", "temp", "match_head", "word_head"),
    ]


def published_text_assignment(config: AlbefConfig) -> list[Rule]:
    """Names in the released text-assignment checkpoint → names in the state of tasks.nlvr2.TextAssignment."""
    return [
        *_repeated_rules("", "model.", config),
        Rename("temp", "model.temp"),
        Rename("ta_head.{p}", "head.{p}"),
        *_absent("match_head", "word_head"),
    ]


def _absent(*parts: str) -> list[Rule]:
    """Parts of the student that the published file lacks because its task does not use them."""
    return [Absent(f"model.{part}", "the task does not use it") for part in parts]


def _decoder_rules(mark: str, ours: str) -> list[Rule]:
    """Published names of one copy of the answer decoder."""
    bert, words = f"text_decoder{mark}.bert", f"text_decoder{mark}.cls.predictions"
    return [*_bert_rules(bert, ours), *_word_rules(words, bert, f"{ours}word_head")]


PUBLISHED_VQA: list[Rule] = [
    *_model_rules("", "model.", with_words=False),
    *_model_rules("_m", "teacher.", with_words=False),
    *_decoder_rules("", "head."),
    *_decoder_rules("_m", "teacher_head."),
    *_absent("image_proj", "text_proj", "temp", "match_head", "word_head"),
]
"""Names in the released VQA checkpoint → names in the state of tasks.vqa.VqaDecoding."""


def start_of_answer_decoder(state: Mapping[str, Tensor], config: AlbefConfig) -> dict[str, Tensor]:
    """A decoder as VqaDecoding starts with it: the fusion layers, embeddings and word head of a pre-trained state (§5).

    Names in `state` begin with `model.` or `teacher.`, those returned with `head.` or `teacher_head.`. Where images and
    texts differ in width, the projections of cross-attention do not fit and are left out.
    """
    owners, start = {"model": "head", "teacher": "teacher_head"}, config.text.fusion_start
    fits = config.vision.width == config.text.width
    taken: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, part = name.partition(".")
        if found := _LAYER.fullmatch(part):
            number = int(found["number"]) - start
            part = f"layers.{number}.{found['part']}" if number >= 0 else ""
            part = "" if found["part"].startswith("cross.kv.") and not fits else part
        elif part.startswith("text.fusion_norm."):
            part = part.replace("text.fusion_norm.", "norm.")
        elif part.startswith("text.embedding."):
            part = part.removeprefix("text.")
        elif not part.startswith("word_head."):
            part = ""
        if owner in owners and part:
            taken[f"{owners[owner]}.{part}"] = value
    return taken
