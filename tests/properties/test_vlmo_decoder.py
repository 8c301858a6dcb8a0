"""VLMo's answer decoder begins as the top fusion blocks, and reads text and image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.models.vlmo import Vlmo
from diptych.nn.decoder import QuestionStates
from diptych.nn.packed import PackedSequences
from diptych.schema import DecoderConfig, Recipe, VlmoPretrainConfig, VqaDecoderConfig
from diptych.tasks.vqa import VqaDecoding, ask
from diptych.types import TokenPositions
from tests import tiny

DECODER = DecoderConfig(
    layers=2, heads=3, intermediate=48, max_positions=tiny.POSITIONS, norm_eps=tiny.VLMO.norm_eps, norm="pre",
    dropout=0.0,
)  # fmt: skip
STYLES = [{}, {"positions": "absolute", "layer_scale": None}]


def started(model: Vlmo, config: DecoderConfig = DECODER) -> VqaDecoding:
    """A task that begins with what a pre-training run of `model` stored."""
    task = VqaDecoding(model, VqaDecoderConfig(config, alpha=0.0), tiny.SPECIAL)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    found = task.adapt(state, Recipe("before", model.config, VlmoPretrainConfig()))
    missing, unexpected = task.load_state_dict(found, strict=False)
    assert not unexpected
    assert all(name.startswith("head.") for name in missing)
    return task.eval()


@pytest.mark.parametrize("style", STYLES, ids=["relative", "absolute"])
def test_a_started_layer_computes_what_its_fusion_block_computes(style: dict[str, object]) -> None:
    """Of a single row, for which there is no one to look back to, and with the fresh cross-attention silent."""
    model = tiny.vlmo(**{"text_norm": False, **style})
    task, words = started(model), torch.tensor([7, 21, 9])
    with torch.no_grad():
        for layer in task.head.layers:
            layer.cross.out.weight.zero_()
            layer.cross.out.bias.zero_()
        if task.head.embedding.positions is not None:
            task.head.embedding.positions.weight.zero_()
        if model.text.positions is not None:
            model.text.positions.weight.zero_()
        one = PackedSequences(torch.ones(3, dtype=torch.long))
        silent = QuestionStates(torch.zeros(3, 1, 24), torch.ones(3, 1, dtype=torch.bool))
        ours, _ = task.head(words, one, silent, torch.arange(3))
        hidden = model.text(words, torch.zeros(3, dtype=torch.long)) + model.types.weight[0]
        for block in model.blocks[model.config.fusion_start :]:
            value = block.norm1(hidden) @ block.attention.qkv.weight[48:].T + block.attention.v_bias
            mixed = block.attention.out(value)
            hidden = hidden + (mixed if block.gamma_1 is None else block.gamma_1 * mixed)
            expert = block.vl_ffn
            fed = expert.fc2(torch.nn.functional.gelu(expert.fc1(expert.norm(hidden))))
            hidden = hidden + (fed if block.gamma_2 is None else block.gamma_2 * fed)
    torch.testing.assert_close(ours, model.norm(hidden), rtol=1e-4, atol=1e-5)


def test_cross_attention_and_word_scores_are_fresh_and_what_does_not_fit_too() -> None:
    model = tiny.vlmo()
    task = VqaDecoding(model, VqaDecoderConfig(replace(DECODER, intermediate=40)), tiny.SPECIAL)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    found = task.adapt(state, Recipe("before", model.config, VlmoPretrainConfig()))
    fresh = {name for name in task.state_dict() if name.startswith("head.")} - set(found)
    assert {name.split(".", 3)[3] for name in fresh if name.startswith("head.layers.0.")} == {
        "cross.q.weight", "cross.q.bias", "cross.kv.weight", "cross.kv.bias", "cross.out.weight", "cross.out.bias",
        "cross_norm.weight", "cross_norm.bias", "fc1.weight", "fc1.bias", "fc2.weight",
    }  # fmt: skip
    assert {name for name in fresh if not name.startswith("head.layers.")} == {
        "head.embedding.positions.weight", "head.word_head.bias", "head.word_head.dense.weight",
        "head.word_head.dense.bias", "head.word_head.norm.weight", "head.word_head.norm.bias",
    }  # fmt: skip


def test_a_decoder_reads_the_valid_rows_of_text_and_image() -> None:
    model, batch = tiny.vlmo(), tiny.batch()
    with torch.no_grad():
        asked = ask(model, batch)
        lengths, tokens = batch.texts.attention_mask.sum(1), model.fused_image_tokens
        assert asked.mask.sum(1).tolist() == (lengths + tokens).tolist()
        here = torch.arange(len(batch))
        images, texts = model.image_state(batch.pixels), model.text_state(batch.texts)
        rows = TokenPositions(here, lengths - 1)
        last = model.fuse(texts, images, here, here, rows).hidden
    torch.testing.assert_close(asked.hidden[here, lengths - 1], last)
