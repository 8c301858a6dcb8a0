"""What the folder's models read: its texts fall into the stored tokens, and what is hidden of them is labelled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.data.collate import pad_texts
from diptych.data.tokenizer import Tokenizer
from diptych.losses.masked_lm import IGNORED
from tests.parity.vlmo.golden import Golden, manifest

GROUPS = ("vl", "textmlm", "vqa", "nlvr2")


@pytest.mark.parametrize("group", GROUPS)
def test_texts_fall_into_the_stored_tokens(golden_vlmo: Path, group: str) -> None:
    inputs, told = Golden(golden_vlmo, "inputs"), manifest(golden_vlmo)
    length = told["config"]["max_text_len_textmlm" if group == "textmlm" else "max_text_len"]
    words = Tokenizer.from_vocabulary(golden_vlmo / "vocab.txt", separator=True)
    texts = pad_texts(words.encode(told["inputs"][f"{group}_texts"], length), words.pad_id, length)
    inputs.check(f"{group}/text_ids", texts.input_ids)
    inputs.check(f"{group}/text_masks", texts.attention_mask)


@pytest.mark.parametrize("group", GROUPS)
def test_labels_say_what_was_hidden_and_plain_texts_hide_nothing(golden_vlmo: Path, group: str) -> None:
    inputs = Golden(golden_vlmo, "inputs")
    ids, labels = inputs[f"{group}/text_ids"], inputs[f"{group}/text_labels_mlm"]
    inputs.check(f"{group}/text_labels", torch.full_like(ids, IGNORED))
    hidden = labels != IGNORED
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(inputs[f"{group}/text_ids_mlm"][~hidden], ids[~hidden])
    assert not hidden[~inputs[f"{group}/text_masks"].bool()].any()
