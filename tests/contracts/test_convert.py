"""Every tensor of a published checkpoint is named by a rule, and comes back bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.convert import (
    Absent,
    Alias,
    Count,
    Drop,
    Rename,
    Rule,
    Stack,
    absences,
    counts,
    from_published,
    to_published,
)
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING, PUBLISHED_RETRIEVAL

RULES: list[Rule] = [
    Rename("head.{p}", "head.{p}"),
    Rename("ring", "queue.ring", transpose=True),
    Rename("pointer", "queue.pointer", squeeze=True),
    Stack(("layer.{i}.key.{p}", "layer.{i}.value.{p}"), "layers.{i}.kv.{p}"),
    Alias("decoder.{p}", of="head.{p}"),
    Rename("positions", "positions"),
    Count("position_ids", of="positions"),
    Drop("pooler.{p}", "not used"),
    Absent("queue.filled", "counted"),
    Absent("words", "predicts none"),
]


def published() -> dict[str, Tensor]:
    return {
        "head.weight": torch.arange(6.0).reshape(2, 3),
        "decoder.weight": torch.arange(6.0).reshape(2, 3),
        "ring": torch.arange(8.0).reshape(2, 4),
        "pointer": torch.tensor([3]),
        "layer.10.key.bias": torch.tensor([1.0, 2.0]),
        "layer.10.value.bias": torch.tensor([3.0, 4.0]),
        "positions": torch.ones(4, 2),
        "position_ids": torch.arange(4)[None],
        "pooler.bias": torch.zeros(2),
    }


def test_names_shapes_and_the_report() -> None:
    ours, report = from_published(published(), RULES)
    assert set(ours) == {"head.weight", "queue.ring", "queue.pointer", "layers.10.kv.bias", "positions"}
    assert torch.equal(ours["queue.ring"], published()["ring"].T)
    assert ours["queue.pointer"].shape == ()
    assert ours["layers.10.kv.bias"].tolist() == [1, 2, 3, 4]
    assert report.loaded["layer.10.value.bias"] == "layers.10.kv.bias"
    assert report.dropped == {
        "position_ids": "consecutive numbers, counted when needed",
        "decoder.weight": "second name of head.weight",
        "pooler.bias": "not used",
    }
    assert report.loaded.keys() | report.dropped.keys() == published().keys()


@pytest.mark.parametrize(("kind", "rules"), [("pretrain", PUBLISHED_PRETRAINING), ("retrieval", PUBLISHED_RETRIEVAL)])
def test_published_states_come_back_bit_by_bit(golden_albef: Path, kind: str, rules: list[Rule]) -> None:
    state = load_file(golden_albef / "state" / f"{kind}.safetensors")
    ours, report = from_published(state, rules)
    assert report.loaded.keys() | report.dropped.keys() == state.keys()
    back = to_published(ours, rules)
    back |= counts(back, rules)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name
    again, _ = from_published(back, rules)
    assert again.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.items())


def test_unknown_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 tensors of the checkpoint are not known: extra\.bias, other"):
        from_published(published() | {"other": torch.ones(1), "extra.bias": torch.ones(1)}, RULES)


def test_a_placeholder_stands_for_one_part_of_a_name() -> None:
    with pytest.raises(ValueError, match=r"not known: head\.inner\.weight"):
        from_published({"head.inner.weight": torch.ones(1)}, RULES)


@pytest.mark.parametrize("absent", ["layer.10.key.bias", "layer.10.value.bias"])
def test_a_stack_with_a_part_missing_is_refused(absent: str) -> None:
    state = published()
    del state[absent]
    with pytest.raises(ValueError, match=r"lacks a part of layers\.10\.kv\.bias"):
        from_published(state, RULES)


def test_a_second_name_must_hold_the_same_numbers() -> None:
    with pytest.raises(ValueError, match=r"decoder\.weight should hold the same numbers"):
        from_published(published() | {"decoder.weight": torch.zeros(2, 3)}, RULES)
    state = published()
    del state["head.weight"]
    with pytest.raises(ValueError, match=r"decoder\.weight should hold the same numbers"):
        from_published(state, RULES)


def test_a_tensor_of_ours_without_a_published_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queue\.ids has no published name"):
        to_published({"queue.ids": torch.tensor(3)}, RULES)


def test_second_names_and_counts_are_written_again() -> None:
    back = to_published(from_published(published(), RULES)[0], RULES)
    back |= counts(back, RULES)
    assert back.keys() == published().keys() - {"pooler.bias"}
    assert all(torch.equal(tensor, published()[name]) for name, tensor in back.items())


def test_positions_that_do_not_count_are_refused() -> None:
    with pytest.raises(ValueError, match="position_ids should count"):
        from_published(published() | {"position_ids": torch.tensor([[0, 2, 1, 3]])}, RULES)


def test_what_a_file_may_lack_is_said_with_its_reason_and_not_exported() -> None:
    ours, _ = from_published(published(), RULES)
    wanted = [*ours, "queue.filled", "words.dense.bias"]
    assert absences(wanted, ours, RULES) == {"queue.filled": "counted", "words.dense.bias": "predicts none"}
    assert to_published(ours | {"queue.filled": torch.tensor(3)}, RULES).keys() == to_published(ours, RULES).keys()


def test_what_a_file_must_not_lack_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"lacks 2 tensors that it should have: queue\.filled_up, wordsmith"):
        absences(["queue.filled_up", "wordsmith", "queue.filled"], {}, RULES)


def test_without_data_names_and_shapes_are_still_checked() -> None:
    shapes = {name: tensor.to("meta") for name, tensor in published().items()}
    ours, report = from_published(shapes, RULES)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in from_published(published(), RULES)[0].items()
    }
    assert report == from_published(published(), RULES)[1]
    with pytest.raises(ValueError, match=r"decoder\.weight should hold the same numbers"):
        from_published(shapes | {"decoder.weight": torch.empty(3, 3, device="meta")}, RULES)
