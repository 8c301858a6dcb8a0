"""Collates samples into batches, with one function per class of batch.

B is the number of samples, L the number of tokens of the batch's longest text, and H × W the size of its pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.types import (
    KNOWN,
    NO_CLAIM,
    SAID,
    Batch,
    Claims,
    LabelledBatch,
    LabelledPicturePairs,
    Phrases,
    PictureBatch,
    QuestionBatch,
    Repeats,
    TextBatch,
    Texts,
)


@dataclass(frozen=True)
class Sample:
    """Holds a text with its picture, ready for a batch. The fields that its task does not use are left empty."""

    pixels: Float[Tensor, "3 H W"] | None
    """None if the text has no picture."""
    input_ids: list[int]
    image_id: str
    """Equal for equal pictures, and empty without a picture."""
    record: str
    """The name of the record in messages."""
    second_pixels: Float[Tensor, "3 H W"] | None = None
    """The second picture, if the text is about two."""
    label: int | None = None
    """The class number, if the task has classes."""
    answers: tuple[list[int], ...] = ()
    """The ids of each answer to a question, from [CLS] to [SEP]."""
    weights: tuple[float, ...] = ()
    """The weight of each answer."""
    scores: tuple[float, ...] = ()
    """The score of each answer of a closed set."""
    claims: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """What a caption says, and what is known of its picture: at least that."""
    phrase: tuple[str, list[int]] | None = None
    """A phrase of the caption and its token ids."""


def identity_number(image_id: str) -> int:
    """Hashes a picture's identity to 63 bits. The number is the same in every process and on every machine."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def collate_claims(samples: Sequence[Sample]) -> Claims | None:
    """Numbers the claims of each sample's text and picture. Returns None if a sample has none."""
    said: list[list[int]] = []
    known: list[list[int]] = []
    for sample in samples:
        if sample.claims is None:
            return None
        for rows, claims, width in zip((said, known), sample.claims, (SAID, KNOWN), strict=True):
            numbers = [identity_number(claim) for claim in claims[:width]]
            rows.append(numbers + [NO_CLAIM] * (width - len(numbers)))
    return Claims(torch.tensor(said), torch.tensor(known))


def collate_phrases(samples: Sequence[Sample], pad_id: int) -> Phrases | None:
    """Pads the phrases and numbers what they say. Returns None if a sample has none."""
    phrases = [sample.phrase for sample in samples if sample.phrase is not None]
    if len(phrases) < len(samples):
        return None
    said = torch.tensor([[identity_number(phrase)] for phrase, _ in phrases])
    return Phrases(pad_texts([ids for _, ids in phrases], pad_id), said)


def repeats_of(samples: Sequence[Sample]) -> Repeats | None:
    """Lists the samples that hold the same tensor of pixels. Returns None if none do."""
    rows: dict[int, int] = {}  # the first sample with a tensor, by the tensor's identity
    for row, sample in enumerate(samples):
        rows.setdefault(id(sample.pixels), row)
    if len(rows) == len(samples):
        return None
    numbers = {identity: number for number, identity in enumerate(rows)}
    image_of = [numbers[id(sample.pixels)] for sample in samples]
    return Repeats(torch.tensor(list(rows.values())), torch.tensor(image_of))


def pad_texts(ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Texts:
    """Pads texts at their end to the longest one, or to `length`. Raises ValueError if a text is longer than that."""
    longest = max((len(text) for text in ids), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a text has {longest} tokens, but the length to pad to is {length}")
    width = longest if length is None else length
    lengths = torch.tensor([len(text) for text in ids], dtype=torch.long)
    rows = [[*text, *[pad_id] * (width - len(text))] for text in ids]
    input_ids = torch.tensor(rows, dtype=torch.long).reshape(len(ids), width)
    return Texts(input_ids=input_ids, attention_mask=torch.arange(width)[None, :] < lengths[:, None])


def check_different(names: Sequence[str], texts: Texts) -> None:
    """Raises ValueError for names of which the model reads two as the same tokens, between which it cannot choose."""
    first: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, texts.input_ids.tolist(), strict=True):
        other = first.setdefault(tuple(ids), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} are the same to this model: they differ only in case, in words that it does "
                "not know, or beyond data.max_words. Give names that differ"
            )


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Collates at least one sample. All pictures must have the same size."""
    assert samples, "a batch needs at least one sample"
    return Batch(
        pixels=torch.stack([sample.pixels for sample in samples if sample.pixels is not None]),
        texts=pad_texts([sample.input_ids for sample in samples], pad_id),
        image_ids=torch.tensor([identity_number(sample.image_id) for sample in samples], dtype=torch.long),
        records=tuple(sample.record for sample in samples),
        claims=collate_claims(samples),
        phrases=collate_phrases(samples, pad_id),
        repeats=repeats_of(samples),
    )


def collate_pictures(samples: Sequence[Sample], pad_id: int) -> PictureBatch:
    """Collates samples without texts."""
    batch = collate(samples, pad_id)
    return PictureBatch(batch.pixels, batch.image_ids, batch.records)


def collate_texts(samples: Sequence[Sample], pad_id: int) -> TextBatch:
    """Collates texts without pictures."""
    texts = pad_texts([sample.input_ids for sample in samples], pad_id)
    return TextBatch(texts, records=tuple(sample.record for sample in samples))


def collate_labelled(samples: Sequence[Sample], pad_id: int) -> LabelledBatch:
    """Collates samples with a class number each."""
    return LabelledBatch(**vars(collate(samples, pad_id)), labels=torch.tensor([sample.label for sample in samples]))


def collate_picture_pairs(samples: Sequence[Sample], pad_id: int) -> LabelledPicturePairs:
    """Collates samples with a class number and two pictures each. `image_ids` are those of the first pictures."""
    second = [sample.second_pixels for sample in samples if sample.second_pixels is not None]
    return LabelledPicturePairs(**vars(collate_labelled(samples, pad_id)), second_pixels=torch.stack(second))


def collate_questions(samples: Sequence[Sample], pad_id: int) -> QuestionBatch:
    """Collates questions with the scores of a closed set if samples have them, or else with all their answers."""
    batch = vars(collate(samples, pad_id))
    if samples[0].scores:
        return QuestionBatch(**batch, scores=torch.tensor([sample.scores for sample in samples], dtype=torch.float))
    owners = [row for row, sample in enumerate(samples) for _ in sample.answers]  # the question of each answer
    weights = [weight for sample in samples for weight in sample.weights]
    return QuestionBatch(
        **batch,
        answers=pad_texts([ids for sample in samples for ids in sample.answers], pad_id),
        answer_of=torch.tensor(owners),
        weights=torch.tensor(weights, dtype=torch.float),
    )
