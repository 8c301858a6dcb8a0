"""Expresses a model as three functions of padded tensors, which other runtimes can compute.

Training and evaluation pack texts, so that tensor sizes depend on the data. Here every text is padded to L positions.
Attention ignores the padding, and nothing reads the values computed there. Weights and blocks are the model's own.

I images, T image tokens, V their width, B texts, P pairs, L positions of a text, D width, N tokens of all sequences,
E embedding width, J joint width (as `joint_width` of the contract).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.albef import Albef
from diptych.models.vlmo import Vlmo
from diptych.nn.blocks import TextLayout
from diptych.nn.mome import MultimodalLayout, Route
from diptych.nn.packed import PaddedGrid
from diptych.nn.relative import relative_index
from diptych.task import Model
from diptych.types import Joint


class PaddedAlbef(nn.Module):
    """Runs ALBEF on padded texts."""

    def __init__(self, model: Albef) -> None:
        super().__init__()
        self.model = model

    def image(self, pixels: Float[Tensor, "I 3 H W"]) -> tuple[Float[Tensor, "I E"], Float[Tensor, "I T V"]]:
        """Returns the images' vectors and the states that `fuse` takes."""
        state = self.model.image_state(pixels)
        return self.model.embed_image(state)["main"], state.tokens

    def text(
        self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B L D"]]:
        """Returns the texts' vectors and the states that `fuse` takes."""
        encoder, (texts, length) = self.model.text, ids.shape
        layout = TextLayout(PaddedGrid(texts, length, None), mask)
        hidden = encoder.embedding(ids.flatten(), _positions(ids).flatten())
        for layer in encoder.layers[: encoder.fusion_start]:
            hidden, *_ = layer(hidden, layout)
        grid = layout.grid.pad(hidden)
        vectors = self.model.text_proj(encoder.text_norm(grid[:, 0]))
        return F.normalize(vectors, dim=-1), grid

    def fuse(
        self, text: Float[Tensor, "P L D"], mask: Bool[Tensor, "P L"], images: Sequence[Float[Tensor, "P T V"]]
    ) -> Float[Tensor, "P D"]:
        """Returns the fused [CLS] state of each text with its image, or with its several images in turn."""
        pairs, length, _ = text.shape
        own, rows = PaddedGrid(pairs, length, None), torch.arange(pairs * length)
        layouts = [
            TextLayout(own, mask, by_source=own if len(images) == 1 else _among(own, rows, turn, len(images)))
            for turn in range(len(images))
        ]
        hidden, _ = self.model.text.fuse(text.flatten(0, 1), layouts, torch.cat([*images]), None, ())
        return own.pad(hidden)[:, 0]


def _among(own: PaddedGrid, rows: Int[Tensor, "N"], turn: int, turns: int) -> PaddedGrid:
    """Groups tokens by their text's image number `turn`, where all first images precede all second ones."""
    return PaddedGrid(own.groups * turns, own.length, rows + turn * own.groups * own.length)


class PaddedVlmo(nn.Module):
    """Runs VLMo on padded texts."""

    def __init__(self, model: Vlmo) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.side, self.longest = config.image_size // config.patch_size, config.max_positions
        index = torch.empty(0)
        if model.positions is not None:
            index = relative_index(self.longest, self.side, self.side, self.longest, "cpu")
        self.register_buffer("index", index)  # for the longest text; shorter texts use a part of it

    def image(self, pixels: Float[Tensor, "I 3 H W"]) -> tuple[Float[Tensor, "I E"], Float[Tensor, "I T V"]]:
        """Returns the images' vectors and the states that `fuse` takes."""
        patches = self.model.image(pixels)
        images, tokens, _ = patches.shape
        layout = MultimodalLayout(PaddedGrid(images, tokens, None), _sequence(images, tokens), None, 0, 0)
        rows = (patches + self.model.types.weight[1]).flatten(0, 1)
        first = layout.grid.pad(self._run(rows, layout, self._biases(0, tokens), "modality"))[:, 0]
        return F.normalize(self.model.image_proj(first), dim=-1), patches

    def text(
        self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B L D"]]:
        """Returns the texts' vectors and the states that `fuse` takes."""
        texts, length = ids.shape
        layout = MultimodalLayout(
            PaddedGrid(texts, length, None), _sequence(texts, length), mask, texts * length, length
        )
        hidden = self.model.text(ids.flatten(), _positions(ids).flatten())
        rows = self._run(hidden + self.model.types.weight[0], layout, self._biases(length, 0), "modality")
        first = layout.grid.pad(rows)[:, 0]
        return F.normalize(self.model.text_proj(first), dim=-1), layout.grid.pad(hidden)

    def fuse(
        self, text: Float[Tensor, "P L D"], mask: Bool[Tensor, "P L"], images: Sequence[Float[Tensor, "P T V"]]
    ) -> Float[Tensor, "P J"]:
        """Returns the pooled vectors of each text with its image, or with each of its several images."""
        (pairs, length, _), tokens = text.shape, images[0].shape[1]
        start = torch.arange(pairs)[:, None] * (length + tokens)
        place = torch.cat([(start + torch.arange(length)).flatten(), (start + length + torch.arange(tokens)).flatten()])
        sequence = torch.cat([_sequence(pairs, length), _sequence(pairs, tokens)])
        visible = torch.cat([mask, mask.new_ones(pairs, tokens)], dim=1)
        layout = MultimodalLayout(PaddedGrid(pairs, length + tokens, place), sequence, visible, pairs * length, length)
        biases, pooled = self._biases(length, tokens), []
        for turn, patches in enumerate(images):
            types = self.model.types.weight
            rows = torch.cat([(text + types[0]).flatten(0, 1), (patches + types[1 + turn]).flatten(0, 1)])
            rows = self._run(rows, layout, biases, "vl")
            first = rows[: pairs * length].unflatten(0, (pairs, length))[:, 0]
            pooled.append(torch.tanh(self.model.pooler(first)))
        return torch.cat(pooled, dim=1)

    def _run(
        self, rows: Float[Tensor, "N D"], layout: MultimodalLayout, biases: Sequence[Tensor | None], upper: Route
    ) -> Float[Tensor, "N D"]:
        for number, block in enumerate(self.model.blocks):
            route = "modality" if number < self.model.config.fusion_start else upper
            rows, _ = block(rows, layout, biases[number], route)
        return cast(Tensor, self.model.norm(rows))

    def _biases(self, length: int, tokens: int) -> Sequence[Tensor | None]:
        """Returns each block's relative position bias for `length` text positions followed by `tokens` of an image."""
        positions, config = self.model.positions, self.model.config
        if positions is None:
            return [None] * config.depth
        index = self._cut(self._cut(cast(Tensor, self.index), length, tokens).t(), length, tokens).t()
        bias = positions.table.t().index_select(1, index.flatten())
        return bias.unflatten(1, index.shape).unflatten(0, (config.depth, config.heads)).unbind(0)

    def _cut(self, index: Int[Tensor, "all_rows K"], length: int, tokens: int) -> Int[Tensor, "rows K"]:
        """Selects the rows of a text and of an image, separately, so that a longer text is an error."""
        text, image = index.split([self.longest, index.shape[0] - self.longest])
        return torch.cat([text[torch.arange(length)], image[torch.arange(tokens)]])


Padded = PaddedAlbef | PaddedVlmo


def padded(model: Model) -> Padded:
    """Wraps a model. Raises ValueError for one that is neither ALBEF nor VLMo."""
    if isinstance(model, Albef):
        return PaddedAlbef(model)
    if isinstance(model, Vlmo):
        return PaddedVlmo(model)
    raise ValueError(f"{type(model).__name__} cannot be exported to other runtimes: ALBEF and VLMo can")


def _positions(ids: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def _sequence(count: int, length: int) -> Int[Tensor, "N"]:
    """Returns the sequence of each token."""
    return torch.arange(count)[:, None].expand(count, length).flatten()


# --------------------------------------------------------------------------- graphs of the files


class ImageEncoder(nn.Module):
    """Maps pixels to vectors (if they were trained) and image_state."""

    def __init__(self, model: Padded, vectors: bool) -> None:
        super().__init__()
        self.model, self.vectors = model, vectors

    def forward(self, pixels: Float[Tensor, "I 3 H W"]) -> tuple[Tensor, ...]:
        vectors, state = self.model.image(pixels)
        return (vectors, state) if self.vectors else (state,)


class TextEncoder(nn.Module):
    """Maps input_ids and attention_mask to vectors (if they were trained) and text_state."""

    def __init__(self, model: Padded, vectors: bool) -> None:
        super().__init__()
        self.model, self.vectors = model, vectors

    def forward(self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"]) -> tuple[Tensor, ...]:
        vectors, state = self.model.text(input_ids, attention_mask.bool())
        return (vectors, state) if self.vectors else (state,)


class Fusion(nn.Module):
    """Maps text_state, attention_mask and the image_state of one or two images to match and logits, if trained.

    Row p of each input belongs to pair p.
    """

    def __init__(self, model: Padded, match: bool, head: nn.Module | None) -> None:
        super().__init__()
        self.model, self.match, self.head = model, match, head

    def forward(
        self, text_state: Float[Tensor, "P L D"], attention_mask: Int[Tensor, "P L"],
        image_state: Float[Tensor, "P T V"], second_image_state: Float[Tensor, "P T V"] | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        images = [image_state] if second_image_state is None else [image_state, second_image_state]
        pooled = self.model.fuse(text_state, attention_mask.bool(), images)
        outputs = []
        if self.match:
            outputs.append(self.model.model.match_logits(Joint(pooled, None)).softmax(dim=1)[:, 1])
        if self.head is not None:
            outputs.append(self.head(pooled))
        return tuple(outputs)
