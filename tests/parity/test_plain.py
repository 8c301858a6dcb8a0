"""The benchmarks' plain implementation is held to the released numbers too: speed is compared between equals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.grounding import Maps
from benchmarks.machine import flops
from benchmarks.plain import PlainAlbef
from benchmarks.retrieval import Stage, difference
from diptych.schema import AlbefConfig, GroundingConfig, TextConfig, VisionConfig
from diptych.search.rerank import UNSELECTED
from tests.parity.golden import Golden, albef_config, check_number, read_tensors, score_tolerance


def build(folder: Path) -> PlainAlbef:
    sizes = json.loads((folder / "config.json").read_text())
    plain = PlainAlbef(albef_config(folder), sizes["queue_size"], sizes["momentum"])
    state = read_tensors(folder / "state" / "pretrain.safetensors")
    plain.load_state_dict({k: v for k, v in state.items() if "position_ids" not in k and ".decoder." not in k})
    return plain


@pytest.mark.parametrize("case", ["a04", "a00"])
def test_plain_pretraining_is_the_released_one(golden_albef: Path, case: str) -> None:
    golden, plain = Golden(golden_albef, "pretrain"), build(golden_albef)
    alpha = json.loads((golden_albef / "config.json").read_text())["alpha_of_case_a04"] if case == "a04" else 0.0
    names = ("image", "input_ids", "attention_mask", "masked_input_ids", "mlm_labels")
    negatives = golden["in.neg_image_idx"], golden["in.neg_text_idx"]
    losses = plain(*(golden[f"in.{name}"] for name in names), alpha, negatives)
    for key, ours in (("mlm", losses.mlm), ("ita", losses.itc), ("itm", losses.itm), ("total", losses.total)):
        golden.check(f"{case}.loss_{key}", ours)
    golden.check(f"{case}.after.image_queue", plain.image_queue)
    losses.total.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for key in golden.keys(f"{case}.grad."):
        golden.check(key, gradients[key.removeprefix(f"{case}.grad.")])
    if case == "a04":
        stored = json.loads((golden_albef / "pretrain_gradnorms.json").read_text())["total"]
        for name, norm in stored.items():
            check_number(name, gradients[name].norm().item(), 0.0 if norm is None else norm, 2e-5)


def build_retrieval(folder: Path) -> PlainAlbef:
    """The retrieval model, which grounding uses."""
    sizes = json.loads((folder / "config.json").read_text())
    plain = PlainAlbef(albef_config(folder), sizes["queue_size"], sizes["momentum"])
    state = read_tensors(folder / "state" / "retrieval.safetensors")
    state = {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in state.items() if "position_ids" not in k}
    own = plain.state_dict()
    plain.load_state_dict(own | {k: v for k, v in state.items() if k in own and "queue" not in k})
    return plain


@torch.no_grad()
def test_plain_re_ranking_is_the_released_one(golden_albef: Path) -> None:
    golden, plain = Golden(golden_albef, "retrieval_eval"), build_retrieval(golden_albef)
    images = plain.visual_encoder(golden["in.image"])
    mask = golden["in.attention_mask"]
    texts = plain.text_encoder.bert.text(golden["in.input_ids"], mask)
    of_images, of_texts = golden["out.score_i2t"], golden["out.score_t2i"]
    for i, image in enumerate(images):
        chosen = (of_images[i] != UNSELECTED).nonzero().squeeze(1)
        scores = plain.rerank(image, texts[chosen], mask[chosen])
        assert (scores - of_images[i, chosen]).abs().max() <= score_tolerance(of_images)
    for t, text in enumerate(texts):
        chosen = (of_texts[t] != UNSELECTED).nonzero().squeeze(1)
        scores = plain.rerank_images(images[chosen], text, mask[t])
        assert (scores - of_texts[t, chosen]).abs().max() <= score_tolerance(of_texts)


def test_plain_grounding_is_the_released_one(golden_albef: Path) -> None:
    golden, plain = Golden(golden_albef, "grounding"), build_retrieval(golden_albef)
    stored = json.loads((golden_albef / "grounding_texts.json").read_text())
    for number in range(len(stored["batches"])):
        mark = f"batch{number}"
        inputs = [golden[f"in.{mark}.{name}"] for name in ("image", "input_ids", "attention_mask")]
        for layer in stored["itm_blocks"]:
            key = f"itm.block{layer}.{mark}.token_map"
            golden.check(key, plain.ground_by_match(*inputs, layer).view(golden[key].shape))
        for block in stored["itc_blocks"]:
            key = f"itc.block{block}.{mark}.map"
            golden.check(key, plain.ground_by_similarity(*inputs, block).view(golden[key].shape))


# --------------------------------------------------------------------------- both sides of a benchmark


TINY = AlbefConfig(
    VisionConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2),
    TextConfig(width=24, layers=4, fusion_start=2, heads=3, intermediate=32, dropout=0.0),
    embed_dim=8,
)
"""As small as it gets with the words of the benchmarks' captions."""


def test_both_sides_of_the_re_ranking_benchmark_give_the_same_scores_in_both_directions() -> None:
    stage = Stage(TINY, pictures=10, captions=60)
    whole, ours = stage.plain(), stage.ours()
    assert [list(scores.shape) for scores in whole] == [[10, 32], [60, 10]]
    assert difference(whole, ours) < 1e-5 < min(scores.std() for scores in whole)
    for direction in (0, 1):
        parts = [stage.plain(slice(first, None, 5))[direction] for first in range(5)]
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole[direction])


@pytest.mark.parametrize("grounding", [GroundingConfig("itm", 2), GroundingConfig("itc", 1)], ids=["itm", "itc"])
def test_both_sides_of_the_grounding_benchmark_give_the_same_maps(grounding: GroundingConfig) -> None:
    maps = Maps(grounding, TINY, pictures=2)
    plain, ours = maps.plain(), maps.ours()
    assert plain.shape == (10, 4, 4)
    assert (plain - ours).abs().max() < 1e-4 * plain.max()


def test_operations_of_fused_attention_are_counted() -> None:
    x = torch.randn(2, 3, 10, 8, requires_grad=True)
    forward = 2 * (2 * 2 * 3 * 10 * 10 * 8)
    assert flops(lambda: F.scaled_dot_product_attention(x, x, x)) == forward
    trained = flops(lambda: F.scaled_dot_product_attention(x, x, x).sum().backward())
    assert trained == 3.5 * forward, "backward forms the probabilities again"
