"""Visual entailment against the released code's numbers: `ve.*`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.models.albef import Albef
from diptych.pretrained.albef_names import PUBLISHED_ENTAILMENT
from diptych.schema import EntailmentConfig
from diptych.tasks.entailment import Entailment
from diptych.types import LabelledBatch, Losses, Progress, Texts
from tests.parity.golden import Golden, albef_config, check_number, load_published, padded

START = Progress(step=0, epoch=0.0)
CASES = ("a04", "a00", "hard")
"""With the momentum encoder's targets, with weight 0 for them (the ramp's start), and built without distillation."""


def build(folder: Path, case: str = "a04", keep_padding: bool = True) -> Entailment:
    """The task in the folder's stored state. Heads of the model that entailment does not use are its own."""
    sizes = json.loads((folder / "config.json").read_text())
    config = EntailmentConfig(
        momentum=sizes["momentum_of_ve_vqa_nlvr"],
        alpha=0.0 if case == "hard" else sizes["alpha_of_case_a04"],
        alpha_ramp=1.0 if case == "a00" else 0.0,
    )
    model = padded(Albef(albef_config(folder)), keep_padding)
    task = Entailment(model, config)
    own = tuple(f"model.{part}" for part in model.parts_unused_by())
    load_published(task, folder, "ve", PUBLISHED_ENTAILMENT, own, without=("momentum_",) if case == "hard" else ())
    return task


def batch_of(golden: Golden) -> LabelledBatch:
    texts, labels = Texts(golden["in.input_ids"], golden["in.attention_mask"].bool()), golden["in.labels"]
    return LabelledBatch(golden["in.image"], texts, torch.arange(len(labels)), labels=labels)


def step(golden: Golden, case: str, keep_padding: bool = True) -> tuple[Entailment, Losses]:
    task = build(golden.folder, case, keep_padding)
    task.before_step()
    losses = task(batch_of(golden), START)
    losses.total.backward()
    return task, losses


def gradients(task: Entailment) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in task.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in found.items() if gradient is None]
    return to_published(found, PUBLISHED_ENTAILMENT)


# --------------------------------------------------------------------------- comparisons


def losses_are_the_released_ones(golden: Golden) -> None:
    for case in CASES:
        golden.check(f"{case}.loss", step(golden, case)[1].total)


def logits_are_the_released_ones(golden: Golden) -> None:
    task, batch = build(golden.folder), batch_of(golden)
    golden.check("logits", task.logits(batch))
    golden.check("eval.logits", task.eval().logits(batch))
    torch.testing.assert_close(task.predict(batch), golden["eval.logits"].softmax(1))


def fused_rows_are_the_released_ones(golden: Golden) -> None:
    model, batch = build(golden.folder).model, batch_of(golden)
    images, texts, here = model.image_state(batch.pixels), model.text_state(batch.texts), torch.arange(len(batch))
    golden.check("a04.fused", model.fuse(texts, images, here, here, "all").hidden)


def the_momentum_encoder_moves_and_then_answers_as_released(golden: Golden) -> None:
    task, _ = step(golden, "a04")
    golden.check("a04.logits_m", task.momentum_logits(batch_of(golden)))
    moved = {f"momentum_head.{name}": weight for name, weight in task.momentum_head.named_parameters()}
    moved |= {f"momentum_encoder.{name}": weight for name, weight in task.momentum_encoder.named_parameters()}
    published = to_published(moved, PUBLISHED_ENTAILMENT)
    for key in golden.keys("a04.after."):
        golden.check(key, published[key.removeprefix("a04.after.")])


def gradients_are_the_released_ones(golden: Golden) -> None:
    for case in CASES:
        found = gradients(step(golden, case)[0])
        for key in golden.keys(f"{case}.grad."):
            golden.check(key, found[key.removeprefix(f"{case}.grad.")])


COMPARISONS = (
    losses_are_the_released_ones,
    logits_are_the_released_ones,
    fused_rows_are_the_released_ones,
    the_momentum_encoder_moves_and_then_answers_as_released,
    gradients_are_the_released_ones,
)


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
def test_entailment(compare: Any, golden_albef: Path) -> None:
    compare(Golden(golden_albef, "ve"))


def test_every_stored_tensor_of_entailment_is_compared(golden_albef: Path) -> None:
    golden = Golden(golden_albef, "ve")
    for compare in COMPARISONS:
        compare(golden)
    assert set(golden.tensors) - golden.used == set()


@pytest.mark.parametrize("keep_padding", [True, False])
def test_gradient_norms_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    found = gradients(step(Golden(golden_albef, "ve"), "a04", keep_padding)[0])
    stored = json.loads((golden_albef / "ve_gradnorms.json").read_text())["total"]
    assert set(stored) == set(found)
    for name, norm in stored.items():
        check_number(name, found[name].norm().item(), 0.0 if norm is None else norm, 2e-5)
