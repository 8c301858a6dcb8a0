"""Samples to a batch. B samples, L the longest text of the batch, H × W pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.types import Batch, Texts


@dataclass(frozen=True)
class Sample:
    """One image-text pair, ready for a batch."""

    pixels: Float[Tensor, "3 H W"]
    input_ids: list[int]
    image_id: str
    """Equal for equal pictures."""
    record: str
    """Name of the record, for messages."""


def identity_number(image_id: str) -> int:
    """A stable 63-bit number for a picture's identity: the same in every process and on every machine."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pad_texts(ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Texts:
    """Texts as one matrix, padded at their end to the longest, or to `length`. Raises ValueError if one is longer."""
    longest = max((len(text) for text in ids), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a text has {longest} tokens, but the length to pad to is {length}")
    width = longest if length is None else length
    lengths = torch.tensor([len(text) for text in ids], dtype=torch.long)
    rows = [[*text, *[pad_id] * (width - len(text))] for text in ids]
    input_ids = torch.tensor(rows, dtype=torch.long).reshape(len(ids), width)
    return Texts(input_ids=input_ids, attention_mask=torch.arange(width)[None, :] < lengths[:, None])


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """A batch of at least one sample; all pictures of one size."""
    assert samples, "a batch needs at least one sample"
    return Batch(
        pixels=torch.stack([sample.pixels for sample in samples]),
        texts=pad_texts([sample.input_ids for sample in samples], pad_id),
        image_ids=torch.tensor([identity_number(sample.image_id) for sample in samples], dtype=torch.long),
        records=tuple(sample.record for sample in samples),
    )
