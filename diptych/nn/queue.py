"""The feature queue: negatives from many earlier batches (ALBEF §3.2, after MoCo).

M capacity, m ≤ M entries, E embedding width, n new entries, k = n + m candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.types import NO_CLAIM, Claims

NOBODY = -1
"""The image identity of an entry whose image is not known."""


class FeatureQueue(nn.Module):
    """A ring buffer of the newest M pairs of image and text features, with the identity of each image.

    With `claims`, the widths of a batch's claims, it also keeps what each text says and what is known of each image.
    Any batch size is allowed, since entries wrap around. Slots that are not filled yet are never used.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    said: Tensor
    known: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int, claims: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), NOBODY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        if claims is not None:
            self.register_buffer("said", torch.full((size, claims[0]), NO_CLAIM))
            self.register_buffer("known", torch.full((size, claims[1]), NO_CLAIM))

    def entries(self) -> tuple[Float[Tensor, "m E"], Float[Tensor, "m E"], Int[Tensor, "m"]]:
        """Returns image features, text features and image identities of the filled slots."""
        filled = int(self.filled)
        return self.image[:filled], self.text[:filled], self.ids[:filled]

    def candidates(
        self, image: Float[Tensor, "n E"], text: Float[Tensor, "n E"], ids: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "k E"], Float[Tensor, "k E"], Int[Tensor, "k"]]:
        """Appends the queue to a batch's features and identities: the candidates of the contrastive loss."""
        queued_image, queued_text, queued_ids = self.entries()  # ALBEF §3.2
        return torch.cat([image, queued_image]), torch.cat([text, queued_text]), torch.cat([ids, queued_ids])

    def claims(self, claims: Claims) -> Claims:
        """Appends the claims of the queue to those of a batch, in the order of `candidates`."""
        filled = int(self.filled)
        return Claims(torch.cat([claims.said, self.said[:filled]]), torch.cat([claims.known, self.known[:filled]]))

    @torch.no_grad()
    def push(
        self, image: Float[Tensor, "n E"], text: Float[Tensor, "n E"], ids: Int[Tensor, "n"],
        claims: Claims | None = None,
    ) -> None:  # fmt: skip
        """Replaces the oldest entries. Of more than M new ones, the last M stay. A queue with claims needs `claims`."""
        new = len(ids)
        slots = (self.pointer + torch.arange(new, device=self.ids.device)) % max(self.size, 1)
        kept = slice(max(new - self.size, 0), None)
        replaced = [(self.image, image), (self.text, text), (self.ids, ids)]
        if claims is not None:
            replaced += [(self.said, claims.said), (self.known, claims.known)]
        for buffer, entries in replaced:
            buffer[slots[kept]] = entries[kept].to(buffer.dtype)
        self.pointer.copy_((self.pointer + new) % max(self.size, 1))
        self.filled.copy_((self.filled + new).clamp(max=self.size))
