"""`init_from` loads everything that a task needs, or stops the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.catalog import MODELS, TASKS
from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.nn.embeddings import resize_positions
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.schema import (
    AlbefPretrainConfig,
    DecoderConfig,
    EntailmentConfig,
    Nlvr2Config,
    Recipe,
    RetrievalConfig,
    SpecialIds,
    TaskConfig,
    TextAssignmentConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)
from diptych.serialize import to_dict
from diptych.task import Task
from diptych.train.start import start_from

WORDS = Tokenizer.train(["a red square", "two blue circles"], 60)
PRETRAINING = AlbefPretrainConfig(queue_size=4)
DECODER = DecoderConfig(layers=2, heads=2, intermediate=16, norm="pre", dropout=0.0)
FRESH: list[tuple[TaskConfig, set[str]]] = [
    (RetrievalConfig(queue_size=4), {"queue"}),
    (EntailmentConfig(), {"head", "momentum_head"}),
    (EntailmentConfig(alpha=0.0), {"head"}),
    (VqaDecoderConfig(DECODER), set()),
    (VqaDecoderConfig(DECODER, alpha=0.0), set()),
    (VqaClosedSetConfig(("yes", "no"), alpha=0.4), {"head", "momentum_head"}),
    (TextAssignmentConfig(), {"head"}),
    (Nlvr2Config(), {"head", "momentum_head"}),
]
"""Each fine-tuning task, with the parts of it that pre-training does not have."""
LARGER = ("fc1.weight", "fc1.bias", "fc2.weight")
"""The tensors of a decoder's layer whose shapes a larger feed-forward changes."""
TWO_PICTURES = (TextAssignmentConfig, Nlvr2Config)


def recipe(task: TaskConfig = PRETRAINING, **changes: object) -> Recipe:
    """Returns a small recipe of a task, with one text layer, two fusion layers, and one width for both encoders."""
    small = {
        "model.vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "model.text": {"width": 16, "layers": 3, "fusion_start": 1, "heads": 2, "intermediate": 16},
        "model.text.vocab_size": WORDS.vocab_size,
        "model.images_per_text": 1 + isinstance(task, TWO_PICTURES),
    }
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return replace(override(albef_tiny(), {**small, **named}), task=task)


def build(seed: int, config: Recipe) -> Task:
    """Builds a task in which no two weights are alike, except those of a head and its momentum copy."""
    torch.manual_seed(seed)
    task = TASKS[type(config.task)](MODELS[type(config.model)](config.model), config.task, SpecialIds(0, 1, 2, 3, 4))
    with torch.no_grad():
        for name, weight in task.named_parameters():
            if name.startswith(("model.", "momentum_encoder.")):
                weight.add_(torch.randn_like(weight))
    return task


def save(folder: Path, config: Recipe, weights: Mapping[str, Tensor], **more: object) -> Path:
    state = store.CheckpointState(weights, {}, {"step": 5, "measure": None, **more}, to_dict(config), WORDS.save)
    store.save_checkpoint(folder / "checkpoints", 5, state)
    return folder


def values(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "run", recipe(), values(build(1, recipe())))


def pretrained() -> dict[str, Tensor]:
    """Returns the weights that `run` holds."""
    return values(build(1, recipe()))


# --------------------------------------------------------------------------- from pre-training


def origin(name: str, doubled: bool) -> str:
    """Returns the pre-trained weight that a weight starts from, by the paper (§5) and the released `loading_maps`."""
    owner, _, part = name.partition(".")
    student = "momentum_encoder" if owner.startswith("momentum_") else "model"
    pieces = part.split(".")
    if owner in ("model", "momentum_encoder"):
        if doubled and part.startswith("text.layers."):
            pieces[2] = "01122"[int(pieces[2])]
        return ".".join([student, *pieces])
    if pieces[0] == "layers":
        return ".".join([student, "text.layers", "12"[int(pieces[1])], *pieces[2:]])
    moved = {"embedding": "text.embedding", "norm": "text.fusion_norm"}
    return ".".join([student, moved.get(pieces[0], pieces[0]), *pieces[1:]])


@pytest.mark.parametrize(("config", "fresh"), FRESH, ids=lambda config: type(config).__name__)
def test_every_task_starts_from_the_pre_trained_weights(run: Path, config: TaskConfig, fresh: set[str]) -> None:
    old, task = pretrained(), build(2, recipe(config))
    before = values(task)
    started = start_from(task, run, WORDS)
    assert started.folder == run / "checkpoints" / "step-00000005"
    assert {name.partition(".")[0] for name in started.fresh} == fresh
    assert not started.copied
    for name, value in task.state_dict().items():
        kept = name.partition(".")[0] in fresh
        expected = before[name] if kept else old[origin(name, isinstance(config, TWO_PICTURES))]
        assert torch.equal(value, expected), name


