"""The model of VLMo (Bao et al., NeurIPS 2022, arXiv 2111.02358; §3.1, §3.2), behind the contract of every model.

B texts, I images, T image tokens, L text length, N packed text rows, P pairs, S images a text, R rows, D width,
V vocabulary, H heads.
"""

from __future__ import annotations

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
from diptych.nn.experts import Asked, ExpertBlock, Frame, Route
from diptych.nn.packed import TextState, all_or_none, pack
from diptych.nn.recompute import can_be_cut, cuts, fuse_in_pieces, in_pieces, recomputed, rows_in_pieces
from diptych.nn.relative import RelativePositions
from diptych.nn.words import OwnWordHead
from diptych.schema import ModelConfig, VlmoConfig
from diptych.task import Model
from diptych.types import Joint, RowList, Rows, Texts

Branch = Literal["main", "vl"]
BRANCHES: tuple[Branch, ...] = ("main", "vl")
"""The dual encoder's features, and those that pass the vision-language experts on top."""
FUSION_EXPERTS = "model.experts=modality, and model.fusion_start below model.depth"
"""How a model has them."""


@dataclass(frozen=True)
class ImageState:
    """Images as patches, before the transformer: alignment and fusion both begin here."""

    patches: Float[Tensor, "I T D"]
    """The class token first."""
    wanted: tuple[int, ...] = ()
    """Blocks whose attention is to be shown."""
    maps: dict[int, Tensor] = field(default_factory=dict)
    """From the class token to the patches [I, H, 1, patches], by block; there once images have been embedded."""
    keys: Int[Tensor, "I"] | None = None
    """Of each image, for dropout (nn/draws.py)."""

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: Tensor | slice) -> ImageState:
        return ImageState(self.patches[index], keys=None if self.keys is None else self.keys[index])

    @property
    def nbytes(self) -> int:
        return self.patches.nbytes

    @classmethod
    def cat(cls, states: Sequence[ImageState]) -> ImageState:
        return cls(torch.cat([state.patches for state in states]), keys=all_or_none([state.keys for state in states]))


@dataclass(frozen=True)
class Pass:
    """Rows on their way through the blocks."""

    rows: Float[Tensor, "N D"]
    frame: Frame
    biases: Sequence[Tensor | None]
    """Of each block's attention scores [H, L, L]."""


