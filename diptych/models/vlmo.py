"""The network of VLMo (Bao et al., NeurIPS 2022, arXiv 2111.02358, §3.1 and §3.2).

One MoME transformer serves as an image encoder, a text encoder and a fusion encoder of pairs. The tasks that train it
are in tasks/.

B texts, I images, T image tokens, L text length, N text tokens, packed, P pairs, S images of one text, R listed tokens,
D width, V vocabulary, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.vlmo_weights import fit_state, start_of_answer_decoder
from diptych.nn.blocks import init_weights, stacked
from diptych.nn.embeddings import ImageEmbedding, WordEmbedding
from diptych.nn.mome import MoMEBlock, MultimodalLayout, Route
from diptych.nn.packed import Queries, TextState, cat_or_none, pack
from diptych.nn.recompute import can_be_cut, cuts, fuse_in_pieces, in_pieces, recomputed, tokens_in_pieces
from diptych.nn.relative import RelativePositions
from diptych.nn.words import UntiedWordHead
from diptych.schema import ModelConfig, VlmoConfig
from diptych.task import Model
from diptych.types import Joint, OutputPositions, Texts, TokenPositions

Branch = Literal["main", "vl"]
BRANCHES: tuple[Branch, ...] = ("main", "vl")
"""The dual encoder's features, and those of single images and texts that pass the VL-FFN in the top blocks."""
FUSION_EXPERTS = "model.experts=modality, and model.fusion_start below model.depth"
"""The settings with which a model has VL-FFNs; for messages."""


@dataclass(frozen=True)
class ImageState:
    """Images as embedded patches, before the transformer: both alignment and fusion start from them."""

    patches: Float[Tensor, "I T D"]
    """The class token comes first."""
    map_blocks: tuple[int, ...] = ()
    """Blocks whose attention maps `embed_image` keeps."""
    maps: dict[int, Tensor] = field(default_factory=dict)
    """Attention maps from the class token to the patches [I, H, 1, patches], by block; `embed_image` fills them in."""
    rng_keys: Int[Tensor, "I"] | None = None
    """RNG key of each image, for stochastic depth (nn/counter_rng.py)."""

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: Tensor | slice) -> ImageState:
        rng_keys = None if self.rng_keys is None else self.rng_keys[index]
        return ImageState(self.patches[index], rng_keys=rng_keys)

    @property
    def nbytes(self) -> int:
        return self.patches.nbytes

    @classmethod
    def cat(cls, states: Sequence[ImageState]) -> ImageState:
        rng_keys = cat_or_none([state.rng_keys for state in states])
        return cls(torch.cat([state.patches for state in states]), rng_keys=rng_keys)


@dataclass(frozen=True)
class Pass:
    """Packed tokens on their way through the blocks."""

    hidden: Float[Tensor, "N D"]
    layout: MultimodalLayout
    biases: Sequence[Tensor | None]
    """Relative position bias [H, L, L] of each block's attention scores."""


