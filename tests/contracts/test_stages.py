"""VLMo's stages one after the other: what the next one takes of the one before, and the runs of the first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.apps.report.run import report
from diptych.catalog import build_task, find_recipe
from diptych.checkpoints import store
from diptych.checkpoints.store import CheckpointError
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.predict import load
from diptych.recipes.override import override
from diptych.run import evaluate, train
from diptych.schema import LanguageStageConfig, Recipe, VisionStageConfig, VlmoPretrainConfig
from diptych.serialize import to_dict
from diptych.task import Task
from diptych.train.start import borrow, start_from

SMALL = {
    "model.width": 16,
    "model.depth": 3,
    "model.heads": 2,
    "model.fusion_start": 2,
    "model.max_positions": 12,
    "model.positions": "relative",
}
NO_WORDS = Tokenizer(SPECIAL)
WORDS = Tokenizer.train(["a red square", "two blue circles"], 60)
OTHER_WORDS = Tokenizer.train(["a green square", "six pink cows"], 60)
TEXT_SIDE = ("text", "word_head", "language_ffn")
HEADS = ("pooler", "match_head", "image_proj", "text_proj", "vl_image_proj", "vl_text_proj", "log_scale")


def recipe(kind: type, **changes: Any) -> Recipe:
    task: Any = VisionStageConfig(visual=find_recipe("visual_tokenizer_tiny").model, min_block=2)  # type: ignore[arg-type]
    task = replace(task if kind is VisionStageConfig else kind(), **changes)
    return replace(override(find_recipe("vlmo_tiny"), SMALL), task=task, init_from=None)


def build(seed: int, config: Recipe, words: Tokenizer) -> Task:
    """A task in which no two weights are alike."""
    task = build_task(config, words)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in task.parameters():
            weight.add_(torch.randn_like(weight))
    return task


def save(folder: Path, config: Recipe, task: Task, words: Tokenizer) -> Path:
    state = store.CheckpointState(task.state_dict(), {}, {"step": 5, "measure": None}, to_dict(config), words.save)
    store.save_checkpoint(folder / "checkpoints", 5, state)
    return folder


def values(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items() if name.startswith("model.")}


def kept(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in after if torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    """The first two stages, each with what it stored."""
    place, found = tmp_path_factory.mktemp("stages"), {}
    for name, kind, words in (("vision", VisionStageConfig, NO_WORDS), ("language", LanguageStageConfig, WORDS)):
        config = recipe(kind)
        task = build(1, config, words)
        found[name] = save(place / name, config, task, words), values(task)
    return found


def _is(name: str, parts: tuple[str, ...]) -> bool:
    return any(f".{part}." in f"{name}." for part in parts)


@pytest.mark.parametrize("kind", [LanguageStageConfig, VlmoPretrainConfig])
def test_after_pictures_alone_the_text_side_begins_afresh(stages: Any, kind: type) -> None:
    folder, old = stages["vision"]
    task = build(2, recipe(kind), WORDS)
    before = values(task)
    start_from(task, folder, WORDS)
    after = values(task)
    fresh = {name for name in after if _is(name, (*TEXT_SIDE, *HEADS, "vl_log_scale", "vl_ffn"))}
    assert kept(before, after) == fresh
    assert all(torch.equal(after[name], old[name]) for name in set(after) - fresh)
    assert {"model.types.weight", "model.positions.table", "model.image.cls_token"} <= set(after) - fresh


def test_after_texts_alone_only_fusion_begins_afresh(stages: Any) -> None:
    folder, old = stages["language"]
    task = build(2, recipe(VlmoPretrainConfig), WORDS)
    before = values(task)
    started = start_from(task, folder, WORDS)
    after = values(task)
    fresh = {name for name in after if _is(name, (*HEADS, "vl_log_scale", "vl_ffn"))}
    assert set(started.fresh) == kept(before, after) == fresh
    assert all(torch.equal(after[name], old[name]) for name in set(after) - fresh)


@pytest.mark.parametrize(
    ("stage", "choice", "source"),
    [
        ("vision", "vision", "vision_ffn"),
        ("language", "vision", "vision_ffn"),
        ("language", "language", "language_ffn"),
    ],
)
def test_fusion_experts_can_begin_as_copies(stages: Any, stage: str, choice: str, source: str) -> None:
    folder, old = stages[stage]
    task = build(2, recipe(VlmoPretrainConfig, fusion_experts=choice), WORDS)
    started = start_from(task, folder, WORDS)
    after = values(task)
    copied = {name for name in after if ".vl_ffn." in name}
    assert set(started.copied) == copied
    assert "copied from the student: model.blocks.2.vl_ffn (6)" in str(started)
    for name in copied:
        assert torch.equal(after[name], old[name.replace(".vl_ffn.", f".{source}.")]), name


def test_stages_of_a_standard_transformer_hand_on_its_one_feed_forward(tmp_path: Path) -> None:
    """And what text tokens have of their own in attention is the text side's."""
    standard = {"model.experts": "one", "model.attention": "separate"}
    begins_afresh = {
        (VisionStageConfig, LanguageStageConfig): (*TEXT_SIDE, "text_attention", *HEADS, "vl_log_scale"),
        (LanguageStageConfig, VlmoPretrainConfig): (*HEADS, "vl_log_scale"),
    }
    for (before, after), parts in begins_afresh.items():
        told = override(recipe(before), standard)
        task = build(1, told, NO_WORDS if before is VisionStageConfig else WORDS)
        old, folder = values(task), save(tmp_path / before.__name__, told, task, WORDS)
        one_branch = {"itc_branches": "main"} if after is VlmoPretrainConfig else {}
        task = build(2, override(recipe(after, **one_branch), standard), WORDS)
        fresh = values(task)
        start_from(task, folder, WORDS)
        new = values(task)
        assert kept(fresh, new) == {name for name in new if _is(name, parts)}
        assert torch.equal(new["model.blocks.2.ffn.fc1.weight"], old["model.blocks.2.ffn.fc1.weight"])


