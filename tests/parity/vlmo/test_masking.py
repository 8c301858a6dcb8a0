"""Whole-word and per-token masking with the reference's own draws. B texts, W padded length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.catalog import special_ids
from diptych.data.tokenizer import Tokenizer
from diptych.losses.masked_lm import IGNORED, WordDraws, WordMasking
from diptych.schema import LanguageStageConfig
from diptych.types import Texts

Case = dict[str, Any]


@pytest.fixture(scope="module")
def cases(golden_vlmo: Path) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = json.loads((golden_vlmo / "masking.json").read_text(encoding="utf-8"))
    assert set(found) == {"whole_word", "per_token"}
    return found


def recorded(case: Case, order: Tensor) -> WordDraws:
    """The reference's draws of one text, with a number for each position by which words are taken."""
    flags = (torch.tensor([case[name]], dtype=torch.bool) for name in ("draw_mask", "draw_random"))
    return WordDraws(order[None], *flags, torch.tensor([case["random_words"]]))


def texts_of(case: Case, pad: int) -> Texts:
    ids = torch.tensor([case["input_ids"]])
    own = case["input_ids"].index(pad) if pad in case["input_ids"] else ids.shape[1]
    assert "attention_mask" not in case or sum(case["attention_mask"]) == own
    return Texts(ids, torch.arange(ids.shape[1])[None] < own)


def masked(folder: Path, case: Case, order: Tensor, *, whole_words: bool, cut: bool) -> tuple[Tensor, Tensor]:
    """What is made of a text, padded as recorded or `cut` to its own tokens; without the padding either way."""
    config = LanguageStageConfig(case["mlm_probability"], whole_words)
    words = Tokenizer.from_vocabulary(folder)
    masking = WordMasking(config, special_ids(words), words.vocab_size, len(case["input_ids"]), of_padding=True)
    texts = texts_of(case, words.pad_id)
    own = int(texts.attention_mask.sum())
    if cut:
        texts = Texts(texts.input_ids[:, :own], texts.attention_mask[:, :own])
    ids, labels = masking(texts, recorded(case, order))
    return ids[0, :own], labels[0, :own]


@pytest.mark.parametrize("cut", [False, True], ids=["padded", "cut"])
def test_whole_words_are_hidden_as_released(golden_vlmo: Path, cases: dict[str, list[Case]], cut: bool) -> None:
    for case in cases["whole_word"]:
        order = torch.full((len(case["input_ids"]),), torch.inf)
        for number, word in enumerate(case["shuffled_words"]):
            order[word[0]] = number
        ids, labels = masked(golden_vlmo, case, order, whole_words=True, cut=cut)
        own = len(ids)
        assert ids.tolist() == case["output_ids"][:own], case["text"]
        assert labels.tolist() == case["output_labels"][:own], case["text"]
        assert all(label == IGNORED for label in case["output_labels"][own:])
        assert case["output_ids"][own:] == case["input_ids"][own:]


@pytest.mark.parametrize("cut", [False, True], ids=["padded", "cut"])
def test_single_tokens_are_hidden_as_released(golden_vlmo: Path, cases: dict[str, list[Case]], cut: bool) -> None:
    for case in cases["per_token"]:
        order = torch.where(torch.tensor(case["draw_select"], dtype=torch.bool), 0.0, 1.0)
        ids, labels = masked(golden_vlmo, case, order, whole_words=False, cut=cut)
        own = len(ids)
        assert ids.tolist() == case["output_ids"][:own], case["text"]
        assert labels.tolist() == case["output_labels"][:own], case["text"]
        assert all(label == IGNORED for label in case["output_labels"][own:])
