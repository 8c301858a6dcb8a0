"""Published checkpoints: every tensor is spoken for, and comes back bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.convert import Alias, Drop, Rename, Rule, Stack, from_published, to_published
from diptych.models.albef import PUBLISHED_PRETRAINING, PUBLISHED_RETRIEVAL

RULES: list[Rule] = [
    Rename("head.{p}", "head.{p}"),
    Rename("ring", "queue.ring", transpose=True),
    Rename("pointer", "queue.pointer", squeeze=True),
    Stack(("layer.{i}.key.{p}", "layer.{i}.value.{p}"), "layers.{i}.kv.{p}"),
    Alias("decoder.{p}", of="head.{p}"),
    Drop("position_ids", "counted when needed"),
]


def published() -> dict[str, Tensor]:
    return {
        "head.weight": torch.arange(6.0).reshape(2, 3),
        "decoder.weight": torch.arange(6.0).reshape(2, 3),
        "ring": torch.arange(8.0).reshape(2, 4),
        "pointer": torch.tensor([3]),
        "layer.10.key.bias": torch.tensor([1.0, 2.0]),
        "layer.10.value.bias": torch.tensor([3.0, 4.0]),
        "position_ids": torch.arange(4)[None],
    }


def test_names_shapes_and_the_report() -> None:
    ours, report = from_published(published(), RULES)
    assert set(ours) == {"head.weight", "queue.ring", "queue.pointer", "layers.10.kv.bias"}
    assert torch.equal(ours["queue.ring"], published()["ring"].T)
    assert ours["queue.pointer"].shape == ()
    assert ours["layers.10.kv.bias"].tolist() == [1, 2, 3, 4]
    assert report.loaded["layer.10.value.bias"] == "layers.10.kv.bias"
    assert report.dropped == {"position_ids": "counted when needed", "decoder.weight": "second name of head.weight"}
    assert report.loaded.keys() | report.dropped.keys() == published().keys()


@pytest.mark.parametrize(("kind", "rules"), [("pretrain", PUBLISHED_PRETRAINING), ("retrieval", PUBLISHED_RETRIEVAL)])
def test_published_states_come_back_bit_by_bit(golden_albef: Path, kind: str, rules: list[Rule]) -> None:
    state = load_file(golden_albef / "state" / f"{kind}.safetensors")
    ours, report = from_published(state, rules)
    assert report.loaded.keys() | report.dropped.keys() == state.keys()
    back = to_published(ours, rules)
    gone = {name for name in state if name not in back}
    assert all(name.endswith("position_ids") for name in gone)
    assert back.keys() <= state.keys()
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
    with pytest.raises(ValueError, match=r"queue\.filled has no published name"):
        to_published({"queue.filled": torch.tensor(3)}, RULES)


def test_second_names_are_written_again() -> None:
    back = to_published(from_published(published(), RULES)[0], RULES)
    assert back.keys() == published().keys() - {"position_ids"}
    assert all(torch.equal(tensor, published()[name]) for name, tensor in back.items())