def test_a_model_does_not_start_from_one_of_other_experts(stages: Any) -> None:
    config = override(recipe(VlmoPretrainConfig, itc_branches="main"), {"model.experts": "one"})
    with pytest.raises(ValueError, match=r"model\.experts=one does not start from .* set model\.experts=modality"):
        start_from(build(2, config, WORDS), stages["language"][0], WORDS)


def test_experts_that_no_stage_has_taught_cannot_be_copied(stages: Any) -> None:
    task = build(2, recipe(VlmoPretrainConfig, fusion_experts="language"), WORDS)
    with pytest.raises(ValueError, match="fusion_experts=language needs a start that has learnt texts"):
        start_from(task, stages["vision"][0], WORDS)


def test_another_pre_training_on_pairs_brings_its_fusion_experts(tmp_path: Path) -> None:
    config = recipe(VlmoPretrainConfig, fusion_experts="vision")
    first = build(1, config, WORDS)
    task = build(2, config, WORDS)
    started = start_from(task, save(tmp_path, config, first, WORDS), WORDS)
    assert not started.copied
    assert not started.fresh
    assert kept(values(first), values(task)) == set(values(task))


def test_words_may_be_others_only_where_none_were_learnt(stages: Any) -> None:
    task = build(2, recipe(VlmoPretrainConfig), OTHER_WORDS)
    start_from(task, stages["vision"][0], OTHER_WORDS)
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        start_from(task, stages["language"][0], OTHER_WORDS)


def test_what_a_stage_has_taught_must_fit(stages: Any) -> None:
    deeper = override(recipe(VlmoPretrainConfig), {"model.depth": 4})
    with pytest.raises(CheckpointError, match=r"missing model\.blocks\.3"):
        start_from(build(2, deeper, WORDS), stages["vision"][0], WORDS)


def test_a_first_stage_goes_on_with_its_own_head(stages: Any) -> None:
    folder, _ = stages["vision"]
    task = build(2, recipe(VisionStageConfig), NO_WORDS)
    started = start_from(task, folder, NO_WORDS)
    assert {"head.mask_token", "head.scores.weight"} <= set(started.loaded)
    assert not [name for name in started.fresh if name.startswith("tokenizer.")], "what was borrowed is not fresh"


def test_a_tokenizer_that_does_not_fit_is_not_borrowed(tmp_path: Path) -> None:
    smaller = override(find_recipe("visual_tokenizer_tiny"), {"model.codes": 7})
    folder = save(tmp_path, smaller, build_task(smaller, NO_WORDS), NO_WORDS)
    task = build(2, recipe(VisionStageConfig, tokenizer=str(folder)), NO_WORDS)
    with pytest.raises(CheckpointError, match=r"codebook\.weight is \(7, 64\)"):
        borrow(task)


# --------------------------------------------------------------------------- runs

