"""VLMo's language stage: what is hidden, what is computed, what trains, what is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diptych.apps.report.run import report
from diptych.catalog import find_recipe
from diptych.checkpoints import store
from diptych.losses.masked_lm import IGNORED, WordDraws, WordMasking
from diptych.run import EvaluatedTask, evaluate, open_task, train
from diptych.schema import DataConfig, LanguageStageConfig, OptimConfig, Recipe, Released, ScenesConfig
from diptych.tasks.masked_language_modelling import LanguageStage
from diptych.train.freeze import freeze
from diptych.train.log import CHANCE
from diptych.train.loop import forward_backward
from diptych.train.optim import build_optimizer
from diptych.types import Exponential, Progress, TextBatch, Texts
from tests import tiny
from tests.tiny import POSITIONS, SPECIAL, VOCABULARY, language_stage, padded, texts

PROGRESS = Progress(3, 0.5, seed=1)
MODELS = [{}, {"positions": "absolute", "layer_scale": None}, {"experts": "one", "attention": "separate"}]
CONTINUING = set(SPECIAL.continuing)


def masking(width: int = POSITIONS, **changes: Any) -> WordMasking:
    config, released = tiny.configured(LanguageStageConfig(), changes)
    return WordMasking(config, SPECIAL, VOCABULARY, width, released.masking_of_padding)


def words_of(ids: list[int]) -> list[list[int]]:
    """Places of the ordinary words, each with all its pieces."""
    words: list[list[int]] = []
    for place, number in enumerate(ids):
        if number not in (SPECIAL.pad, SPECIAL.unk, SPECIAL.cls, SPECIAL.sep, SPECIAL.mask):
            if number in CONTINUING and words and words[-1][-1] == place - 1:
                words[-1].append(place)
            else:
                words.append([place])
    return words


rows = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=POSITIONS), min_size=1, max_size=5)


def as_texts(some: list[list[int]]) -> Texts:
    width = max(map(len, some))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in some])
    return Texts(ids, torch.arange(width) < torch.tensor([len(row) for row in some])[:, None])


@given(rows, st.floats(0.01, 0.9), st.integers(0, 9))
def test_whole_words_are_hidden_as_many_as_fit_into_the_share(some: list[list[int]], share: float, step: int) -> None:
    texts, masks = as_texts(some), masking(mask_probability=share)
    ids, labels = masks(texts, masks.draw(len(texts), Progress(step, 0.0)))
    for row, given_ids in enumerate(some):
        hidden = {place for place, label in enumerate(labels[row].tolist()) if label != IGNORED}
        words = words_of(given_ids)
        tokens = sum(map(len, words))
        target = max(1, round(share * tokens))
        taken = [word for word in words if set(word) & hidden]
        assert all(set(word) <= hidden for word in taken)
        assert hidden == {place for word in taken for place in word}
        assert bool(taken) == bool(words)
        assert len(hidden) <= target or len(taken) == 1
        left = [word for word in words if word not in taken]
        assert all(len(hidden) + len(word) > target for word in left)
        assert all(labels[row, place] == given_ids[place] for place in hidden)
        kept = [place for place in range(len(given_ids)) if place not in hidden]
        assert all(ids[row, place] == given_ids[place] for place in kept)


@pytest.mark.parametrize("mode", ["repaired", "released"])
@pytest.mark.parametrize("whole_words", [True, False])
@given(some=rows, wider=st.integers(0, POSITIONS + 5))
def test_neither_padding_nor_batch_mates_change_what_is_hidden(
    some: list[list[int]], wider: int, mode: str, whole_words: bool
) -> None:
    texts = as_texts(some)
    masks = masking(masking_of_padding=mode == "released", whole_words=whole_words, mask_probability=0.4)
    ids, labels = masks(texts, masks.draw(len(texts), PROGRESS, first_row=7))
    wide = padded(texts, max(wider, texts.input_ids.shape[1]))
    for row, given_ids in enumerate(some):
        alone = Texts(wide.input_ids[row : row + 1], wide.attention_mask[row : row + 1])
        found = masks(alone, masks.draw(1, PROGRESS, first_row=7 + row))
        for one, other in zip((ids, labels), found, strict=True):
            assert one[row, : len(given_ids)].tolist() == other[0, : len(given_ids)].tolist()
        assert found[1][0, len(given_ids) :].eq(IGNORED).all()


def test_draws_are_a_function_of_the_place_in_the_training() -> None:
    draw = masking().draw
    assert torch.equal(draw(4, PROGRESS, 2).order, draw(6, PROGRESS).order[2:])
    others = [replace(PROGRESS, step=4), replace(PROGRESS, seed=2)]
    assert not any(torch.equal(draw(4, PROGRESS).order, draw(4, other).order) for other in others)


def test_hidden_words_become_mask_random_or_stay_as_often_as_published() -> None:
    draws = WordDraws.make(range(2000), 20, 1000, seed=5)
    random = ~draws.replace & draws.randomise
    assert draws.replace.double().mean() == pytest.approx(0.8, abs=0.01)
    assert random.double().mean() == pytest.approx(0.1, abs=0.01)
    assert draws.order.double().mean() == pytest.approx(0.5, abs=0.01)
    assert draws.words.unique().numel() == 1000


def test_long_words_of_short_texts_are_hidden_too() -> None:
    """A word longer than the share is left out as released, so that no short text ever shows one hidden."""
    long = as_texts([[SPECIAL.cls, 5, 30, 31, 32]])
    for mode, hides in (("repaired", True), ("released", False)):
        masks = masking(masking_of_padding=mode == "released", width=5)
        found = [masks(long, masks.draw(1, Progress(step, 0.0)))[1] for step in range(20)]
        assert any(bool((labels != IGNORED).any()) for labels in found) is hides


# --------------------------------------------------------------------------- the stage


@pytest.mark.parametrize("model", MODELS)
def test_padding_and_batch_mates_change_neither_scores_nor_loss(model: dict[str, Any]) -> None:
    task = language_stage(model=model).eval()
    some = texts((5, 9, 3, 7))
    whole = task.mask(some, PROGRESS)
    scores = task.word_logits(whole)
    loss = task(TextBatch(some), PROGRESS).total
    assert torch.allclose(task(TextBatch(padded(some, POSITIONS)), PROGRESS).total, loss, atol=1e-6)
    for row in range(len(some)):
        alone = Texts(some.input_ids[row : row + 1], some.attention_mask[row : row + 1])
        mine = task.mask(alone, PROGRESS, first_row=row)
        assert torch.allclose(task.word_logits(mine), scores[whole.rows.pair == row], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("decay", ["repaired", "albef", "vlmo"])
def test_what_is_frozen_does_not_move_and_all_else_does(model: dict[str, Any], decay: Any) -> None:
    task = language_stage(model=model)
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    optimizer = build_optimizer(task, OptimConfig(lr=1e-2, weight_decay=0.5), released=Released(decay=decay))
    for step in range(3):
        task(TextBatch(texts((5, 9, 3, 7), seed=step)), Progress(step, 0.0)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    still = {name for name in before if name not in moved}
    assert moved == {name for name, value in task.named_parameters() if value.requires_grad}
    assert any(".attention." in name for name in still)
    assert not any(part in name for name in moved for part in (".attention.", "vision_ffn", "vl_ffn", "norm1"))
    assert any(".text_attention." in name for name in moved) == (model.get("attention") == "separate")
    assert {"model.text.words.weight", "model.norm.weight", "model.word_head.dense.weight"} <= moved
    expert = "ffn" if model.get("experts") == "one" else "language_ffn"
    assert {f"model.blocks.{number}.{expert}.fc1.weight" for number in range(4)} <= moved


def test_every_trained_parameter_gets_a_gradient() -> None:
    for model in MODELS:
        task = language_stage(model=model)
        task(TextBatch(texts((5, 9, 3, 7))), PROGRESS).total.backward()
        assert all((value.grad is not None) == value.requires_grad for value in task.parameters())


def test_frozen_attention_costs_no_gradients_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: of the products in a backward pass, those for the frozen matrices are gone."""

    def products(task: LanguageStage) -> int:
        loss = task(TextBatch(texts((5, 9, 3, 7))), PROGRESS).total
        with torch.profiler.profile() as profile:
            loss.backward()
        return sum(one.count for one in profile.key_averages() if one.key in ("aten::mm", "aten::addmm"))

    frozen, free = language_stage(), language_stage()
    for block in free.model.blocks:
        block.attention.requires_grad_(True)
    matrices = 2 * free.model.config.depth
    assert products(free) - products(frozen) >= matrices


