"""The part of a model that search and evaluation use: its encoders and fusion, and states that can be indexed.

B items of a batch, E embedding width, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.types import Joint, Texts


@runtime_checkable
class State(Protocol):
    """The encoded form of a batch of images or texts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, "P"], /) -> Any:
        """Selects the items `index`, in that order and as often as they occur."""
        ...

    @classmethod
    def cat(cls, states: Sequence[Any], /) -> Any: ...

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class PairModel(Protocol):
    """A model that embeds images and texts separately and fuses pairs of them."""

    @property
    def fused_image_tokens(self) -> int:
        """The tokens that an image adds to each pair in which it is fused, beside those of the text."""
        ...

    def image_state(self, pixels: Float[Tensor, "B 3 H W"], /) -> Any: ...

    def text_state(self, texts: Texts, /) -> Any: ...

    def embed_image(self, state: Any, /) -> Mapping[str, Float[Tensor, "B E"]]: ...

    def embed_text(self, state: Any, /) -> Mapping[str, Float[Tensor, "B E"]]: ...

    def fuse(
        self, texts: Any, images: Any, /, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"]
    ) -> Joint: ...

    def match_logits(self, joint: Joint, /) -> Float[Tensor, "P 2"]: ...

    def temperature(self) -> Float[Tensor, ""]: ...

    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def evaluating(model: PairModel | nn.Module) -> Iterator[None]:
    """Switches to evaluation mode without gradients; afterwards every module has its own former mode again."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