class Vlmo(Model):
    """One transformer: a dual encoder of single images and texts, a fusion encoder of both side by side."""

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        if not 0 < config.fusion_start <= config.depth:
            raise ValueError(f"model.fusion_start must lie within 1..{config.depth}, not {config.fusion_start}")
        if config.images_per_text < 1:
            raise ValueError(f"model.images_per_text must be at least 1, not {config.images_per_text}")
        width, relative = config.width, config.positions == "relative"
        self.config, self.embed_dim = config, width
        self.image = ImageEmbedding(config.image_size, config.patch_size, width, config.stem, positions=not relative)
        self.text = WordEmbedding(
            config.vocab_size, config.pad_id, None if relative else config.max_positions, width,
            config.text_norm_eps, "post" if config.text_norm else "pre", config.dropout,
        )  # fmt: skip
        self.types = nn.Embedding(1 + config.images_per_text, width)
        side = config.image_size // config.patch_size
        self.image_rows, self.map_layers = 1 + side**2, range(config.depth)
        self.positions = RelativePositions(side, config.max_positions, config.depth, config.heads) if relative else None
        self.blocks = stacked(
            ExpertBlock(
                width, config.heads, config.mlp_ratio, config.norm_eps, config.layer_scale,
                config.drop_path * number / max(config.depth - 1, 1), number >= config.fusion_start,
                config.experts == "one", config.attention == "separate",
            )
            for number in range(config.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.pooler = nn.Linear(width, width)
        self.match_head = nn.Linear(width, 2)
        self.word_head = OwnWordHead(config.vocab_size, width, config.text_norm_eps)
        self.image_proj, self.text_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.vl_image_proj, self.vl_text_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        start = -torch.tensor(config.temperature).log()
        self.log_scale, self.vl_log_scale = nn.Parameter(start), nn.Parameter(start.clone())
        for part in (self.types, self.pooler, self.match_head, self.image_proj, self.text_proj):
            part.apply(init_weights)
        self.vl_image_proj.apply(init_weights)
        self.vl_text_proj.apply(init_weights)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """`vl` is the second contrast's, `all_rows` that of `fuse` with rows "all".

        An upper expert is of each call that passes it, as is what only image rows behind the last attention pass.
        """
        config, last = self.config, f"blocks.{self.config.depth - 1}"
        text, image, fusion = (
            tuple(f"blocks.{number}.experts.{kind}" for number in range(config.fusion_start, config.depth))
            * (config.experts == "modality")
            for kind in ("text", "image", "fusion")
        )
        image_rows: tuple[str, ...] = ()
        if config.attention == "separate":
            image_rows += (f"{last}.attention.out", f"{last}.attention.q_bias")
        if config.experts == "modality" and not fusion:
            image_rows += (f"{last}.experts.image",)
        return {
            "embed_image": ("image_proj", *image, *image_rows),
            "embed_text": ("text_proj", *text),
            "encode_text": text,
            "temperature": ("log_scale",),
            "vl": ("vl_image_proj", "vl_text_proj", "vl_log_scale", *fusion, *image_rows),
            "fuse": fusion,
            "all_rows": image_rows,
            "pooled": ("pooler",),
            "match_logits": ("match_head",),
            "word_logits": ("word_head",),
        }

    # ------------------------------------------------------------------ states

    def image_state(
        self, pixels: Float[Tensor, "I 3 H W"], maps: Sequence[int] = (), keys: Int[Tensor, "I"] | None = None
    ) -> ImageState:
        """Cut images into patches, of the size that the model is built for.

        `maps`: blocks whose attention from the class token to the patches [I, H, 1, patches] the state's `maps` hold,
        in the graph, once `embed_image` has been asked for the main branch.
        """
        size = self.config.image_size
        if self.positions is not None and tuple(pixels.shape[-2:]) != (size, size):
            raise ValueError(
                f"pixels {tuple(pixels.shape[-2:])} are not {size} × {size}, for which the model's relative positions "
                "are: build it with another model.image_size, to which they are resized at loading"
            )
        return ImageState(self.image(pixels), tuple(maps), keys=keys)

    def text_state(self, texts: Texts) -> TextState:
        """Embed texts, without their padding. Raises ValueError for texts longer than the model's positions."""
        ids, packed, visible = pack(texts, self.keep_padding, self.config.max_positions)
        return TextState(self.text(ids, packed.position, packed.row_keys), packed, visible)

    # ------------------------------------------------------------------ dual encoder

    def embed_image(self, state: ImageState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "I D"]]:
        """Of each image's class token, normalised. Both branches share the lower blocks."""
        if self.pieces == 1 or state.wanted:
            return self._embed_image(state, branches)
        return self._embed_in_pieces(self._embed_image, state, branches)

    def _embed_image(self, state: ImageState, branches: Sequence[str]) -> dict[str, Float[Tensor, "I D"]]:
        images, tokens, _ = state.patches.shape
        start = torch.arange(images, device=state.patches.device) * tokens
        found = self._embed(self._images(state.patches, state.keys), start, branches, state.wanted, state.maps)
        heads = {"main": self.image_proj, "vl": self.vl_image_proj}
        return {name: F.normalize(heads[name](rows).float(), dim=-1) for name, rows in found.items()}

    def embed_text(self, state: TextState, branches: Sequence[str] = ("main",)) -> dict[str, Float[Tensor, "B D"]]:
        """Of each text's [CLS], normalised. Both branches share the lower blocks."""
        if self.pieces == 1:
            return self._embed_text(state, branches)
        return self._embed_in_pieces(self._embed_text, state, branches)

    def _embed_text(self, state: TextState, branches: Sequence[str]) -> dict[str, Float[Tensor, "B D"]]:
        found = self._embed(self._texts(state), state.packed.starts, branches)
        heads = {"main": self.text_proj, "vl": self.vl_text_proj}
        return {name: F.normalize(heads[name](rows).float(), dim=-1) for name, rows in found.items()}

    def _embed_in_pieces(
        self, embed: Callable[..., dict[str, Tensor]], state: Any, branches: Sequence[str]
    ) -> dict[str, Tensor]:
        parts = [recomputed(embed, state[cut], branches) for cut in cuts(len(state), self.pieces)]
        return {branch: torch.cat([part[branch] for part in parts]) for branch in branches}

    def temperature(self, branch: str = "main") -> Float[Tensor, ""]:
        """The learnt τ that a branch's similarities are divided by."""
        return torch.exp(-(self.log_scale if branch == "main" else self.vl_log_scale))

    def _embed(
        self, run: Pass, first: Int[Tensor, "G"], branches: Sequence[str], maps: Sequence[int] = (),
        shown: dict[int, Tensor] | None = None,
    ) -> dict[str, Float[Tensor, "G D"]]:  # fmt: skip
        """The class rows `first`, by branch. Below `fusion_start` there is one way only."""
        start, shown = self.config.fusion_start, {} if shown is None else shown
        if "vl" in branches and not self.config.has_fusion_experts:
            raise ValueError(f"the branch 'vl' needs vision-language experts: {FUSION_EXPERTS}")
        asked = run.frame.at(first)
        lower = self._blocks(run, range(start), "own", asked, maps, shown)
        routes: dict[str, Route] = {"main": "own", "vl": "fusion"}
        upper = range(start, self.config.depth)
        found = {}
        for branch in branches:
            wanted = maps if branch == "main" else ()
            found[branch] = self.norm(self._blocks(lower, upper, routes[branch], asked, wanted, shown).rows)
        return found

    # ------------------------------------------------------------------ fusion encoder

    def fuse(
        self,
        texts: TextState,
        images: ImageState,
        text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"],
        rows: Rows = None,
        maps: Sequence[int] = (),
    ) -> Joint:
        """Fuse text text_index[p] with image image_index[p], or one by one with the S images image_index[p].

        Of S images the pooled vectors stand side by side [P, S·D], and no `rows` or `maps` are given. Positions of
        `rows` count the text's tokens; "all" are those of text and image. `maps`: blocks whose attention from the text
        to the patches [P, H, L, patches] is kept in the graph. The last block is computed for [CLS] and `rows` only.
        """
        if self.pieces > 1 and can_be_cut(rows, maps):
            assert rows != "all"
            return fuse_in_pieces(self._fuse_images, self.pieces, texts, images, text_index, image_index, rows)
        return self._fuse_images(texts, images, text_index, image_index, rows, maps)

    def _fuse_images(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"],
        image_index: Int[Tensor, "P"] | Int[Tensor, "P S"], rows: Rows = None, maps: Sequence[int] = (),
    ) -> Joint:  # fmt: skip
        if image_index.ndim == 1:
            return self._fuse(texts, images, text_index, image_index, None, rows, maps)
        turns = image_index.shape[1]
        width = self.joint_width(turns)
        if rows is not None or maps:
            raise ValueError("rows and maps are of one image a text")
        turn = torch.arange(turns, device=image_index.device).repeat(len(image_index))
        text_index = text_index.repeat_interleave(turns)
        joint = self._fuse(texts, images, text_index, image_index.flatten(), turn, None, ())
        return Joint(joint.pooled.reshape(-1, width), None)

    def _fuse(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"],
        turn: Int[Tensor, "P"] | None, rows: Rows, maps: Sequence[int],
    ) -> Joint:  # fmt: skip
        """`turn`: which of its text's images each is; None: the first."""
        if wrong := [number for number in maps if number not in self.map_layers]:
            raise ValueError(f"there are no blocks {wrong}: blocks count from 0 to {len(self.blocks) - 1}")
        run = self._pairs(texts, images, text_index, image_index, turn)
        packed = texts.packed.select(text_index)[0]
        shown: dict[int, Tensor] = {}
        wanted = packed.starts
        if isinstance(rows, RowList):
            wanted = torch.cat([wanted, packed.starts[rows.pair] + rows.position])
        asked = None if rows == "all" else run.frame.at(wanted)
        start, last = self.config.fusion_start, self.config.depth
        run = self._blocks(run, range(start), "own", asked, maps, shown)
        run = self._blocks(run, range(start, last), "fusion", asked, maps, shown)
        hidden = self.norm(run.rows)
        if rows == "all":
            return Joint(self._pool(hidden[wanted]), *self._grid(hidden, run.frame), shown)
        first, others = hidden.split([len(text_index), len(hidden) - len(text_index)])
        return Joint(self._pool(first), None if rows is None else others, maps=shown)

    def _pool(self, first: Float[Tensor, "P D"]) -> Float[Tensor, "P D"]:
        return torch.tanh(self.pooler(first))

    @staticmethod
    def _grid(hidden: Float[Tensor, "N D"], frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """All rows side by side, which are real, and which of those are text."""
        rows = frame.layout.pad(hidden)
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        mask = mask if frame.visible is None else frame.visible
        is_text = torch.arange(rows.shape[1], device=rows.device) < frame.text_length
        return rows, mask, mask & is_text

    def match_logits(self, joint: Joint) -> Float[Tensor, "P 2"]:
        """ITM: no match, match."""
        return self.match_head(joint.pooled).float()

    def word_logits(self, rows: Float[Tensor, "*R D"]) -> Float[Tensor, "*R V"]:
        """MLM: scores of each word at each row."""
        return self.word_head(rows)

    def joint_width(self, images: int = 1) -> int:
        """Width of `Joint.pooled` when a text is fused with so many images. Raises ValueError for too many."""
        if images > self.config.images_per_text:
            raise ValueError(
                f"this model tells {self.config.images_per_text} image(s) of a text apart, not {images}: "
                f"build it with model.images_per_text={images}"
            )
        return images * self.config.width

    # ------------------------------------------------------------------ one modality, for the stages (§3.4)

    def encode_image(
        self, patches: Float[Tensor, "I T D"], keys: Int[Tensor, "I"] | None = None
    ) -> Float[Tensor, "I T D"]:
        """All tokens of images alone, after the final norm."""
        return in_pieces(self._encode_image, self.pieces, patches, keys)

    def _encode_image(self, patches: Tensor, keys: Tensor | None) -> Tensor:
        run = self._blocks(self._images(patches, keys), range(self.config.depth), "own")
        return self.norm(run.rows).view_as(patches)

    def encode_text(self, state: TextState, rows: RowList) -> Float[Tensor, "R D"]:
        """The listed rows of texts alone, after the final norm; the last block is computed for them only."""
        return rows_in_pieces(self._encode_text, self.pieces, state, rows)

    def _encode_text(self, state: TextState, rows: RowList) -> Tensor:
        run = self._texts(state)
        asked = run.frame.at(state.packed.starts[rows.pair] + rows.position)
        return self.norm(self._blocks(run, range(self.config.depth), "own", asked).rows)

    # ------------------------------------------------------------------ starting from other weights

    def adapt(self, state: Mapping[str, Tensor], origin: ModelConfig) -> dict[str, Tensor]:
        """Positions, token types and text lengths of another configuration made to fit this one."""
        return fit_state(state, origin, self.config)

    def decoder_start(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Self-attention and feed-forward of the top fusion blocks."""
        return start_of_answer_decoder(state, self.config)

    # ------------------------------------------------------------------ passes

    def _images(self, patches: Float[Tensor, "I T D"], keys: Int[Tensor, "I"] | None = None) -> Pass:
        images, tokens, _ = patches.shape
        frame = Frame.of(None, images, tokens, patches.device, keys=keys)
        return Pass((patches + self.types.weight[1]).flatten(0, 1), frame, self._biases(0, tokens))

    def _texts(self, state: TextState) -> Pass:
        frame = Frame.of(state.packed, len(state), 0, state.hidden.device, state.visible)
        return Pass(state.hidden + self.types.weight[0], frame, self._biases(frame.text_length, 0))

    def _pairs(
        self, texts: TextState, images: ImageState, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"],
        turn: Int[Tensor, "P"] | None,
    ) -> Pass:  # fmt: skip
        packed, source = texts.packed.select(text_index)
        packed = packed.meeting(None if images.keys is None else images.keys[image_index])
        visible = None if texts.visible is None else texts.visible[source]
        tokens = images.patches.shape[1]
        frame = Frame.of(packed, len(text_index), tokens, texts.hidden.device, visible)
        kinds = self.types.weight[1] if turn is None else self.types.weight[1 + turn][:, None]
        patches = (images.patches[image_index] + kinds).flatten(0, 1)
        rows = torch.cat([texts.hidden[source] + self.types.weight[0], patches])  # VLMo §3.1
        return Pass(rows, frame, self._biases(frame.text_length, tokens))

    def _biases(self, text_length: int, image_tokens: int) -> Sequence[Tensor | None]:
        """Of each block."""
        if self.positions is None:
            return [None] * self.config.depth
        side = round((image_tokens - 1) ** 0.5) if image_tokens else None
        return self.positions(text_length, side).unbind(0)

    def _blocks(
        self, run: Pass, numbers: range, route: Route, asked: Asked | None = None, maps: Sequence[int] = (),
        shown: dict[int, Tensor] | None = None,
    ) -> Pass:  # fmt: skip
        """Some of the blocks in turn; the model's last one at the `asked` rows only."""
        rows, last = run.rows, self.config.depth - 1
        for number in numbers:
            some = asked if number == last and number not in maps else None
            rows, attention = self.blocks[number](rows, run.frame, run.biases[number], route, some, number in maps)
            if attention is not None and shown is not None:
                shown[number] = attention
            if number == last and asked is not None and some is None:
                rows = rows[asked.rows]
        return replace(run, rows=rows)
