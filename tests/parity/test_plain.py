"""The benchmarks' plain implementation is held to the released numbers too: speed is compared between equals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.plain import PlainAlbef
from tests.parity.golden import Golden, albef_config, check_number, read_tensors


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
            check_number(name, gradients[name].norm().item(), norm, 2e-5)


@torch.no_grad()
def test_plain_re_ranking_is_the_released_one(golden_albef: Path) -> None:
    golden = Golden(golden_albef, "retrieval_eval")
    plain = PlainAlbef(albef_config(golden_albef), 12, 0.995)
    state = read_tensors(golden_albef / "state" / "retrieval.safetensors")
    state = {k.replace("text_encoder.", "text_encoder.bert."): v for k, v in state.items() if "position_ids" not in k}
    own = plain.state_dict()
    plain.load_state_dict(own | {k: v for k, v in state.items() if k in own and "queue" not in k})
    images = plain.visual_encoder(golden["in.image"])
    mask = golden["in.attention_mask"]
    texts = plain.text_encoder.bert.text(golden["in.input_ids"], mask)
    stored = golden["out.score_i2t"]
    for i, image in enumerate(images):
        chosen = (stored[i] != -100).nonzero().squeeze(1)
        scores = plain.rerank(image, texts[chosen], mask[chosen])
        assert (scores - stored[i, chosen]).abs().max() < 1e-5
