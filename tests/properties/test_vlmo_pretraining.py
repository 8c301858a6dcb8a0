"""VLMo's third stage: what its branches, negatives, temperatures and experts do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.nn.gather import Processes
from diptych.schema import LanguageStageConfig, Recipe, VisionStageConfig, VlmoPretrainConfig
from diptych.types import Progress
from tests import tiny
from tests.traces import traced

PROGRESS = Progress(step=3, epoch=2.0, seed=5)


def itc(**changes: Any) -> float:
    losses = tiny.vlmo_pretraining(**changes)(tiny.batch(), PROGRESS)
    return losses.terms["itc"][1].mean.item()


def test_the_contrast_is_the_mean_of_its_branches_each_with_its_own_temperature() -> None:
    assert itc() == pytest.approx((itc(itc_branches="main") + itc(itc_branches="vl")) / 2)
    task = tiny.vlmo_pretraining()
    before = task(tiny.batch(), PROGRESS).total.item()
    for scale in (task.model.log_scale, task.model.vl_log_scale):
        scale.data += 0.5
        assert task(tiny.batch(), PROGRESS).total.item() != before
        scale.data -= 0.5


@pytest.mark.parametrize("branches", ["both", "main", "vl"])
def test_negatives_are_drawn_by_the_main_branch_wherever_it_is_there(branches: str) -> None:
    task, batch = tiny.vlmo_pretraining(itc_branches=branches, mlm=0.0), tiny.batch()
    weights = traced(task, batch, PROGRESS)[0].negative_weights
    name = "vl" if branches == "vl" else "main"
    with torch.no_grad():
        image = task.model.embed_image(task.model.image_state(batch.pixels), (name,))[name]
        text = task.model.embed_text(task.model.text_state(batch.texts), (name,))[name]
        logits = image @ text.T / task.model.temperature(name)
    others = ~torch.eye(len(batch), dtype=torch.bool)
    for ours, plain in zip(weights, (logits.T, logits), strict=True):
        torch.testing.assert_close(ours, plain.masked_fill(~others, -torch.inf).softmax(1))


def counted(task: Any, calls: Counter[str], *names: str) -> None:
    """Counts the model's calls from now on."""

    def watching(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            calls["pairs"] += len(args[2]) if name == "fuse" else 0
            return call(*args, **options)

        return watched

    for name in names:
        setattr(task.model, name, watching(name, getattr(task.model, name)))


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ({}, {"embed_image": 1, "fuse": 1, "pairs": 16, "match_logits": 1, "word_logits": 1}),
        ({"mlm": 0.0}, {"embed_image": 1, "fuse": 1, "pairs": 12, "match_logits": 1}),
        ({"itm": 0.0}, {"embed_image": 1, "fuse": 1, "pairs": 4, "word_logits": 1}),
        ({"itc": 0.0, "itm": 0.0}, {"fuse": 1, "pairs": 4, "word_logits": 1}),
        ({"itm": 0.0, "mlm": 0.0}, {"embed_image": 1}),
        ({"fuse_start": 4}, {"embed_image": 1}),
    ],
    ids=str,
)
def test_what_no_loss_asks_for_is_not_computed(left_out: dict[str, Any], expected: dict[str, int]) -> None:
    task, calls = tiny.vlmo_pretraining(**left_out), Counter[str]()
    counted(task, calls, "embed_image", "fuse", "match_logits", "word_logits")
    losses = task(tiny.batch(), PROGRESS)
    assert {name: number for name, number in calls.items() if number} == expected
    assert ("itm_accuracy" in losses.measures) == ("match_logits" in expected)
    assert ("mlm_accuracy" in losses.measures) == ("word_logits" in expected)
    assert ("mi_bound" in losses.measures) == ("embed_image" in expected)