def test_measures_are_of_all_hidden_words_together() -> None:
    task = language_stage().eval()
    found = [task(TextBatch(texts((5, 9, 3, 7), seed=seed)), Progress(seed, 0.0)) for seed in range(2)]
    terms = [losses.measures["perplexity"] for losses in found]
    assert all(isinstance(term, Exponential) for term in terms)
    whole = terms[0].plus(terms[1])
    losses = [losses.terms["mlm"][1] for losses in found]
    mean = (losses[0].sum + losses[1].sum) / (losses[0].count + losses[1].count)
    assert torch.allclose(whole.mean, mean.exp())
    assert not torch.allclose(whole.mean, (terms[0].mean + terms[1].mean) / 2)


def test_a_batch_without_a_word_to_hide_has_no_loss_and_breaks_nothing() -> None:
    task = language_stage()
    nothing = Texts(torch.tensor([[SPECIAL.cls, SPECIAL.unk]]), torch.ones(1, 2, dtype=torch.bool))
    losses = task(TextBatch(nothing), PROGRESS)
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in task.parameters())


def test_pairs_are_not_texts_alone() -> None:
    with pytest.raises(ValueError, match="texts without pictures"):
        language_stage()(tiny.batch(), PROGRESS)


def test_texts_longer_than_the_positions_are_an_error() -> None:
    with pytest.raises(ValueError, match=str(POSITIONS)):
        language_stage()(TextBatch(texts((POSITIONS + 1,))), PROGRESS)


