"""Samples to a batch, one function a kind of batch. B samples, L the longest text of the batch, H × W pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.types import Batch, LabelledBatch, LabelledPicturePairs, PictureBatch, QuestionBatch, TextBatch, Texts


@dataclass(frozen=True)
class Sample:
    """A text with its picture, ready for a batch; what its task does not learn from is left empty."""

    pixels: Float[Tensor, "3 H W"] | None
    """None where a text has no picture."""
    input_ids: list[int]
    image_id: str
    """Equal for equal pictures; empty without one."""
    record: str
    """Name of the record, for messages."""
    second_pixels: Float[Tensor, "3 H W"] | None = None
    """Where the text is about two pictures."""
    label: int | None = None
    """The class, where there are classes."""
    answers: tuple[list[int], ...] = ()
    """Ids of each answer to a question, [CLS] … [SEP]."""
    weights: tuple[float, ...] = ()
    """How much each answer counts."""
    scores: tuple[float, ...] = ()
    """How right each answer of a closed set is."""


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
        pixels=torch.stack([sample.pixels for sample in samples if sample.pixels is not None]),
        texts=pad_texts([sample.input_ids for sample in samples], pad_id),
        image_ids=torch.tensor([identity_number(sample.image_id) for sample in samples], dtype=torch.long),
        records=tuple(sample.record for sample in samples),
    )


def collate_pictures(samples: Sequence[Sample], pad_id: int) -> PictureBatch:
    """Of samples without texts."""
    whole = collate(samples, pad_id)
    return PictureBatch(whole.pixels, whole.image_ids, whole.records)


def collate_texts(samples: Sequence[Sample], pad_id: int) -> TextBatch:
    """A batch of texts without pictures."""
    texts = pad_texts([sample.input_ids for sample in samples], pad_id)
    return TextBatch(texts, records=tuple(sample.record for sample in samples))


def collate_labelled(samples: Sequence[Sample], pad_id: int) -> LabelledBatch:
    """`collate`, with a class for each sample."""
    return LabelledBatch(**vars(collate(samples, pad_id)), labels=torch.tensor([sample.label for sample in samples]))


def collate_picture_pairs(samples: Sequence[Sample], pad_id: int) -> LabelledPicturePairs:
    """`collate_labelled`, with a second picture for each sample; `image_ids` are those of the first pictures."""
    second = [sample.second_pixels for sample in samples if sample.second_pixels is not None]
    return LabelledPicturePairs(**vars(collate_labelled(samples, pad_id)), second_pixels=torch.stack(second))


def collate_questions(samples: Sequence[Sample], pad_id: int) -> QuestionBatch:
    """`collate`, with a row of scores for each sample where samples have them, and else with all their answers."""
    batch = vars(collate(samples, pad_id))
    if samples[0].scores:
        return QuestionBatch(**batch, scores=torch.tensor([sample.scores for sample in samples], dtype=torch.float))
    owners = [row for row, sample in enumerate(samples) for _ in sample.answers]
    weights = [weight for sample in samples for weight in sample.weights]
    return QuestionBatch(
        **batch,
        answers=pad_texts([ids for sample in samples for ids in sample.answers], pad_id),
        answer_of=torch.tensor(owners),
        weights=torch.tensor(weights, dtype=torch.float),
    )
