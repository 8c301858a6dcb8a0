"""A picture that several texts are about is encoded once, where nothing is learnt from it or the batch says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.types import Progress, Repeats, Texts
from tests import tiny

WHICH = torch.tensor([1, 0, 1, 1])
"""Of two pictures, the one that each of four texts is about."""
TASKS: dict[str, Callable[..., Any]] = {
    "entailment": tiny.entailment,
    "closed set": tiny.vqa_closed_set,
    "retrieval": tiny.retrieval,
    "nlvr2": tiny.nlvr2,
}
SYSTEMS = [{}, {"system": "vlmo"}]


def repeated(batch: Any) -> Any:
    """The batch with two pictures only."""
    second = {"second_pixels": batch.second_pixels[WHICH]} if hasattr(batch, "second_pixels") else {}
    return replace(batch, pixels=batch.pixels[WHICH], **second)


def single(batch: Any, row: int) -> Any:
    texts = Texts(batch.texts.input_ids[row : row + 1], batch.texts.attention_mask[row : row + 1])
    given = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, texts=texts, **{name: value[row : row + 1] for name, value in given.items()})


def count_encoded(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[int]:
    seen, encode = list[int](), model.image_state

    def image_state(pixels: Tensor, *more: Any, **other: Any) -> Any:
        seen.append(len(pixels))
        return encode(pixels, *more, **other)

    monkeypatch.setattr(model, "image_state", image_state)
    return seen


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_each_text_alone(
    name: str, system: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name](model=system).eval()
    batch = repeated(tiny.picture_pairs(tiny.batch()) if name == "nlvr2" else tiny.batch())
    alone = torch.cat([task.predict(single(batch, row)) for row in range(len(batch))])
    seen = count_encoded(monkeypatch, task.model)
    torch.testing.assert_close(task.predict(batch), alone, rtol=1e-4, atol=1e-6)
    assert seen == [4 if name == "nlvr2" else 2]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_what_learns_encodes_every_picture(system: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal pictures have draws of their own there: dropout, stochastic depth."""
    task, batch = tiny.entailment(model=system), repeated(tiny.batch())
    seen = count_encoded(monkeypatch, task.model)
    task.eval().logits(batch)
    with torch.no_grad():
        task.train().logits(batch)  # as a momentum encoder with dropout
    assert seen == [4, 4]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
@pytest.mark.parametrize("kind", ["entailment", "closed set", "decoding"])
def test_training_encodes_a_repeated_picture_once_with_the_same_loss_and_gradients(
    kind: str, system: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = {"entailment": tiny.entailment, "closed set": tiny.vqa_closed_set, "decoding": tiny.vqa_decoding}[kind]
    task = build(model=system).eval()  # without dropout, whose draws differ
    whole = repeated(tiny.labelled(tiny.batch()) if kind == "entailment" else tiny.questions(tiny.batch()))
    seen, gradients, losses = count_encoded(monkeypatch, task.model), [], []
    for batch in (whole, replace(whole, repeats=Repeats(torch.tensor([0, 1]), torch.tensor([0, 1, 0, 0])))):
        task.zero_grad()
        loss = task(batch, Progress(step=3, epoch=2.0)).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: value.grad for name, value in task.named_parameters() if value.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert seen == [4, 2]


def test_other_pictures_of_equal_sums_are_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = tiny.entailment().eval(), tiny.batch()
    pixels = torch.stack([batch.pixels[0], batch.pixels[0].roll(1, 0), batch.pixels[1], batch.pixels[1]])
    batch = replace(batch, pixels=pixels)
    alone = torch.cat([task.predict(single(batch, row)) for row in range(4)])
    seen = count_encoded(monkeypatch, task.model)
    torch.testing.assert_close(task.predict(batch), alone, rtol=1e-4, atol=1e-6)
    assert seen == [4]