class Vlmo(Model):
    """VLMo: a dual encoder of single images and texts, and a fusion encoder of both, in one transformer."""

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        if not 0 < config.fusion_start <= config.depth:
            raise ValueError(f"model.fusion_start must lie within 1..{config.depth}, not {config.fusion_start}")
        if config.images_per_text < 1:
            raise ValueError(f"model.images_per_text must be at least 1, not {config.images_per_text}")
        width, relative = config.width, config.positions == "relative"
        self.config, self.embed_dim, self.vocab_size = config, width, config.vocab_size
        self.image = ImageEmbedding(config.image_size, config.patch_size, width, config.stem, positions=not relative)
        self.text = WordEmbedding(
            config.vocab_size, config.pad_id, None if relative else config.max_positions, width,
            config.text_norm_eps, "post" if config.text_norm else "pre", config.dropout,
        )  # fmt: skip
        self.types = nn.Embedding(1 + config.images_per_text, width)  # of text, then of each image of a text
        side = config.image_size // config.patch_size
        self.fused_image_tokens, self.map_layers = 1 + side**2, range(config.depth)
        self.image_layers = range(config.depth)
        self.positions = RelativePositions(side, config.max_positions, config.depth, config.heads) if relative else None
        self.blocks = stacked(
            MoMEBlock(
                width, config.heads, config.mlp_ratio, config.norm_eps, config.layer_scale,
                config.drop_path * number / max(config.depth - 1, 1),
                has_vl_ffn=number >= config.fusion_start,
                one_ffn=config.experts == "one",
                separate_attention=config.attention == "separate",
            )
            for number in range(config.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.pooler = nn.Linear(width, width)
        self.match_head = nn.Linear(width, 2)
        self.word_head = UntiedWordHead(config.vocab_size, width, config.text_norm_eps)
        self.image_proj, self.text_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.vl_image_proj, self.vl_text_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        start = -math.log(config.temperature)  # log 1/τ
        self.log_scale, self.vl_log_scale = (nn.Parameter(torch.tensor(start)) for _ in range(2))
        for part in (self.types, self.pooler, self.match_head, self.image_proj, self.text_proj):
            part.apply(init_weights)
        self.vl_image_proj.apply(init_weights)
        self.vl_text_proj.apply(init_weights)

    @property
    def call_parts(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """Names the parts that each call uses and others do not, as in `Model`.

        `vl` is the contrast of the branch "vl", and `all_tokens` the output of `fuse` with positions="all". An expert
        of a top block belongs to the calls that pass it. Behind the last attention, some parts serve image tokens only.
        """
        config, last = self.config, f"blocks.{self.config.depth - 1}"
        language, vision, vl = (
            tuple(f"blocks.{number}.{expert}" for number in range(config.fusion_start, config.depth))
            * (config.experts == "modality")
            for expert in ("language_ffn", "vision_ffn", "vl_ffn")
        )
        image_only: tuple[str, ...] = ()
        if config.attention == "separate":
            image_only += (f"{last}.attention.out", f"{last}.attention.q_bias")
        if config.experts == "modality" and not vl:
            image_only += (f"{last}.vision_ffn",)
        return {
            "embed_image": ("image_proj", *vision, *image_only),
            "embed_text": ("text_proj", *language),
            "encode_text": language,
            "temperature": ("log_scale",),
            "vl": ("vl_image_proj", "vl_text_proj", "vl_log_scale", *vl, *image_only),
            "fuse": vl,
            "all_tokens": image_only,
            "pooled": ("pooler",),
            "match_logits": ("match_head",),
            "word_logits": ("word_head",),
        }

    # ------------------------------------------------------------------ input representations (§3.1)

    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), rng_keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        """Embeds the patches of images, which must have the size that the model is built for.

        `maps`: numbers of the blocks whose attention from the class token to the patches [I, H, 1, patches] the
        state's `maps` hold, within the autograd graph, after `embed_image` of the main branch.
        """
        size = self.config.image_size
        if self.positions is not None and tuple(pixels.shape[-2:]) != (size, size):
            raise ValueError(
                f"pixels {tuple(pixels.shape[-2:])} are not {size} × {size}, for which the model's relative positions "
                "are: build it with another model.image_size, to which they are resized at loading"
            )
        return ImageState(self.image(pixels), tuple(maps), rng_keys=rng_keys)

    def text_state(self, texts: Texts) -> TextState:
        """Embeds texts, without their padding. Raises ValueError for texts longer than the model's positions."""
        ids, packed, attention_mask = pack(texts, self.keep_padding, self.config.max_positions)
        return TextState(self.text(ids, packed.position_ids, packed.token_rng_keys), packed, attention_mask)

    def _image_pass(self, patches: Float[Tensor, "I T D"], rng_keys: Int[Tensor, "I"] | None = None) -> Pass:
        """Lays out images alone."""
        images, tokens, _ = patches.shape
        layout = MultimodalLayout.of(None, images, tokens, patches.device, rng_keys=rng_keys)
        return Pass((patches + self.types.weight[1]).flatten(0, 1), layout, self._biases(0, tokens))

    def _text_pass(self, state: TextState) -> Pass:
        """Lays out texts alone."""
        layout = MultimodalLayout.of(state.packed, len(state), 0, state.hidden.device, state.attention_mask)
        return Pass(state.hidden + self.types.weight[0], layout, self._biases(layout.text_length, 0))

    def _pair_pass(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"],
        turn: Int[Tensor, "P"] | None,
    ) -> Pass:  # fmt: skip
        """Lays out pairs: the tokens of all texts, packed, then those of all images.

        `turn`: which of its text's images each image is. Each has a token type of its own.
        """
        packed, tokens = texts.packed.select(text_index)
        packed = packed.fused_with(None if images.rng_keys is None else images.rng_keys[image_index])
        attention_mask = None if texts.attention_mask is None else texts.attention_mask[tokens]
        image_tokens = images.patches.shape[1]
        layout = MultimodalLayout.of(packed, len(text_index), image_tokens, texts.hidden.device, attention_mask)
        image_type = self.types.weight[1] if turn is None else self.types.weight[1 + turn][:, None]
        patches = (images.patches[image_index] + image_type).flatten(0, 1)  # [P · T, D]
        hidden = torch.cat([texts.hidden[tokens] + self.types.weight[0], patches])  # VLMo §3.1
        return Pass(hidden, layout, self._biases(layout.text_length, image_tokens))

    def _biases(self, text_length: int, image_tokens: int) -> Sequence[Tensor | None]:
        """Looks up the relative position bias of each block."""
        if self.positions is None:
            return [None] * self.config.depth
        side = round((image_tokens - 1) ** 0.5) if image_tokens else None
        return self.positions(text_length, side).unbind(0)

    # ------------------------------------------------------------------ MoME transformer (§3.2)

    def _run(
        self, start: Pass, numbers: range, route: Route, queries: Queries | None = None, maps: Sequence[int] = (),
        attention_maps: dict[int, Tensor] | None = None,
    ) -> Pass:  # fmt: skip
        """Runs some of the blocks. The model's last block is computed at the `queries` only, where there are any.

        The maps of blocks `maps` are put into `attention_maps`.
        """
        hidden, last = start.hidden, self.config.depth - 1
        for number in numbers:
            want_map = number in maps
            block_queries = queries if number == last and not want_map else None  # a map needs all tokens
            hidden, attention_map = self.blocks[number](
                hidden, start.layout, start.biases[number], route, block_queries, want_map
            )
            if attention_map is not None and attention_maps is not None:
                attention_maps[number] = attention_map
            if number == last and queries is not None and block_queries is None:
                hidden = hidden[queries.index]
        return replace(start, hidden=hidden)

    # ------------------------------------------------------------------ dual encoder

    def embed_image(self, state: ImageState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I D"]]:
        """Embeds images: the projected class token, normalised. Both branches share the lower blocks."""

        def embed(state: ImageState) -> dict[str, Tensor]:
            images, tokens, _ = state.patches.shape
            cls_index = torch.arange(images, device=state.patches.device) * tokens
            start = self._image_pass(state.patches, state.rng_keys)
            heads = {"main": self.image_proj, "vl": self.vl_image_proj}
            return self._embed(start, cls_index, branches, heads, state.map_blocks, state.maps)

        return embed(state) if state.map_blocks else self._embed_in_pieces(embed, state, branches)

    def embed_text(self, state: TextState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B D"]]:
        """Embeds texts: the projected [CLS], normalised. Both branches share the lower blocks."""

        def embed(state: TextState) -> dict[str, Tensor]:
            heads = {"main": self.text_proj, "vl": self.vl_text_proj}
            return self._embed(self._text_pass(state), state.packed.starts, branches, heads)

        return self._embed_in_pieces(embed, state, branches)

    def _embed(
        self, start: Pass, cls_index: Int[Tensor, "G"], branches: Sequence[str], heads: Mapping[str, nn.Module],
        maps: Sequence[int] = (), attention_maps: dict[int, Tensor] | None = None,
    ) -> dict[str, Float[Tensor, "G D"]]:  # fmt: skip
        """Embeds G images or texts by the output at [CLS], for each branch. Below `fusion_start` branches are one."""
        fusion_start, depth = self.config.fusion_start, self.config.depth
        if "vl" in branches and not self.config.has_fusion_experts:
            raise ValueError(f"the branch 'vl' needs vision-language experts: {FUSION_EXPERTS}")
        queries = start.layout.queries(cls_index)
        lower = self._run(start, range(fusion_start), "modality", queries, maps, attention_maps)
        hidden: dict[str, Tensor] = {}
        for branch in branches:
            route: Route = "modality" if branch == "main" else "vl"
            branch_maps = maps if branch == "main" else ()
            top = self._run(lower, range(fusion_start, depth), route, queries, branch_maps, attention_maps)
            hidden[branch] = self.norm(top.hidden)  # [G, D]
        return {branch: F.normalize(heads[branch](hidden[branch]).float(), dim=-1) for branch in branches}

    def _embed_in_pieces(
        self, embed: Callable[[Any], dict[str, Tensor]], state: Any, branches: Sequence[str]
    ) -> dict[str, Tensor]:
        if self.pieces == 1:
            return embed(state)
        parts = [recomputed(embed, state[cut]) for cut in cuts(len(state), self.pieces)]
        return {branch: torch.cat([part[branch] for part in parts]) for branch in branches}

    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """Returns the learnt τ by which a branch's similarities are divided."""
        return torch.exp(-(self.log_scale if branch == "main" else self.vl_log_scale))

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
        """Fuses text text_index[p] with image image_index[p], or one by one with the S images image_index[p].

        With S images the pooled vectors are concatenated [P, S·D], and there are no `positions` or `maps`. `positions`
        count the text's tokens; "all" are those of text and image. `maps`: numbers of the blocks whose attention from
        the text to the patches [P, H, L, patches] is kept within the autograd graph. The last block is computed for
        [CLS] and `positions` only.
        """
        if self.pieces > 1 and can_be_cut(positions, maps):
            assert positions != "all"
            return fuse_in_pieces(self._fuse, self.pieces, texts, images, text_index, image_index, positions)
        return self._fuse(texts, images, text_index, image_index, positions, maps)

    def _fuse(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"], positions: OutputPositions = None, maps: Sequence[int] = (),
    ) -> Joint:  # fmt: skip
        if image_index.ndim == 1:
            return self._fuse_pairs(texts, images, text_index, image_index, None, positions, maps)
        images_per_text = image_index.shape[1]
        width = self.joint_width(images_per_text)
        if positions is not None or maps:
            raise ValueError("positions and maps are of one image a text")
        turn = torch.arange(images_per_text, device=image_index.device).repeat(len(image_index))  # [P · S]
        text_index = text_index.repeat_interleave(images_per_text)
        joint = self._fuse_pairs(texts, images, text_index, image_index.flatten(), turn, None, ())
        return Joint(joint.pooled.reshape(-1, width), None)

    def _fuse_pairs(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"],
        turn: Int[Tensor, "P"] | None, positions: OutputPositions, maps: Sequence[int],
    ) -> Joint:  # fmt: skip
        """Fuses pairs of one text and one image. `turn`: which of its text's images each is; None: the first."""
        if wrong := [number for number in maps if number not in self.map_layers]:
            raise ValueError(f"there are no blocks {wrong}: blocks count from 0 to {len(self.blocks) - 1}")
        start = self._pair_pass(texts, images, text_index, image_index, turn)
        layout, packed = start.layout, texts.packed.select(text_index)[0]
        # The last block is computed for [CLS] of each pair, then for the listed tokens; or for all tokens.
        index = packed.starts
        if isinstance(positions, TokenPositions):
            index = torch.cat([index, packed.index_of(positions)])  # [P + R]
        queries = None if positions == "all" else layout.queries(index)
        fusion_start, attention_maps = self.config.fusion_start, dict[int, Tensor]()
        lower = self._run(start, range(fusion_start), "modality", queries, maps, attention_maps)
        top = self._run(lower, range(fusion_start, self.config.depth), "vl", queries, maps, attention_maps)
        outputs = self.norm(top.hidden)  # [P + R, D], or all tokens

        pairs = len(text_index)
        if positions != "all":
            cls_token, listed = outputs.split([pairs, len(outputs) - pairs])
            pooled = torch.tanh(self.pooler(cls_token))
            return Joint(pooled, None if positions is None else listed, maps=attention_maps)
        padded = layout.grid.pad(outputs)  # [P, L + T, D], text at the left
        mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=padded.device)
        mask = mask if layout.attention_mask is None else layout.attention_mask
        is_text = torch.arange(padded.shape[1], device=padded.device) < layout.text_length
        return Joint(torch.tanh(self.pooler(outputs[index])), padded, mask, mask & is_text, attention_maps)

    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """Scores image-text matching (ITM): no match, match."""
        return self.match_head(joint.pooled).float()

    def word_logits(self, hidden: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """Scores each word at each token (MLM)."""
        return self.word_head(hidden)

    def joint_width(self, images: int = 1) -> int:
        """Returns the width of `Joint.pooled` for so many images of a text. Raises ValueError for too many."""
        if images > self.config.images_per_text:
            raise ValueError(
                f"this model tells {self.config.images_per_text} image(s) of a text apart, not {images}: "
                f"build it with model.images_per_text={images}"
            )
        return images * self.config.width

    # ------------------------------------------------------------------ one modality, for the first two stages (§3.4)

    def encode_image(
        self, patches: Float[Tensor, "I T D"], rng_keys: Int[Tensor, "I"] | None = None
    ) -> Float[Tensor, "I T D"]:
        """Encodes images alone: all tokens after the final norm."""

        def encode(patches: Tensor, rng_keys: Tensor | None) -> Tensor:
            encoded = self._run(self._image_pass(patches, rng_keys), range(self.config.depth), "modality")
            return self.norm(encoded.hidden).view_as(patches)

        return in_pieces(encode, self.pieces, patches, rng_keys)

    def encode_text(self, state: TextState, positions: TokenPositions) -> Float[Tensor, "R D"]:
        """Encodes texts alone: the listed tokens after the final norm. The last block is computed for them only."""

        def encode(state: TextState, positions: TokenPositions) -> Tensor:
            start = self._text_pass(state)
            queries = start.layout.queries(state.packed.index_of(positions))
            return self.norm(self._run(start, range(self.config.depth), "modality", queries).hidden)

        return tokens_in_pieces(encode, self.pieces, state, positions)

    # ------------------------------------------------------------------ starting from other weights

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Fits positions, token types and text lengths of another configuration to this one."""
        return fit_state(state, origin, self.config)

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Starts an answer decoder as the self-attention and the VL-FFNs of the top blocks."""
        return start_of_answer_decoder(state, self.config)