def test_another_pre_training_takes_over_student_and_momentum_encoder_but_not_the_queue(run: Path) -> None:
    old, new = pretrained(), build(2, recipe(replace(PRETRAINING, queue_size=6)))
    started = start_from(new, run, WORDS)
    taken = {
        name: value for name, value in new.state_dict().items() if name.startswith(("model.", "momentum_encoder."))
    }
    assert taken.keys() == {name for name in old if name.startswith(("model.", "momentum_encoder."))}
    assert all(torch.equal(value, old[name]) for name, value in taken.items())
    assert {name.partition(".")[0] for name in (*started.fresh, *started.dropped)} == {"queue"}


def test_cross_attention_of_a_decoder_is_fresh_where_pictures_are_wider(tmp_path: Path) -> None:
    wide = recipe(model__vision__width=32)
    path = save(tmp_path, wide, values(build(1, wide)))
    task = build(2, replace(wide, task=VqaDecoderConfig(DECODER)))
    started, state = start_from(task, path, WORDS), task.state_dict()
    heads = {f"{owner}.layers.{layer}.cross.kv" for owner in ("head", "momentum_head") for layer in range(2)}
    assert {name.rpartition(".")[0] for name in started.fresh} == heads
    for name in started.fresh:
        if name.startswith("head."):
            assert torch.equal(state[name], state[f"momentum_{name}"])


def test_positions_are_resized_to_the_size_of_the_pictures(run: Path) -> None:
    config = recipe(EntailmentConfig(), model__vision__image_size=32)
    task, old = build(2, config), pretrained()
    started = start_from(task, run, WORDS)
    name = "vision.embedding.positions"
    assert started.resized == (f"model.{name}", f"momentum_encoder.{name}")
    for resized in started.resized:
        assert torch.equal(task.state_dict()[resized], resize_positions(old[resized], 4))


def test_the_report_says_what_became_of_each_part(run: Path) -> None:
    lines = str(start_from(build(2, recipe(EntailmentConfig())), run, WORDS)).splitlines()
    model, student = MODELS[type(recipe().model)](recipe().model), len(pretrained_student())
    parts = {name: len(model.get_submodule(name).state_dict()) for name in ("word_head", "image_proj", "text_proj")}
    assert lines[0].endswith("step-00000005")
    unused = sum(parts.values()) + 2 + 1 + len(model.text.text_norm.state_dict())  # and match_head, temp
    assert lines[1] == f"  loaded: model ({student}), momentum_encoder ({student - unused})"
    assert lines[2] == "  fresh: head (4), momentum_head (4)"
    dropped = dict(part.rstrip(")").split(" (") for part in lines[3].removeprefix("  dropped: ").split(", "))
    assert len(lines) == 4
    momentum_encoder = {f"momentum_encoder.{name}": str(count) for name, count in parts.items()}
    assert dropped == momentum_encoder | {"momentum_encoder.text.text_norm": "2", "queue": "5"}


def test_the_report_names_what_a_published_file_did_not_bring(tmp_path: Path) -> None:
    path = save(tmp_path, recipe(), pretrained(), fresh=["temp", "word_head"])
    lines = str(start_from(build(2, recipe(VqaDecoderConfig(DECODER))), path, WORDS)).splitlines()
    assert lines[-1] == "  random in the checkpoint already: temp, word_head"


def pretrained_student() -> list[str]:
    return [name for name in pretrained() if name.startswith("model.")]


# --------------------------------------------------------------------------- from other tasks


def chained(folder: Path, first: TaskConfig, second: TaskConfig) -> tuple[dict[str, Tensor], Task, Any]:
    """Returns the weights of a task, a task that started from them, and the report."""
    old, task = values(build(1, recipe(first))), build(2, recipe(second))
    return old, task, start_from(task, save(folder, recipe(first), old), WORDS)


def test_a_momentum_encoder_that_is_not_stored_starts_as_the_student(tmp_path: Path) -> None:
    old, task, started = chained(tmp_path, TextAssignmentConfig(), Nlvr2Config())
    state = task.state_dict()
    momentum_encoder = [name for name in state if name.startswith("momentum_encoder.")]
    assert list(started.copied) == momentum_encoder
    assert all(
        torch.equal(state[name], old[name.replace("momentum_encoder.", "model.", 1)]) for name in momentum_encoder
    )
    assert {"head.weight", "head.bias"} <= set(started.dropped)


