"""Which expert each token of VLMo goes through (VLMo §3.2), as a pass through the model shows it.

Nothing here knows the rule: hooks on the experts write down which rows they were given.

L text tokens, T image tokens, N rows of a pass: those of the text, then those of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from diptych.models.vlmo import Vlmo
from diptych.nn.mome import MoMEBlock
from diptych.predict.inputs import Picture, open_any
from diptych.predict.predictor import Predictor
from diptych.search.contract import evaluating
from diptych.task import Model
from diptych.types import TokenPositions, to_device

ExpertName = Literal["text", "image", "fusion"]
FFNS: dict[ExpertName, str] = {"text": "language_ffn", "image": "vision_ffn", "fusion": "vl_ffn"}
"""Attributes of a block that hold the experts."""


@dataclass(frozen=True)
class Passed:
    """An expert that a token went through."""

    expert: ExpertName
    moved: float
    """How far it moved the token: the length of what it added, as a share of the token's own."""


@dataclass(frozen=True)
class Way:
    """A pass through all layers."""

    given: str
    """What went in: `picture`, `text` or `pair`."""
    tokens: tuple[str, ...]
    """Names of the rows: the text's pieces, then `patch 0` for the image's class token and its patches."""
    text_tokens: int
    """How many of them are text."""
    layers: tuple[tuple[Passed | None, ...], ...]
    """Of each layer, what each token went through; None where the layer was not computed for it."""


def has_experts(model: Model) -> TypeGuard[Vlmo]:
    """Whether tokens of a kind go through a feed-forward of their own."""
    return isinstance(model, Vlmo) and model.config.experts == "modality"


def expert_ways(predictor: Predictor, picture: Picture, text: str) -> tuple[Way, Way, Way]:
    """The ways of the picture alone, of the text alone and of both together. Raises ValueError for another model."""
    model = predictor.model
    if not has_experts(model):
        raise ValueError(f"{predictor.origin} has no experts: only VLMo's blocks choose one by the kind of token")
    texts = to_device(predictor.texts(text), predictor.device)
    words = tuple(predictor.tokenizer.token(number) for number in texts.input_ids[0].tolist())
    with evaluating(model):
        images = model.image_state(predictor.transform(open_any(picture))[None].to(predictor.device))
        state = model.text_state(texts)
        tokens = images.patches.shape[1]
        patches = ("[CLS]", *(f"patch {number}" for number in range(1, tokens)))
        every = torch.arange(len(words), device=predictor.device)
        positions = TokenPositions(torch.zeros_like(every), every)
        zero = torch.zeros(1, dtype=torch.long, device=predictor.device)
        return (
            _way(model, "picture", (), patches, lambda: model.encode_image(images.patches)),
            _way(model, "text", words, (), lambda: model.encode_text(state, positions)),
            _way(model, "pair", words, patches, lambda: model.fuse(state, images, zero, zero, positions="all")),
        )


def _way(model: Vlmo, given: str, words: tuple[str, ...], patches: tuple[str, ...], run: Callable[[], object]) -> Way:
    seen: list[list[Passed | None]] = [[None] * (len(words) + len(patches)) for _ in model.blocks]
    with _watched(model, seen):
        run()
    return Way(given, words + patches, len(words), tuple(map(tuple, seen)))


@contextmanager
def _watched(model: Vlmo, seen: list[list[Passed | None]]) -> Iterator[None]:
    """Every expert writes down the rows that it is given."""
    handles = []
    try:
        for layer, block in zip(seen, model.blocks, strict=True):
            assert isinstance(block, MoMEBlock)
            for name, attribute in FFNS.items():
                expert = getattr(block, attribute)
                if expert is not None:
                    handles.append(expert.register_forward_hook(_note(name, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(name: ExpertName, layer: list[Passed | None]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def note(_: nn.Module, given: tuple[Any, ...], added: Tensor) -> None:
        rows = given[0]
        # An expert is given a stretch of its block's rows, a view whose offset says where among them it begins.
        first = rows.storage_offset() // rows.shape[1]
        moved = added.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-12)
        for place, share in enumerate(moved.tolist(), first):
            layer[place] = Passed(name, share)

    return note
