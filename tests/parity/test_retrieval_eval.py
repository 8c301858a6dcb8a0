"""Two-stage retrieval against the released evaluation: features, similarities, re-ranked scores, recalls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diptych.checkpoints.convert import from_published
from diptych.evaluate import evaluate_retrieval
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_RETRIEVAL
from diptych.schema import EvaluationConfig
from diptych.types import Texts
from tests.parity.golden import Golden, albef_config, check_number, padded, read_tensors, score_tolerance


def build(folder: Path, keep_padding: bool) -> Albef:
    """The retrieval model in the folder's stored state; it has no word prediction."""
    model = padded(Albef(albef_config(folder)), keep_padding)
    state, _ = from_published(read_tensors(folder / "state" / "retrieval.safetensors"), PUBLISHED_RETRIEVAL)
    student = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    missing, unexpected = model.load_state_dict(student, strict=False)
    assert not unexpected
    assert all(name.startswith("word_head.") for name in missing)
    return model.eval()


@pytest.mark.parametrize("keep_padding", [True, False])
def test_scores_and_recalls_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    golden = Golden(golden_albef, "retrieval_eval")
    stored = json.loads((golden_albef / "retrieval_metrics.json").read_text())
    model = build(golden_albef, keep_padding)
    texts = Texts(golden["in.input_ids"], golden["in.attention_mask"].bool())
    with torch.no_grad():
        image = model.embed_image(model.image_state(golden["in.image"]))["main"]
        text = model.embed_text(model.text_state(texts))["main"]
    golden.check("out.image_proj", image)
    golden.check("out.text_proj", text)
    golden.check("out.sims", image @ text.T)
    config = EvaluationConfig(rerank=stored["k_test"], batch_size=5, bootstrap=100)
    owner = golden["in.txt2img"]
    result = evaluate_retrieval(model, golden["in.image"].split(5), texts, owner, config)
    for key, ours in (
        ("out.score_i2t", result.image_to_text.reranked.dense(len(texts))),
        ("out.score_t2i", result.text_to_image.reranked.dense(len(image))),
    ):
        golden.check(key, ours, within=score_tolerance(golden[key]))
    found = result.to_json()
    for released, ours in (("txt", "image_to_text"), ("img", "text_to_image")):
        for k in (1, 5, 10):
            check_number(f"{ours}@{k}", found[f"{ours}.recall@{k}"], stored["reranked"][f"{released}_r{k}"], 1e-6)
            first = found[f"contrastive.{ours}.recall@{k}"]
            check_number(f"contrastive {ours}@{k}", first, stored["first_stage_only"][f"{released}_r{k}"], 1e-6)
    assert {key for key in golden.tensors if not key.startswith("big.")} <= golden.used