RUN: dict[str, Any] = {
    "data.scenes.sprites": "shapes",
    "data.scenes.count": 48,
    "data.scenes.evaluation_count": 24,
    "data.workers": 0,
    "evaluation.bootstrap": 20,
    "run.steps": 3,
    "run.batch_size": 8,
    "run.log_every": 1,
    "run.validate_every": 3,
    "run.checkpoint_every": 2,
    "run.keep_checkpoints": 5,
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A visual tokenizer and a first stage, hardly trained."""
    place = tmp_path_factory.mktemp("runs")
    tiny = {"model.width": 16, "model.codes": 16, "model.code_width": 8, "model.residual_blocks": 1}
    train(override(find_recipe("visual_tokenizer_tiny"), {**RUN, **tiny}), place / "tokenizer")
    changes = {**RUN, **SMALL, "task.tokenizer": str(place / "tokenizer")}
    train(override(find_recipe("vlmo_tiny_vision"), changes), place / "vision")
    return place


def test_the_tokenizers_measures(runs: Path) -> None:
    found = evaluate(runs / "tokenizer").to_json()
    assert found["codes"] == 16
    assert 1 <= found["code_perplexity"] <= found["codes_used"] <= 16
    assert found["reconstruction_error"] > 0
    assert found["accuracy"] < 100 > found["references.one_colour"] > 0
    logged = [json.loads(line) for line in (runs / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy", "reconstruction_error", "code_perplexity"} <= set(logged[-1]["validation"])
    page = report(runs / "tokenizer").read_text()
    assert page.count("given back</figcaption>") >= 12
    assert "Perplexity of the codes" in page


def test_the_stages_measures_need_no_other_folder(runs: Path, tmp_path: Path) -> None:
    before = evaluate(runs / "vision").to_json()
    assert 0 <= before["accuracy"] <= 100
    assert 100 / 16 <= before["references.commonest"] <= 100
    moved = tmp_path / "alone"
    shutil.copytree(runs / "vision", moved)
    (runs / "tokenizer").rename(tmp_path / "gone")
    try:
        assert evaluate(moved).to_json() == before
        assert "guessed</figcaption>" in report(moved).read_text()
        shutil.rmtree(moved / "checkpoints" / "step-00000003")
        stored = json.loads((moved / "recipe.json").read_text())
        from diptych.train.state import stored_recipe

        assert stored["task"]["visual"]["codes"] == 16
        train(stored_recipe(moved), moved, resume=True)
    finally:
        (tmp_path / "gone").rename(runs / "tokenizer")
    whole, again = (store.load_from(folder).weights() for folder in (runs / "vision", moved))
    assert set(whole) == set(again)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_tokenizer_that_was_trained_is_the_one_that_is_used(runs: Path) -> None:
    trained = store.load_from(runs / "tokenizer").weights()
    stage = store.load_from(runs / "vision").weights()
    assert all(torch.equal(stage[name.replace("model.", "tokenizer.", 1)], value) for name, value in trained.items())


def test_pairs_follow_pictures(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By the commands' own way, with words learnt from the captions."""
    changes = {**RUN, **SMALL, "model.max_positions": 40, "task.fuse_start": 0, "init_from": str(runs / "vision")}
    train(override(find_recipe("vlmo_tiny"), changes), tmp_path / "pairs")
    printed = capsys.readouterr().out
    assert "resized: model.positions (1)" in printed
    assert "model.text (" in printed[printed.index("fresh:") : printed.index("dropped:")]
    assert Tokenizer.load(store.load_from(tmp_path / "pairs").tokenizer).vocab_size > len(SPECIAL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.tokenizer": ""}, "task.tokenizer names no visual tokenizer: train one"),
        ({"task.tokenizer": "RUNS/vision"}, "is a run of vlmo_tiny_vision, which is no visual tokenizer"),
        ({"task.tokenizer": "RUNS/tokenizer", "data.normalise": "vlmo"}, "data.normalise=albef: set it so here too"),
        ({"task.tokenizer": "RUNS/nowhere"}, "does not exist"),
    ],
)
def test_a_stage_without_a_fitting_tokenizer_does_not_start(
    runs: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    named = {name: value.replace("RUNS", str(runs)) for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        train(override(find_recipe("vlmo_tiny_vision"), {**RUN, **SMALL, **named}), tmp_path / "run")


def test_a_visual_tokenizer_is_no_predictor(runs: Path) -> None:
    with pytest.raises(ValueError, match="holds a visual tokenizer, which knows no texts"):
        load(runs / "tokenizer")
