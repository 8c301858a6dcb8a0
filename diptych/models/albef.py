"""ALBEF: align before fuse (Li et al., NeurIPS 2021, arXiv 2107.07651), in the order of the paper.

The model (§3.1) behind the contract of a model with a task, its pre-training (§3.2, §3.3), and the names its parts have
in published checkpoints.

B samples, I images, T image tokens, L text length, N packed text rows, P pairs, R rows, D width, E embedding width,
V vocabulary, K contrastive candidates (batch, then queue).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.albef_weights import repeat_fusion_layers, start_of_answer_decoder
from diptych.nn.blocks import Queried, TextBlock, TextFrame, VisionBlock, init_weights, stacked
from diptych.nn.embeddings import ImageEmbedding, WordEmbedding, resize_positions
from diptych.nn.packed import Layout, Packed, TextState, all_or_none, pack
from diptych.nn.recompute import can_be_cut, cuts, fuse_in_pieces, recomputed
from diptych.nn.words import WordHead
from diptych.schema import AlbefConfig, ModelConfig, TextConfig, VisionConfig
from diptych.task import Model
from diptych.types import Joint, RowList, Rows, Texts

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
        return self.text(*pack(texts, self.keep_padding, self.config.text.max_positions))

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
