"""Scores that add up over batches, and recalls from features, against the released ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.losses.answers import closed_set_score
from diptych.losses.masked_lm import masked_lm_loss
from diptych.metrics.recall import retrieval_metrics, retrieval_ranks
from diptych.tasks.pretraining import word_measures
from diptych.types import Term
from tests.parity.vlmo.golden import Golden, manifest

RECALLS = {
    f"{short}_r{k}": f"{direction}.recall@{k}"
    for short, direction in (("tr", "image_to_text"), ("ir", "text_to_image"))
    for k in (1, 5, 10)
}


@pytest.fixture
def golden(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "metrics")


def together(terms: list[Term]) -> torch.Tensor:
    """What a run that adds sums and counts up reports."""
    return sum(term.sum for term in terms) / sum(term.count for term in terms)


def updates(golden: Golden, measure: str, *names: str) -> list[list[torch.Tensor]]:
    numbers = sorted({key.split("/")[1] for key in golden.keys(f"{measure}/") if key.count("/") == 2})
    assert len(numbers) > 1
    return [[golden[f"{measure}/{number}/{name}"] for name in names] for number in numbers]


def test_the_vqa_score_is_that_of_the_likeliest_answer(golden: Golden) -> None:
    score = together([closed_set_score(*given) for given in updates(golden, "vqa", "logits", "targets")])
    golden.check("vqa/score", score)
    assert golden.unused == {key for key in golden.tensors if key.startswith("acc/")}


def test_words_that_are_not_hidden_do_not_count(golden: Golden) -> None:
    terms = []
    for logits, labels in updates(golden, "acc", "logits", "labels"):
        hidden = labels != -100
        rows, words = logits[hidden], labels[hidden]
        terms.append(word_measures(masked_lm_loss(rows, words), rows, words)["mlm_accuracy"])
    golden.check("acc/accuracy", together(terms))
    assert golden.unused == {key for key in golden.tensors if key.startswith("vqa/")}


def test_recalls_from_features_are_the_released_ones(golden_vlmo: Path) -> None:
    """Images in any order, each with its number of texts. What is re-ranked is compared where the scores are made."""
    golden, cases = Golden(golden_vlmo, "retrieval"), manifest(golden_vlmo)["retrieval"]
    assert cases
    for case, expected in cases.items():
        if case.startswith("rerank"):
            continue
        relevant = golden[f"{case}/text_image_ids"][:, None] == golden[f"{case}/image_ids"]
        scores = golden[f"{case}/text_feats"] @ golden[f"{case}/image_feats"].T
        ranks = {
            "image_to_text": retrieval_ranks(scores.T, relevant.T), "text_to_image": retrieval_ranks(scores, relevant)
        }  # fmt: skip
        found = retrieval_metrics(ranks)
        ours = {name: found[measure] / 100 for name, measure in RECALLS.items()}
        assert ours == pytest.approx(expected, abs=1e-6), case
