"""Grad-CAM maps against the released code's: every layer, both modes, padded batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.data.collate import pad_texts
from diptych.data.tokenizer import Tokenizer
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_RETRIEVAL
from diptych.schema import GroundingConfig
from diptych.tasks.grounding import phrase_maps
from diptych.types import Texts
from tests.parity.golden import Golden, albef_config, judged_alone, load_published, padded

PADDING = pytest.mark.parametrize("keep_padding", [True, False])


def build(folder: Path, keep_padding: bool) -> Albef:
    """The retrieval model, which grounding uses, in the folder's stored state; it has no word prediction."""
    model = padded(Albef(albef_config(folder)), keep_padding)
    own, without = ("model.word_head.",), ("momentum_encoder.", "queue.")
    load_published(nn.ModuleDict({"model": model}), folder, "retrieval", PUBLISHED_RETRIEVAL, own, without)
    return model.eval()


@pytest.fixture(scope="module")
def golden(golden_albef: Path) -> Golden:
    return Golden(golden_albef, "grounding")


@pytest.fixture(scope="module")
def stored(golden_albef: Path) -> dict[str, Any]:
    return json.loads((golden_albef / "grounding_texts.json").read_text())


def batches(golden: Golden, stored: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor, Texts]]:
    for number in range(len(stored["batches"])):
        mark = f"batch{number}"
        texts = Texts(golden[f"in.{mark}.input_ids"], golden[f"in.{mark}.attention_mask"].bool())
        yield mark, golden[f"in.{mark}.image"], texts


def test_phrases_are_the_released_ids(golden: Golden, stored: dict[str, Any], golden_albef: Path) -> None:
    tokenizer = Tokenizer.from_vocabulary(golden_albef / "vocab.txt", separator=False)
    for phrases, (_, _, texts) in zip(stored["batches"], batches(golden, stored), strict=True):
        ours = pad_texts(tokenizer.encode(phrases), tokenizer.pad_id)
        assert torch.equal(ours.input_ids, texts.input_ids)
        assert torch.equal(ours.attention_mask, texts.attention_mask)


@PADDING
def test_maps_of_cross_attention_are_the_released_ones(
    golden: Golden, stored: dict[str, Any], keep_padding: bool
) -> None:
    model = build(golden.folder, keep_padding)
    for layer in stored["itm_blocks"]:
        for mark, pixels, texts in batches(golden, stored):
            case, here = f"itm.block{layer}.{mark}", torch.arange(len(texts))
            found = phrase_maps(model, pixels, texts, GroundingConfig("itm", layer), averages_padding=True)
            golden.check(f"{case}.token_map", found.tokens)
            golden.check(f"{case}.map", found.phrase)
            with torch.no_grad():
                joint = model.fuse(model.text_state(texts), model.image_state(pixels), here, here)
            golden.check(f"{case}.logits", model.match_logits(joint))
            assert (found.score - golden[f"{case}.logits"][:, 1]).abs().max() <= golden.limit(f"{case}.logits")


@PADDING
def test_maps_of_the_image_encoder_are_the_released_ones(
    golden: Golden, stored: dict[str, Any], keep_padding: bool
) -> None:
    model = build(golden.folder, keep_padding)
    for block in stored["itc_blocks"]:
        for mark, pixels, texts in batches(golden, stored):
            case = f"itc.block{block}.{mark}"
            found = phrase_maps(model, pixels, texts, GroundingConfig("itc", block))
            golden.check(f"{case}.map", found.phrase)
            with torch.no_grad():
                image = model.embed_image(model.image_state(pixels))["main"]
                text = model.embed_text(model.text_state(texts))["main"]
            golden.check(f"{case}.sim", image @ text.T / model.temperature())
            assert (found.score - golden[f"{case}.sim"].diagonal()).abs().max() <= golden.limit(f"{case}.sim")


def test_a_phrase_on_its_own_has_the_released_map_without_the_dilution(golden: Golden, stored: dict[str, Any]) -> None:
    """The released map × padded length / own length: what the mean over the own tokens would have been."""
    model = build(golden.folder, keep_padding=False)
    for layer in stored["itm_blocks"]:
        for mark, pixels, texts in batches(golden, stored):
            lengths, storage = texts.attention_mask.sum(1), texts.attention_mask.shape[1]
            for row, length in enumerate(lengths.tolist()):
                alone = Texts(texts.input_ids[row : row + 1, :length], texts.attention_mask[row : row + 1, :length])
                found = phrase_maps(model, pixels[row : row + 1], alone, GroundingConfig("itm", layer)).phrase[0]
                expected = golden[f"itm.block{layer}.{mark}.map"][row] * storage / length
                assert (found - expected).abs().max() <= 1e-4 * expected.max()


def test_every_stored_tensor_of_grounding_is_compared(golden: Golden, golden_albef: Path) -> None:
    """Judges the comparisons above; on its own it has none. Spread over processes, they are run again in one."""
    if judged_alone(__file__, golden_albef, golden):
        return
    if not any(key.startswith("itc") for key in golden.used) or not any(key.startswith("itm") for key in golden.used):
        pytest.skip("the comparisons above did not run")
    assert set(golden.tensors) - golden.used == set()
