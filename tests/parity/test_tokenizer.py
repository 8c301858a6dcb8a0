"""WordPiece against the released tokenizer: all pieces, calls, answers and special ids of `tokenizer.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.data.collate import pad_texts
from diptych.data.tokenizer import Tokenizer


@pytest.fixture
def stored(golden_albef: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((golden_albef / "tokenizer.json").read_text())
    return stored


@pytest.fixture
def tokenizer(golden_albef: Path) -> Tokenizer:
    return Tokenizer.from_vocabulary(golden_albef / "vocab.txt", separator=False)


def test_texts_fall_into_the_released_pieces(tokenizer: Tokenizer, stored: dict[str, Any]) -> None:
    for text, pieces in zip(stored["texts"], stored["pieces"], strict=True):
        assert tokenizer.pieces(text) == pieces


def test_every_call_gives_the_released_ids_and_padding(tokenizer: Tokenizer, stored: dict[str, Any]) -> None:
    for case in stored["calls"]:
        call = case["call"]
        # The released tokenizer heeds max_length only where truncation is asked for, but for padding to it.
        most = call.get("max_length") if call.get("truncation") else None
        length = call["max_length"] if call["padding"] == "max_length" else None
        texts = pad_texts(tokenizer.encode(stored["texts"], most), tokenizer.pad_id, length)
        assert texts.input_ids.tolist() == case["input_ids"], call
        assert texts.attention_mask.int().tolist() == case["attention_mask"], call


def test_answers_closed_with_a_literal_separator_have_the_released_ids(
    tokenizer: Tokenizer, stored: dict[str, Any]
) -> None:
    answers = stored["answers"]
    texts = pad_texts(tokenizer.encode(answers["texts"]), tokenizer.pad_id)
    assert texts.input_ids.tolist() == answers["input_ids"]
    assert texts.attention_mask.int().tolist() == answers["attention_mask"]


def test_special_ids_are_the_released_ones(tokenizer: Tokenizer, stored: dict[str, Any]) -> None:
    ours = {
        "pad": tokenizer.pad_id,
        "unk": tokenizer.unk_id,
        "cls": tokenizer.cls_id,
        "sep": tokenizer.sep_id,
        "mask": tokenizer.mask_id,
    }
    assert ours == stored["special"]


def test_stock_bert_adds_a_separator_that_the_released_tokenizer_does_not(
    golden_albef: Path, tokenizer: Tokenizer, stored: dict[str, Any]
) -> None:
    """REFERENCE defect 11, both behaviours."""
    stock = Tokenizer.from_vocabulary(golden_albef, separator=True)
    for plain, closed in zip(tokenizer.encode(stored["texts"]), stock.encode(stored["texts"]), strict=True):
        assert closed == [*plain, stock.sep_id]
