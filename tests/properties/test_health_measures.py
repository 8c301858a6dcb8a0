"""What the losses measure of a run's health, against counts and cosines made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diptych.losses.contrastive import IGNORED_LOGIT, Logits
from diptych.tasks.pretraining import other_similarity
from diptych.types import Losses, Progress
from tests import tiny

PRETRAINING: dict[str, Callable[..., Any]] = {"albef": tiny.pretraining, "vlmo": tiny.vlmo_pretraining}
Task = Any


def measured(task: Task, ids: tuple[int, ...] = (10, 11, 12, 13)) -> dict[str, float]:
    losses: Losses = task(tiny.batch(ids=ids), Progress(0, 0.0))
    return {name: float(term.mean) for name, term in losses.measures.items()}


def collapse(task: Task) -> None:
    """All pictures and texts are mapped to one point."""
    for model in (task.model, getattr(task, "momentum_encoder", None)):
        for name in ("image_proj", "text_proj"):
            if model is not None and isinstance(found := getattr(model, name), nn.Linear):
                nn.init.zeros_(found.weight)
                found.bias = nn.Parameter(torch.ones(found.out_features))


@pytest.mark.parametrize("name", PRETRAINING)
def test_collapsed_features_show_as_equal_similarities(name: str) -> None:
    task = PRETRAINING[name](**({"queue_size": 0} if name == "albef" else {}))
    before = measured(task)
    assert before["other_similarity"] < 0.99
    collapse(task)
    after = measured(task)
    assert after["other_similarity"] == pytest.approx(1.0, abs=1e-4)
    assert after["positive_similarity"] == pytest.approx(1.0, abs=1e-4)
    assert after["mi_bound"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "aligned alone"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", PRETRAINING)
def test_false_negatives_are_counted_whether_masked_or_kept(name: str, kept: bool, fused: bool) -> None:
    task = PRETRAINING[name](keep_false_negatives=kept, fuse_start=0 if fused else 5)
    assert measured(task)["false_negatives"] == 0
    assert measured(task, ids=(10, 11, 10, 10))["false_negatives"] == pytest.approx(3 / 4)


def test_a_picture_in_the_queue_is_a_false_negative_too() -> None:
    """The queue of `tiny.pretraining` holds the pictures 100 to 102."""
    assert measured(tiny.pretraining(), ids=(10, 101, 12, 13))["false_negatives"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", PRETRAINING)
def test_masked_false_negatives_do_not_count_as_pairs_that_do_not_belong_together(name: str) -> None:
    task = PRETRAINING[name](**({"queue_size": 0} if name == "albef" else {}))
    ids = (10, 10, 12, 13)
    batch = tiny.batch(ids=ids)
    task.model.eval()
    with torch.no_grad():
        image = task.model.embed_image(task.model.image_state(batch.pixels))["main"]
        text = task.model.embed_text(task.model.text_state(batch.texts))["main"]
        if name == "albef":
            task.before_step()  # keys are the momentum encoder's
            key_image = task.momentum_encoder.embed_image(task.momentum_encoder.image_state(batch.pixels))["main"]
            key_text = task.momentum_encoder.embed_text(task.momentum_encoder.text_state(batch.texts))["main"]
        else:
            key_image, key_text = image, text
    cosines = [
        float((image[b] @ key_text[k] + text[b] @ key_image[k]) / 2)
        for b in range(4)
        for k in range(4)
        if ids[b] != ids[k]
    ]
    assert measured(task, ids)["other_similarity"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-4)


def test_what_is_hidden_leaves_no_trace() -> None:
    logits = torch.tensor([[9.0, 1.0, IGNORED_LOGIT], [3.0, 9.0, 5.0]])
    others = torch.tensor([[False, True, True], [True, False, True]])
    found = other_similarity(Logits(logits, logits), others, torch.tensor(0.1))
    assert float(found.mean) == pytest.approx(0.3)
    assert int(found.count) == 3


def test_retrieval_counts_other_captions_of_a_picture_as_belonging_together() -> None:
    task = tiny.retrieval(queue_size=0)
    losses = task(replace(tiny.batch(), image_ids=torch.tensor([10, 10, 12, 13])), Progress(0, 0.0))
    assert int(losses.measures["other_similarity"].count) == 16 - 4 - 2


def test_the_bound_of_the_momentum_encoder_s_view_is_that_of_the_texts_that_it_draws() -> None:
    task = tiny.pretraining(queue_size=0, alpha_ramp=0.0)
    batch = tiny.batch()
    task.model.eval()
    task.before_step()
    with torch.no_grad():
        (image, text), (key_image, key_text) = (
            (model.embed_image(model.image_state(batch.pixels)), model.embed_text(model.text_state(batch.texts)))
            for model in (task.model, task.momentum_encoder)
        )
    image, text, key_image, key_text = (vectors["main"] for vectors in (image, text, key_image, key_text))
    tau = float(task.model.temperature())
    bounds = []
    for own, keys, teacher in ((image, key_text, key_image), (text, key_image, key_text)):
        for query, drawn in zip(own, teacher, strict=True):
            chances = [math.exp(float(drawn @ key) / tau) for key in keys]
            scores = [math.exp(float(query @ key) / tau) for key in keys]
            bounds += [
                chance / sum(chances) * math.log(len(keys) * score / sum(scores))
                for chance, score in zip(chances, scores, strict=True)
            ]
    losses = task(batch, Progress(0, 0.0))
    assert float(losses.measures["mi_bound_teacher"].mean) == pytest.approx(sum(bounds) / (2 * len(batch)), abs=1e-4)
    assert "mi_bound_teacher" not in measured(tiny.pretraining(momentum_start=5))