def test_temperatures_stay_within_bounds_unless_there_are_none() -> None:
    for unbounded, expected in ((False, [0.01, 0.2]), (True, [0.001, 2.0])):
        task = tiny.vlmo_pretraining(temperature_bounds=(0.01, 0.2), unbounded_temperature=unbounded)
        task.model.log_scale.data.copy_(-torch.tensor(0.001).log())
        task.model.vl_log_scale.data.copy_(-torch.tensor(2.0).log())
        before = {name: weight.clone() for name, weight in task.state_dict().items()}
        task.before_step()
        found = [task.model.temperature(branch).item() for branch in ("main", "vl")]
        assert found == pytest.approx(expected)
        moved = {name for name, weight in task.state_dict().items() if not torch.equal(weight, before[name])}
        assert moved == (set() if unbounded else {"model.log_scale", "model.vl_log_scale"})


@pytest.mark.parametrize("kept", [False, True])
def test_another_caption_of_the_picture_is_a_negative_only_where_that_is_asked_for(kept: bool) -> None:
    task, batch = tiny.vlmo_pretraining(keep_false_negatives=kept), tiny.batch(ids=(10, 11, 10, 13))
    trace, _ = traced(task, batch, PROGRESS)
    for_texts, for_images = trace.negative_weights
    for weights in (for_texts, for_images):
        assert (weights[0, 2] > 0) == (weights[2, 0] > 0) == kept
        assert not bool(weights.diagonal().any())
        assert bool((weights[1, [0, 2, 3]] > 0).all())
    hard = [logits.image_to_text[0, 2] > -1e8 for logits in trace.similarities.values()]
    assert [bool(one) for one in hard] == [kept] * 2


def adapted(task: Any, stage: Any) -> dict[str, Tensor]:
    """What the task makes of another one's weights, as that stage stored them."""
    stored = {f"model.{name}": weight for name, weight in tiny.vlmo(seed=1).state_dict().items()}
    return task.adapt(stored, Recipe("stage", tiny.VLMO, stage))


@pytest.mark.parametrize(("begins", "source"), [("vision", "vision_ffn"), ("language", "language_ffn")])
def test_fusion_experts_begin_as_copies_after_a_stage_of_one_modality(begins: str, source: str) -> None:
    task = tiny.vlmo_pretraining(fusion_experts=begins)
    found = adapted(task, LanguageStageConfig())
    names = [name for name in found if ".vl_ffn." in name]
    assert {name.split(".")[2] for name in names} == {"2", "3"}
    assert all(torch.equal(found[name], found[name.replace(".vl_ffn.", f".{source}.")]) for name in names)
    untouched = adapted(task, VlmoPretrainConfig())
    assert not any(torch.equal(untouched[n], untouched[n.replace(".vl_ffn.", f".{source}.")]) for n in names)


def test_experts_that_no_stage_has_taught_cannot_be_copied() -> None:
    task = tiny.vlmo_pretraining(fusion_experts="language")
    with pytest.raises(ValueError, match=r"task\.fusion_experts=language needs a start that has learnt texts"):
        task.fresh_from(Recipe("stage", tiny.VLMO, VisionStageConfig()))


def test_a_branch_through_experts_that_are_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"task\.itc_branches=both needs vision-language experts"):
        tiny.vlmo_pretraining(model={"fusion_start": 4})
    tiny.vlmo_pretraining(model={"fusion_start": 4}, itc=0.0)
    with pytest.raises(ValueError, match=r"task\.itc_branches=main, or model\.experts=modality"):
        tiny.vlmo_pretraining(model={"experts": "one"})
    with pytest.raises(ValueError, match=r"task\.fusion_experts=vision starts"):
        tiny.vlmo_pretraining(model={"experts": "one"}, itc_branches="main", fusion_experts="vision")


@pytest.mark.parametrize(("own_first", "start"), [(False, 4), (True, 0)])
def test_drawn_pairs_of_others_are_fetched_once_and_found_behind_the_own(own_first: bool, start: int) -> None:
    """Rank 2 of 3 processes with two pairs each, of which 4 and 5, or the first two, are its own."""
    drawn = torch.tensor([start + 1, 2, 3, 2, start])
    place, others = Processes(2, rank=2, counts=(2, 2, 2), own_first=own_first).locate(drawn, behind=10)
    assert place.tolist() == [1, 10, 11, 10, 0]
    assert others.tolist() == [2, 3]