def test_a_momentum_encoder_that_lacks_a_part_takes_the_students(tmp_path: Path) -> None:
    old, task, started = chained(tmp_path, EntailmentConfig(), RetrievalConfig(queue_size=4))
    state = task.state_dict()
    assert {name.split(".")[1] for name in started.copied} == {"image_proj", "text_proj", "text"}
    assert all(torch.equal(state[name], old[name.replace("momentum_encoder.", "model.", 1)]) for name in started.copied)
    assert torch.equal(state["momentum_encoder.vision.norm.weight"], old["momentum_encoder.vision.norm.weight"])


def test_a_head_comes_from_the_same_task_and_its_momentum_copy_is_a_copy_of_it(tmp_path: Path) -> None:
    old, task, started = chained(tmp_path, EntailmentConfig(alpha=0.0), EntailmentConfig())
    state = task.state_dict()
    heads = [name for name in state if name.startswith(("head.", "momentum_head."))]
    assert not started.fresh
    assert all(torch.equal(state[name], old[name.removeprefix("momentum_")]) for name in heads)


def test_a_decoder_that_is_stored_goes_before_fusion_layers(tmp_path: Path) -> None:
    old, task, _ = chained(tmp_path, VqaDecoderConfig(DECODER), VqaDecoderConfig(DECODER))
    assert all(torch.equal(value, old[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize(("answers", "taken"), [(("yes", "no"), True), (("no", "yes"), False)])
def test_a_classifier_of_other_answers_is_not_taken_over(tmp_path: Path, answers: tuple[str, ...], taken: bool) -> None:
    old, task, _ = chained(tmp_path, VqaClosedSetConfig(("yes", "no")), VqaClosedSetConfig(answers))
    assert torch.equal(task.state_dict()["head.3.weight"], old["head.3.weight"]) is taken


def test_a_head_of_another_task_is_not_taken_over_though_it_fits(tmp_path: Path) -> None:
    """Its first layer fits, and its second does not."""
    old, task, started = chained(tmp_path, EntailmentConfig(), Nlvr2Config())
    assert {name.partition(".")[0] for name in started.fresh} == {"head", "momentum_head"}
    assert not torch.equal(task.state_dict()["head.0.weight"], old["head.0.weight"])


def test_a_decoder_of_another_size_than_the_fusion_layers_starts_where_shapes_agree_and_says_so(run: Path) -> None:
    larger = VqaDecoderConfig(replace(DECODER, intermediate=32))
    started = start_from(build(2, recipe(larger)), run, WORDS)
    resized = {f"{head}.layers.{n}.{name}" for head in ("head", "momentum_head") for n in (0, 1) for name in LARGER}
    assert set(started.fresh) == resized
    assert "fresh: head.layers.0.fc1 (2), head.layers.0.fc2.weight (1)" in str(started)


# --------------------------------------------------------------------------- what stops the run


def test_what_is_not_found_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        start_from(build(2, recipe()), tmp_path / "nowhere", WORDS)


def test_another_size_or_an_absent_part_stops_the_run(run: Path, tmp_path: Path) -> None:
    deeper = recipe(model__vision__depth=2)
    with pytest.raises(ValueError, match=r"is not of this model: missing model\.vision\.blocks\.1\."):
        start_from(build(2, deeper), run, WORDS)
    with pytest.raises(ValueError, match=r"unknown model\.vision\.blocks\.1\."):
        start_from(build(2, recipe()), save(tmp_path / "deep", deeper, values(build(1, deeper))), WORDS)
    with pytest.raises(ValueError, match=r"The stored model has model\.vision\.depth=1 \(here 2\)$"):
        start_from(build(2, deeper), run, WORDS)
    wider = recipe(EntailmentConfig(), model__embed_dim=64)
    with pytest.raises(ValueError, match=r"the model's is \(64, 16\)"):
        start_from(build(2, wider), run, WORDS)


@pytest.mark.parametrize("config", [config for config, _ in FRESH], ids=lambda config: type(config).__name__)
def test_a_student_that_lacks_a_weight_stops_the_run(tmp_path: Path, config: TaskConfig) -> None:
    weights = pretrained()
    del weights["model.vision.norm.weight"]
    with pytest.raises(ValueError, match=r"missing model\.vision\.norm\.weight"):
        start_from(build(2, recipe(config)), save(tmp_path, recipe(), weights), WORDS)


def test_another_tokenizer_stops_the_run_although_every_shape_fits(run: Path) -> None:
    swapped = Tokenizer((*WORDS.vocabulary[:-2], WORDS.vocabulary[-1], WORDS.vocabulary[-2]))
    with pytest.raises(ValueError, match=r"was trained with another tokenizer: set tokenizer\.vocabulary="):
        start_from(build(2, recipe()), run, swapped)
