"""What earlier versions stored under other names of parameters is read under the current ones."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.checkpoints import store
from diptych.checkpoints.renames import current_name, former_name
from diptych.predict import Predictor
from diptych.predict.identity import ModelIdentity
from diptych.schema import Recipe, VlmoPretrainConfig
from diptych.train.freeze import freeze
from diptych.train.optim import load_optimizer_state, optimizer_state
from tests import tiny

FORMER = {
    "language_ffn": "experts.text",
    "vision_ffn": "experts.image",
    "vl_ffn": "experts.fusion",
    "ffn": "experts.all",
}
MODELS: list[dict[str, Any]] = [{"system": "vlmo"}, {"system": "vlmo", "experts": "one", "attention": "separate"}]


def as_before(name: str) -> str:
    """The name of version 0.1, by a rule of its own."""
    name = re.sub(r"^momentum_encoder\b", "teacher", re.sub(r"^momentum_head\b", "teacher_head", name))
    return re.sub(r"(blocks\.\d+)\.(\w*ffn)\b", lambda match: f"{match[1]}.{FORMER[match[2]]}", name)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {as_before(name): tensor for name, tensor in tensors.items()}


def trained(model: dict[str, Any]) -> tuple[nn.Module, dict[str, nn.Parameter], torch.optim.Optimizer]:
    """A task with a momentum encoder, and an optimiser with a state."""
    task = tiny.entailment(model=model)
    parameters = {name: value for name, value in task.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.01)
    for seed, value in enumerate(parameters.values()):
        value.grad = tiny.uniform(*value.shape, seed=seed)
    optimizer.step()
    return task, parameters, optimizer


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_each_name_has_one_former_name_and_comes_back_from_it(model: dict[str, Any]) -> None:
    names = list(tiny.entailment(model=model).state_dict())
    assert [former_name(name) for name in names] == [as_before(name) for name in names]
    assert [current_name(as_before(name)) for name in names] == [current_name(name) for name in names] == names
    assert sum(name != as_before(name) for name in names) > 20
    assert len({as_before(name) for name in names}) == len(names)
    assert current_name("blocks.*.experts.fusion") == "blocks.*.vl_ffn"  # parts with random weights, as stored
    assert not [name for name in tiny.albef().state_dict() if former_name(name) != name]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_checkpoint_of_former_names_restores_task_momentum_encoder_and_optimiser(
    model: dict[str, Any], tmp_path: Path
) -> None:
    task, parameters, optimizer = trained(model)
    weights, memory = task.state_dict(), optimizer_state(parameters, optimizer)
    assert any(name.startswith("momentum_encoder.blocks.") for name in weights)
    content = store.CheckpointState(
        renamed(weights),
        renamed(memory),
        {"step": 1, "measure": None, "fresh": ["pooler", "blocks.*.experts.fusion"]},
        {},
    )
    checkpoint = store.load(store.save_checkpoint(tmp_path, 1, content))
    assert checkpoint.state["fresh"] == ["pooler", "blocks.*.vl_ffn"]
    assert {name for name in checkpoint.weights() if ".experts." in name} == set()

    again, others, fresh = trained(model)
    with torch.no_grad():
        for value in again.state_dict().values():
            value.zero_()
    store.load_into(again, checkpoint.weights(), checkpoint.folder)
    load_optimizer_state(others, fresh, checkpoint.optimizer())
    restored = again.state_dict() | optimizer_state(others, fresh)
    for name, value in (weights | memory).items():
        assert torch.equal(restored[name], value), name
    stored = checkpoint.stored("weights")
    for name in stored.names:
        assert stored.shape(name) == tuple(weights[name].shape)
        if weights[name].ndim and len(weights[name]) > 1:
            assert torch.equal(stored.rows(name, slice(1, 2)), weights[name][1:2])


def test_frozen_patterns_of_former_names_fit_what_they_fitted() -> None:
    for pattern in ("model.blocks.*.experts.text.*", "model.blocks.*.language_ffn.*"):
        task = tiny.vlmo_pretraining()
        freeze(task, [pattern])
        frozen = {name for name, value in task.named_parameters() if not value.requires_grad}
        assert {name for name, _ in task.named_parameters() if "language_ffn" in name} <= frozen
        assert not {name for name in frozen if "vision_ffn" in name and ".blocks.0." in name}
    with pytest.raises(ValueError, match="fits no parameter"):
        freeze(tiny.vlmo_pretraining(), ["model.blocks.*.experts.none.*"])


def test_an_index_of_a_model_of_former_names_is_that_model_s() -> None:
    """A model is told by its weights with their names: here those of the version that made the index."""

    def digest(weights: dict[str, Tensor]) -> str:
        predictor = object.__new__(Predictor)
        held = {
            "recipe": Recipe("x", tiny.VLMO, VlmoPretrainConfig()),
            "transform": SimpleNamespace(normalise="albef"),
            "tokenizer": SimpleNamespace(vocabulary=["a"], separator=True, lowercase=True),
            "model": SimpleNamespace(state_dict=lambda: weights),
            "origin": Path("/run"),
        }
        for name, value in held.items():
            object.__setattr__(predictor, name, value)
        return ModelIdentity.of(predictor).digest

    weights = dict(tiny.vlmo().state_dict())
    assert digest(weights) == digest(renamed(weights))
    assert digest(weights) != digest(dict(tiny.vlmo(seed=1).state_dict()))


def test_pre_training_starts_from_a_stage_of_former_names(tmp_path: Path) -> None:
    task = tiny.vlmo_pretraining()
    weights = {f"model.{name}": value for name, value in tiny.vlmo(seed=3).state_dict().items()}
    content = store.CheckpointState(renamed(weights), {}, {"step": 1, "measure": None}, {})
    stored = store.load(store.save_checkpoint(tmp_path, 1, content)).weights()
    adapted = task.adapt(stored, Recipe("x", tiny.VLMO, VlmoPretrainConfig()))
    store.load_into(task, adapted, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())
