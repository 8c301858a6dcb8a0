"""A ring of past features, the negatives of many batches (ALBEF §3.2, after MoCo).

M places, E embedding width, n new entries.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

NOBODY = -1
"""The identity of an entry whose picture is not known."""


class FeatureQueue(nn.Module):
    """The newest M pairs of image and text features with the identity of their picture.

    Any batch size goes: entries wrap around. Unfilled places are never used.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), NOBODY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def entries(self) -> tuple[Float[Tensor, "m E"], Float[Tensor, "m E"], Int[Tensor, "m"]]:
        """Image features, text features and picture identities of the filled places."""
        filled = int(self.filled)
        return self.image[:filled], self.text[:filled], self.ids[:filled]

    def behind(
        self, image: Float[Tensor, "n E"], text: Float[Tensor, "n E"], ids: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "k E"], Float[Tensor, "k E"], Int[Tensor, "k"]]:
        """A batch's features and identities, the queue's behind them: the candidates of a contrast."""
        queued_image, queued_text, queued_ids = self.entries()
        return torch.cat([image, queued_image]), torch.cat([text, queued_text]), torch.cat([ids, queued_ids])

    @torch.no_grad()
    def push(self, image: Float[Tensor, "n E"], text: Float[Tensor, "n E"], ids: Int[Tensor, "n"]) -> None:
        """Replace the oldest entries. Of more than M new ones, the last M stay."""
        new = len(ids)
        places = (self.pointer + torch.arange(new, device=self.ids.device)) % max(self.size, 1)
        kept = slice(max(new - self.size, 0), None)
        for ring, rows in ((self.image, image), (self.text, text), (self.ids, ids)):
            ring[places[kept]] = rows[kept].to(ring.dtype)
        self.pointer.copy_((self.pointer + new) % max(self.size, 1))
        self.filled.copy_((self.filled + new).clamp(max=self.size))
