"""The networks of ALBEF, align before fuse (Li et al., NeurIPS 2021, arXiv 2107.07651, §3.1).

They are an image encoder (ViT), a text encoder (the first layers of BERT), a multimodal fusion encoder (the other
layers of BERT, with cross-attention to the image), and heads. The tasks that train them are in tasks/.

B texts, I images, P pairs, S images of one text, T image tokens, L text length, N text tokens, packed, R listed tokens,
D width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.albef_weights import repeat_fusion_layers, start_of_answer_decoder
from diptych.nn.blocks import AttentionPool, TextBlock, TextLayout, VisionBlock, init_weights, stacked
from diptych.nn.embeddings import ImageEmbedding, WordEmbedding, resize_positions
from diptych.nn.packed import PackedSequences, PaddedGrid, Queries, TextState, cat_or_none, pack
from diptych.nn.recompute import can_be_cut, cuts, fuse_in_pieces, recomputed
from diptych.nn.words import WordHead
from diptych.schema import AlbefConfig, ModelConfig, TextConfig, VisionConfig
from diptych.task import Model
from diptych.types import Joint, OutputPositions, Texts, TokenPositions


@dataclass(frozen=True)
class ImageState:
    """Encoded images: all that fusion and the contrastive loss need of them."""

    tokens: Float[Tensor, "I T D"]
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    """Attention maps from [CLS] to the patches, by block."""
    rng_keys: Int[Tensor, "I"] | None = None
    """RNG key of each image, for dropout (nn/counter_rng.py)."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor | slice) -> ImageState:
        rng_keys = None if self.rng_keys is None else self.rng_keys[index]
        return ImageState(self.tokens[index], rng_keys=rng_keys)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    @classmethod
    def cat(cls, states: Sequence[ImageState]) -> ImageState:
        rng_keys = cat_or_none([state.rng_keys for state in states])
        return cls(torch.cat([state.tokens for state in states]), rng_keys=rng_keys)


class VisionEncoder(nn.Module):
    """The image encoder, a ViT: patches and a class token pass pre-norm blocks and a final norm.

    Towers of other origin differ in details (schema.VisionConfig). Where attention pools, its token takes the place of
    the class token behind the blocks.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        pooled = config.pooling == "attention"
        self.embedding = ImageEmbedding(
            config.image_size, config.patch_size, config.width, config.stem,
            class_token=not pooled, bias=config.patch_bias,
        )  # fmt: skip
        self.input_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.input_norm else nn.Identity()
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        args = (config.width, config.heads, config.mlp_ratio, config.norm_eps)
        self.blocks = stacked(
            VisionBlock(*args, drop_path=rate, activation=config.activation, layer_scale=config.layer_scale)
            for rate in rates
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks.apply(init_weights)
        self.pool: AttentionPool | None = None
        if pooled:
            self.pool = AttentionPool(*args, config.activation)
            self.pool.apply(init_weights)

    def forward(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), rng_keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        if maps and self.pool is not None:
            raise ValueError("its image encoder has no class token, so there are no maps of what that attends to")
        hidden, attention_maps = self.input_norm(self.embedding(pixels)), {}  # [I, T, D], the class token first
        for number, block in enumerate(self.blocks):
            hidden, attention_map = block(hidden, number in maps, rng_keys)
            if attention_map is not None:
                attention_maps[number] = attention_map
        hidden = self.norm(hidden)
        if self.pool is not None:  # what it gathers from the patches takes the place of a class token
            hidden = torch.cat([self.pool(hidden), hidden], dim=1)
        return ImageState(hidden, attention_maps, rng_keys)


class TextEncoder(nn.Module):
    """BERT in two parts: the text encoder below `fusion_start`, the multimodal fusion encoder from there on.

    With S images a text (NLVR2: 2; ALBEF §5), each fusion layer exists S times, one for each image in turn. The S
    layers share the projections to keys and values, which the first of them holds.
    """

    def __init__(self, config: TextConfig, image_width: int, images_per_text: int = 1) -> None:
        super().__init__()
        self.fusion_start, self.images_per_text = config.fusion_start, images_per_text
        self.embedding = WordEmbedding(
            config.vocab_size, config.pad_id, config.max_positions, config.width, config.norm_eps, config.norm,
            config.dropout,
        )  # fmt: skip
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

    def forward(
        self, ids: Int[Tensor, "N"], packed: PackedSequences, attention_mask: Bool[Tensor, "N"] | None
    ) -> TextState:
        """Runs the text encoder."""
        hidden = self.embedding(ids, packed.position_ids, packed.token_rng_keys)  # [N, D]
        layout = TextLayout(packed.grid, packed.grid.mask(attention_mask), packed.token_rng_keys)
        for layer in self.layers[: self.fusion_start]:
            hidden, *_ = layer(hidden, layout)
        return TextState(hidden, packed, attention_mask)

    def fuse(
        self,
        hidden: Float[Tensor, "N D"],
        layouts: Sequence[TextLayout],
        image: Float[Tensor, "I T Dv"],
        queries: Queries | None,
        maps: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs the fusion encoder. Returns the hidden states and the attention maps of layers `maps`.

        `layouts[s]` leads each text to its image number s; layers take turns with them. The last layer is computed at
        the `queries` only, where there are any.
        """
        attention_maps: dict[int, Tensor] = {}
        key_value: Tensor | None = None
        for number in range(self.fusion_start, len(self.layers)):
            turn = (number - self.fusion_start) % self.images_per_text
            hidden, attention_map, key_value = self.layers[number](  # ALBEF §3.1
                hidden,
                layouts[turn],
                image,
                queries if number == len(self.layers) - 1 else None,
                number in maps,
                key_value if turn else None,  # the first layer of a turn projects for all of them
            )
            if attention_map is not None:
                attention_maps[number] = attention_map
        return self.fusion_norm(hidden), attention_maps


