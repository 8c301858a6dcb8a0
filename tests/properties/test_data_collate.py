"""Tests that padding changes no result, and that identities are stable numbers."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.collate import Sample, collate, identity_number, pad_texts

IDS = st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=6)


@given(IDS, st.integers(0, 5))
def test_the_mask_marks_exactly_the_ids_given(ids: list[list[int]], extra: int) -> None:
    longest = max(len(text) for text in ids)
    for length in (None, longest + extra):
        texts = pad_texts(ids, pad_id=0, length=length)
        assert texts.input_ids.shape == (len(ids), longest if length is None else length)
        kept = [row[mask].tolist() for row, mask in zip(texts.input_ids, texts.attention_mask, strict=True)]
        assert kept == ids
        assert (texts.input_ids[~texts.attention_mask] == 0).all()


def test_a_text_longer_than_the_length_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="a text has 3 tokens"):
        pad_texts([[1, 2, 3]], pad_id=0, length=2)


@given(st.text())
def test_an_identity_is_a_number_of_63_bits_that_no_process_changes(name: str) -> None:
    number = identity_number(name)
    assert 0 <= number < 2**63
    assert number == int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16) // 2


def test_a_batch_keeps_the_order_and_gives_equal_pictures_equal_numbers() -> None:
    samples = [
        Sample(torch.full((3, 2, 2), float(n)), [2, 7 + n], image_id, f"r{n}")
        for n, image_id in enumerate(("a", "b", "a"))
    ]
    batch = collate(samples, pad_id=0)
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.texts.input_ids[:, 1].tolist() == [7, 8, 9]
    assert batch.records == ("r0", "r1", "r2")
    first, second, third = batch.image_ids.tolist()
    assert first == third != second
