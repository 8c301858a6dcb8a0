"""Records which expert each token of VLMo passes through (VLMo §3.2).

Nothing here knows the routing rule: hooks on the experts note which tokens they receive.

L text tokens, T image tokens, N tokens of a pass: those of the text, then those of the image.
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
from diptych.predict.inputs import Picture
from diptych.predict.predictor import Predictor
from diptych.search.contract import evaluating
from diptych.task import Model
from diptych.types import TokenPositions, to_device

ExpertName = Literal["text", "image", "fusion"]
FFNS: dict[ExpertName, str] = {"text": "language_ffn", "image": "vision_ffn", "fusion": "vl_ffn"}
"""Attributes of a block that hold the experts."""


@dataclass(frozen=True)
class Passed:
    """An expert that a token passed through."""

    expert: ExpertName
    moved: float
    """The length of the expert's output, which is added to the token, as a share of the token's own length."""


@dataclass(frozen=True)
class Way:
    """One pass through all layers."""

    given: str
    """The input: `picture`, `text` or `pair`."""
    tokens: tuple[str, ...]
    """Names of the tokens: the text's pieces, then `[CLS]` and the patches of the image."""
    text_tokens: int
    """The number of text tokens among them."""
    layers: tuple[tuple[Passed | None, ...], ...]
    """For each layer, the expert of each token; None where the layer was not computed for it."""


def has_experts(model: Model) -> TypeGuard[Vlmo]:
    """Tells whether each modality has a feed-forward of its own."""
    return isinstance(model, Vlmo) and model.config.experts == "modality"


def expert_ways(predictor: Predictor, picture: Picture, text: str) -> tuple[Way, Way, Way]:
    """Follows the picture alone, the text alone and both together. Raises ValueError for a model without experts."""
    model = predictor.model
    if not has_experts(model):
        raise ValueError(f"{predictor.origin} has no experts: only VLMo's blocks choose one by the kind of token")
    texts = to_device(predictor.texts(text), predictor.device)
    words = tuple(predictor.tokenizer.token(number) for number in texts.input_ids[0].tolist())
    with evaluating(model):
        images = model.image_state(predictor.transform(predictor.open(picture))[None].to(predictor.device))
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
    """Lets every expert note the tokens that it receives."""
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
        # An expert receives a stretch of its block's tokens: a view, whose offset tells where the stretch begins.
        first = rows.storage_offset() // rows.shape[1]
        moved = added.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-12)
        for place, share in enumerate(moved.tolist(), first):
            layer[place] = Passed(name, share)

    return note