class Albef(Model):
    """The encoders of ALBEF with their heads, behind the interface that every task uses (§3.1)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        if config.text.layers < 2:
            raise ValueError(f"text.layers is {config.text.layers}: ALBEF needs one for texts and one to fuse")
        if not 0 < config.text.fusion_start < config.text.layers:
            raise ValueError(f"text.fusion_start must lie within 1..{config.text.layers - 1}")
        if config.images_per_text < 1:
            raise ValueError(f"images_per_text must be at least 1, not {config.images_per_text}")
        self.config, self.embed_dim, self.vocab_size = config, config.embed_dim, config.text.vocab_size
        self.vision = VisionEncoder(config.vision)
        self.text = TextEncoder(config.text, config.vision.width, config.images_per_text)
        self.map_layers = range(config.text.fusion_start, len(self.text.layers))
        self.image_layers = range(config.vision.depth)
        self.call_parts = {
            "embed_image": ("image_proj",),
            "embed_text": ("text_proj", "text.text_norm"),
            "temperature": ("temp",),
            "fuse": (*(f"text.layers.{number}" for number in self.map_layers), "text.fusion_norm"),
            "match_logits": ("match_head",),
            "word_logits": ("word_head",),
        }
        self.word_head = WordHead(config.text.vocab_size, config.text.width, config.text.norm_eps)
        self.image_proj = nn.Linear(config.vision.width, config.embed_dim)  # g_v
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)  # g_w
        self.match_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature))  # τ

    # ------------------------------------------------------------------ encoders

    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), rng_keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        """Encodes images of any square size that is a multiple of the patch size.

        `maps`: numbers of the blocks whose attention from [CLS] to the patches [I, heads, 1, patches] the state keeps,
        within the autograd graph.
        """
        if maps or self.pieces == 1:
            return self.vision(pixels, maps, rng_keys)
        parts = [
            (pixels[cut], (), None if rng_keys is None else rng_keys[cut]) for cut in cuts(len(pixels), self.pieces)
        ]
        return ImageState.cat([recomputed(self.vision, *part) for part in parts])

    def text_state(self, texts: Texts) -> TextState:
        """Encodes texts, without their padding. Raises ValueError for texts longer than the position table."""

        def encode(texts: Texts) -> TextState:
            return self.text(*pack(texts, self.keep_padding, self.config.text.max_positions))

        if self.pieces == 1:
            return encode(texts)
        return TextState.cat([recomputed(encode, texts[cut]) for cut in cuts(len(texts), self.pieces)])

    def embed_image(self, state: ImageState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I E"]]:
        """Embeds images: g_v of [CLS], normalised."""
        return {"main": F.normalize(self.image_proj(state.tokens[:, 0]).float(), dim=-1)}

    def embed_text(self, state: TextState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B E"]]:
        """Embeds texts: g_w of [CLS], normalised."""
        cls_token = self.text.text_norm(state.hidden[state.packed.starts])  # [B, D]
        return {"main": F.normalize(self.text_proj(cls_token).float(), dim=-1)}

    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """Returns the learnt τ by which similarities are divided."""
        return self.temp

    # ------------------------------------------------------------------ fusion encoder

    def fuse(
        self,
        texts: TextState,
        images: ImageState,
        text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
        positions: OutputPositions = None,
        maps: Sequence[int] = (),
    ) -> Joint:
        """Fuses text text_index[p] with image image_index[p], or with the S images image_index[p], for P pairs.

        An image's keys and values are projected once, however many pairs it is in. The last layer is computed for
        [CLS] and the `positions` only. `maps`: numbers of the layers, counted over the whole text stack, whose
        cross-attention [P, heads, L, patches] is kept within the autograd graph. S must be `images_per_text`.
        """
        image_index = image_index[:, None] if image_index.ndim == 1 else image_index  # [P, S]
        self._require_images(image_index.shape[1])
        if wrong := [number for number in maps if number not in self.map_layers]:
            raise ValueError(
                f"layers {wrong} have no cross-attention; those from {self.config.text.fusion_start} on have"
            )
        if self.pieces > 1 and can_be_cut(positions, maps):
            assert positions != "all"
            return fuse_in_pieces(self._fuse, self.pieces, texts, images, text_index, image_index, positions)
        return self._fuse(texts, images, text_index, image_index, positions, maps)

    def _fuse(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P S"],
        positions: OutputPositions = None, maps: Sequence[int] = (),
    ) -> Joint:  # fmt: skip
        # The text tokens of the P pairs, packed. A text is copied for each pair that it is in; an image is not.
        packed, tokens = texts.packed.select(text_index)
        hidden = texts.hidden[tokens]  # [N, D]
        attention_mask = None if texts.attention_mask is None else texts.attention_mask[tokens]
        grid_mask, by_image = packed.grid.mask(attention_mask), list[PaddedGrid]()
        for images_in_turn in image_index.unbind(1):
            by_image.append(PaddedGrid.of(images_in_turn[packed.sequence_ids], len(images)))
            packed = packed.fused_with(None if images.rng_keys is None else images.rng_keys[images_in_turn])
        layouts = [
            TextLayout(packed.grid, grid_mask, packed.token_rng_keys, grid, image_index=images_in_turn)
            for grid, images_in_turn in zip(by_image, image_index.unbind(1), strict=True)
        ]

        # The last layer is computed for [CLS] of each pair, then for the listed tokens; for all where all are needed.
        index = packed.starts
        if isinstance(positions, TokenPositions):
            index = torch.cat([index, packed.index_of(positions)])  # [P + R]
        queries = None
        if positions != "all" and not maps:
            pair = packed.sequence_ids[index]
            last_image = PaddedGrid.of(image_index[:, -1][pair], len(images))  # the last layer's turn is the last image
            rng_keys = None if packed.token_rng_keys is None else packed.token_rng_keys[index]
            queries = Queries(index, pair, PaddedGrid.of(pair, len(packed.lengths)), last_image, rng_keys)

        hidden, attention_maps = self.text.fuse(hidden, layouts, images.tokens, queries, maps)
        outputs = hidden[index] if queries is None else hidden  # [P + R, D]
        pairs = len(text_index)
        if positions != "all":
            return Joint(outputs[:pairs], None if positions is None else outputs[pairs:], maps=attention_maps)
        padded = packed.grid.pad(hidden)  # [P, L, D]
        mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=padded.device) if grid_mask is None else grid_mask
        return Joint(outputs, padded, mask, mask, attention_maps)

    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """Scores image-text matching (ITM): no match, match."""
        return self.match_head(joint.pooled).float()

    def word_logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores each word at each token (MLM). The output matrix is the word embedding."""
        return self.word_head(hidden, self.text.embedding.words.weight)

    def joint_width(self, images: int = 1) -> int:
        """Returns the width of `Joint.pooled`. Raises ValueError if the model fuses texts with another number."""
        self._require_images(images)
        return self.config.text.width

    def _require_images(self, images: int) -> None:
        expected = self.config.images_per_text
        if images != expected:
            raise ValueError(
                f"this model fuses a text with {expected} image{'s' * (expected > 1)}, not {images}: "
                f"build it with model.images_per_text={images}"
            )

    # ------------------------------------------------------------------ starting from other weights

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Resizes positions to this image size (§3.1), repeats fusion layers for each image of a text (§5, NLVR2)."""
        fitted = repeat_fusion_layers(state, self.config)
        side = self.config.vision.image_size // self.config.vision.patch_size
        tables = [name for name in fitted if name.endswith("vision.embedding.positions")]
        return fitted | {name: resize_positions(fitted[name], side) for name in tables}

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Starts an answer decoder as the fusion encoder (§5, VQA)."""
        return start_of_answer_decoder(state, self.config)
