"""What search and evaluation ask of a model: the calls of the state, and of its states only that they can be cut.

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
    """What a model keeps of a batch of images or texts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, "P"], /) -> Any:
        """The items `index`, in that order and as often."""
        ...

    @classmethod
    def cat(cls, states: Sequence[Any], /) -> Any: ...

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class PairModel(Protocol):
    """A model that embeds images and texts apart, and fuses pairs of them."""

    @property
    def fused_image_tokens(self) -> int:
        """Rows that an image brings into each pair that it is fused in, beside the text's."""
        ...

    def image_state(self, pixels: Float[Tensor, "B 3 H W"], /) -> Any: ...

    def text_state(self, texts: Texts, /) -> Any: ...

    def embed_image(self, state: Any, /) -> Mapping[str, Float[Tensor, "B E"]]: ...

    def embed_text(self, state: Any, /) -> Mapping[str, Float[Tensor, "B E"]]: ...

    def fuse(
        self, texts: Any, images: Any, /, text_index: Int[Tensor, "P"], image_index: Int[Tensor, "P"]
    ) -> Joint: ...

    def match_logits(self, joint: Joint, /) -> Float[Tensor, "P 2"]: ...

    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def evaluating(model: PairModel | nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in, also where they differ."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