# --------------------------------------------------------------------------- freeze


TASKS: dict[str, Callable[[], nn.Module]] = {
    "language": language_stage, "pretraining": tiny.pretraining, "vlmo": tiny.vlmo_pretraining,
    "entailment": tiny.entailment, "vqa": tiny.vqa_decoding,
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_any_task_trains_without_what_a_recipe_freezes(name: str) -> None:
    task = TASKS[name]()
    first = next(name for name, value in task.named_parameters() if value.requires_grad)
    said = freeze(task, (first, "model.*.weight"))
    named = dict(task.named_parameters())
    frozen = {name for name in named if name == first or (name.startswith("model.") and name.endswith(".weight"))}
    assert not any(named[name].requires_grad for name in frozen)
    in_optimizer = {
        id(value) for group in build_optimizer(task, OptimConfig()).param_groups for value in group["params"]
    }
    assert in_optimizer == {id(value) for value in named.values() if value.requires_grad}
    assert f"{sum(named[name].numel() for name in frozen):,} of" in said


def test_a_pattern_that_fits_nothing_is_an_error_that_names_the_parts() -> None:
    with pytest.raises(ValueError, match=r"freeze=model\.block\.\* fits no parameter.*model\.blocks\.\*"):
        freeze(language_stage(), ("model.norm.*", "model.block.*"))


def test_freezing_everything_is_an_error() -> None:
    task = language_stage()
    freeze(task, ("*",))
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(task, OptimConfig())


# --------------------------------------------------------------------------- a run


def recipe(**changes: Any) -> Recipe:
    small = find_recipe("vlmo_tiny_language")
    model = replace(small.model, width=24, depth=2, heads=2, fusion_start=1, image_size=32)
    data = DataConfig(scenes=ScenesConfig(count=64, evaluation_count=12, size=32), workers=0)
    run = replace(
        small.run, steps=6, batch_size=8, log_every=2, validate_every=3, checkpoint_every=3, threads=1, device="cpu"
    )
    tokenizer = replace(small.tokenizer, size=200)
    evaluation = replace(small.evaluation, batch_size=5, bootstrap=50)
    found = replace(
        small, model=model, data=data, run=run, tokenizer=tokenizer, evaluation=evaluation, init_from=None,
        schedule=replace(small.schedule, warmup_steps=1),
    )  # fmt: skip
    return replace(found, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(), tmp_path_factory.mktemp("runs") / "language")


def weights(run: Path) -> dict[str, Tensor]:
    return open_task(run).task.state_dict()


def test_a_run_is_measured_by_accuracy_and_perplexity_of_hidden_words(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    validation = [line["validation"] for line in lines if "validation" in line]
    assert len(validation) == 2
    assert all(set(one) == {"accuracy", "perplexity", CHANCE} for one in validation)
    judged = evaluate(trained)
    again = evaluate(trained, changes={"evaluation.batch_size": "7"})
    assert isinstance(judged, EvaluatedTask)
    assert isinstance(again, EvaluatedTask)
    assert judged.result.scores["accuracy"].value == again.result.scores["accuracy"].value
    assert judged.result.figures["perplexity"] == pytest.approx(again.result.figures["perplexity"], rel=1e-5)
    hidden = judged.result.scores["accuracy"].count
    assert hidden == sum(len(one.right.split()) for one in judged.result.decisions)
    by_hand = sum(one.score * len(one.right.split()) for one in judged.result.decisions)
    assert judged.result.scores["accuracy"].value == pytest.approx(100 * by_hand / hidden)
    assert all(one.shown.count("[MASK]") == len(one.right.split()) for one in judged.result.decisions)
    assert judged.result.references["commonest"].value <= 100


def test_a_run_has_a_report(trained: Path) -> None:
    page = report(trained).read_text()
    for text in ("Masked language modelling", "Perplexity of a masked word", "[MASK]", "masked words (MLM)"):
        assert text in page


def test_a_run_that_was_stopped_ends_where_an_undisturbed_one_does(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen is so again: the optimiser's memory of the rest fits."""
    done = 0

    def failing(*given: Any, **more: Any) -> Any:
        nonlocal done
        done += 1
        if done > 4:
            raise KeyboardInterrupt
        return forward_backward(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr("diptych.train.loop.forward_backward", failing)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), tmp_path / "run")
    train(recipe(), tmp_path / "run", resume=True)
    ours, theirs = (store.load(store.latest(run / "checkpoints")).weights() for run in (tmp_path / "run", trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["freeze"] == list(recipe().freeze)


def test_a_run_on_files_learns_its_words_from_them(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"number {one} and, then, {two}\n" for one in range(12) for two in range(12)))
    data = DataConfig(source="texts", path=str(file), workers=1)
    run = train(recipe(data=data), tmp_path / "run")
    judged = evaluate(run)
    assert isinstance(judged, EvaluatedTask)
    assert {"number", "then"} <= set(judged.opened.tokenizer.vocabulary)
    assert all(record.startswith(f"{file}:") for record in judged.records)


def test_frozen_weights_of_a_run_are_those_it_started_with(trained: Path, tmp_path: Path) -> None:
    run = train(recipe(init_from=str(trained)), tmp_path / "run")
    before, after = weights(trained), weights(run)
    still = {name for name in before if torch.equal(before[name], after[name])}
    frozen = [name for name in before if ".attention." in name or ".norm1." in name]
    assert len(frozen) > 10
    assert set(frozen) <= still
    assert "model.text.words.weight" not in still
