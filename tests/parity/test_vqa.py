"""Visual question answering against the released code's numbers: `vqa.*`, `vqa_gradnorms`, `vqa_rank`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import from_published, to_published
from diptych.data.answers import encode_answers
from diptych.data.collate import pad_texts
from diptych.data.tokenizer import Tokenizer
from diptych.losses.answers import answer_losses
from diptych.losses.distillation import alpha_at
from diptych.models.albef import Albef, start_of_answer_decoder
from diptych.nn.decoder import AnswerDecoder
from diptych.nn.packed import PackedSequences
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING, PUBLISHED_VQA
from diptych.schema import DecoderConfig, Released, VqaDecoderConfig
from diptych.task import Model
from diptych.tasks.vqa import Ranked, VqaDecoding, ask
from diptych.types import Losses, Progress, QuestionBatch, Texts
from tests.parity.golden import (
    Golden,
    albef_config,
    check_number,
    load_published,
    padded,
    read_tensors,
    special_ids,
    tolerance,
)

START = Progress(step=0, epoch=0.0)
CASES = ("a04", "a00", "hard")
"""With the momentum encoder's targets, with weight 0 for them (the ramp's start), and built without distillation."""


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


RELEASED = Released(count_first_answer_token_twice=True)


def build(folder: Path, case: str = "a04", keep_padding: bool = True, **changes: Any) -> VqaDecoding:
    """The task in the folder's stored state."""
    sizes, model = read_json(folder, "config"), albef_config(folder)
    text = model.text
    decoder = DecoderConfig(
        layers=sizes["vqa_decoder"]["num_hidden_layers"], heads=text.heads, intermediate=text.intermediate,
        max_positions=text.max_positions, norm_eps=text.norm_eps, dropout=text.dropout,
        attention_dropout=text.attention_dropout,
    )  # fmt: skip
    config = VqaDecoderConfig(
        decoder=decoder,
        alpha=0.0 if case == "hard" else sizes["alpha_of_case_a04"],
        alpha_ramp=1.0 if case == "a00" else 0.0,
        momentum=sizes["momentum_of_ve_vqa_nlvr"],
    )
    albef = padded(Albef(model), keep_padding)
    task = VqaDecoding(albef, dataclasses.replace(config, **changes), special_ids(folder), RELEASED)
    own = tuple(f"model.{part}" for part in albef.parts_unused_by("fuse"))
    load_published(task, folder, "vqa", PUBLISHED_VQA, own, without=("momentum_",) if case == "hard" else ())
    return task


def batch_of(golden: Golden) -> QuestionBatch:
    questions = Texts(golden["in.q_input_ids"], golden["in.q_attention_mask"].bool())
    answers = Texts(golden["in.a_input_ids"], golden["in.a_attention_mask"].bool())
    owners = torch.arange(len(questions)).repeat_interleave(golden["in.k"])
    return QuestionBatch(
        golden["in.image"], questions, torch.arange(len(questions)),
        answers=answers, answer_of=owners, weights=golden["in.weights"],
    )  # fmt: skip


def step(golden: Golden, case: str, keep_padding: bool = True) -> tuple[VqaDecoding, Losses]:
    task = build(golden.folder, case, keep_padding)
    task.before_step()
    losses = task(batch_of(golden), START)
    losses.total.backward()
    return task, losses


def gradients(task: VqaDecoding) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in task.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in found.items() if gradient is None]
    return to_published(found, PUBLISHED_VQA)


def check_real_rows(golden: Golden, key: str, ours: Tensor, real: Tensor) -> None:
    """The rows of real tokens; the others stand for nothing, and only the released code computes them."""
    stored = golden[key].clone()
    stored[real] = ours
    golden.check(key, stored)


@torch.no_grad()
def logits_everywhere(model: Model, head: AnswerDecoder, batch: QuestionBatch) -> Tensor:
    """Word scores behind each token of the answers, [SEP] included."""
    real = batch.answers.attention_mask
    hidden, _ = head(batch.answers.input_ids[real], PackedSequences(real.sum(1)), ask(model, batch), batch.answer_of)
    return head.word_logits(hidden)


# --------------------------------------------------------------------------- comparisons


def losses_are_the_released_ones(golden: Golden, keep_padding: bool = True) -> None:
    for case in CASES:
        task, losses = step(golden, case, keep_padding)
        golden.check(f"{case}.loss", losses.total)
        batch, alpha = batch_of(golden), alpha_at(START.epoch, task.config.alpha, task.config.alpha_ramp)
        find = partial(task.word_logits, batch=batch, answers=batch.answers, answer_of=batch.answer_of)
        logits, labels, answer = find(task.model, task.head)
        momentum_encoder = None if task.momentum_encoder is None else find(task.momentum_encoder, task.momentum_head)[0]
        each = answer_losses(logits, labels, answer, len(batch.answers), momentum_encoder, alpha)
        golden.check(f"{case}.answer_loss", each)


def states_and_word_scores_are_the_released_ones(golden: Golden) -> None:
    task, _ = step(golden, "a04")
    batch = batch_of(golden)
    real = batch.answers.attention_mask
    golden.check("a04.question_states", ask(task.model, batch).hidden)
    check_real_rows(golden, "a04.decoder_logits", logits_everywhere(task.model, task.head, batch), real)
    within = real[:, : golden["a04.logits_m"].shape[1]]
    ours = logits_everywhere(task.momentum_encoder, task.momentum_head, batch)
    grid = ours.new_zeros(*real.shape, ours.shape[1])
    grid[real] = ours
    check_real_rows(golden, "a04.logits_m", grid[:, : within.shape[1]][within], within)


def gradients_are_the_released_ones(golden: Golden) -> None:
    for case in CASES:
        found = gradients(step(golden, case)[0])
        for key in golden.keys(f"{case}.grad."):
            golden.check(key, found[key.removeprefix(f"{case}.grad.")])


def ranked(golden: Golden, keep_padding: bool = True) -> Ranked:
    task, candidates = build(golden.folder, keep_padding=keep_padding).eval(), candidates_of(golden)
    return task.rank(batch_of(golden), candidates, read_json(golden.folder, "vqa_rank")["k_test"])


def candidates_of(golden: Golden) -> Texts:
    return Texts(golden["rank.answer_ids"], golden["rank.answer_mask"].bool())


def ranking_is_the_released_one(golden: Golden, keep_padding: bool = True) -> None:
    task, candidates = build(golden.folder, keep_padding=keep_padding).eval(), candidates_of(golden)
    first, _ = task.first_words(ask(task.model, batch_of(golden)))
    golden.check("rank.prob_first_token", first.exp()[:, candidates.input_ids[:, 1]])
    found = ranked(golden, keep_padding)
    golden.check("rank.topk_ids", found.index)
    golden.check("rank.topk_probs", found.probability)
    golden.check("rank.chosen", torch.zeros_like(golden["rank.chosen"]).scatter(1, found.index, 1))
    # Stored in the order of the first words, in which equal first words may stand either way.
    stored = golden["rank.log_probs_sum"].sort(dim=1, descending=True).values
    limit = tolerance(golden.manifest["rank.log_probs_sum"]["scale"])
    torch.testing.assert_close(found.score, stored, rtol=0, atol=limit)


COMPARISONS = (
    losses_are_the_released_ones,
    states_and_word_scores_are_the_released_ones,
    gradients_are_the_released_ones,
    ranking_is_the_released_one,
)


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
def test_vqa(compare: Any, golden_albef: Path) -> None:
    compare(Golden(golden_albef, "vqa"))


@pytest.mark.parametrize("compare", [losses_are_the_released_ones, ranking_is_the_released_one])
def test_vqa_without_computing_padded_rows(compare: Any, golden_albef: Path) -> None:
    compare(Golden(golden_albef, "vqa"), keep_padding=False)


def test_every_stored_tensor_of_vqa_is_compared(golden_albef: Path) -> None:
    golden = Golden(golden_albef, "vqa")
    for compare in COMPARISONS:
        compare(golden)
    assert set(golden.tensors) - golden.used == set()


@pytest.mark.parametrize("keep_padding", [True, False])
def test_gradient_norms_are_the_released_ones(golden_albef: Path, keep_padding: bool) -> None:
    found = gradients(step(Golden(golden_albef, "vqa"), "a04", keep_padding)[0])
    for case, stored in read_json(golden_albef, "vqa_gradnorms").items():
        assert case == "total"
        assert set(stored) <= set(found)
        beyond = {name for name in set(found) - set(stored) if "position_ids" not in name}
        assert all(".cls.predictions.decoder." in name for name in beyond)
        for name, norm in stored.items():
            check_number(name, found[name].norm().item(), 0.0 if norm is None else norm, 2e-5)


def test_texts_become_the_released_ids_and_ranks_the_released_answers(golden_albef: Path) -> None:
    golden, stored = Golden(golden_albef, "vqa"), read_json(golden_albef, "vqa_rank")
    tokenizer = Tokenizer.from_vocabulary(golden_albef)
    end = stored["eos"]
    answers = [answer.removesuffix(end) for given in stored["train_answers"] for answer in given]
    encoded = {
        "in.q_input_ids": tokenizer.encode(stored["questions"]),
        "in.a_input_ids": encode_answers(answers, tokenizer),
        "rank.answer_ids": encode_answers(stored["answer_list"], tokenizer),
    }
    for key, ids in encoded.items():
        ours = pad_texts(ids, tokenizer.pad_id)
        golden.check(key, ours.input_ids)
        mask = "rank.answer_mask" if key == "rank.answer_ids" else key.replace("input_ids", "attention_mask")
        golden.check(mask, ours.attention_mask)
    weights = [weight for given in stored["train_weights"] for weight in given]
    assert golden["in.weights"].tolist() == pytest.approx(weights)
    assert golden["in.k"].tolist() == [len(given) for given in stored["train_answers"]]
    best = [stored["answer_list"][int(place)] for place in ranked(golden).index[:, 0]]
    assert best == [result["answer"] for result in stored["result"]]


def test_the_decoder_starts_from_the_parts_that_the_released_one_starts_from(golden_albef: Path) -> None:
    """From all of them if images are as wide as texts, else from all but the projections of cross-attention.

    Of unequal widths, these do not fit, and a folder may say that the released decoder receives nothing for them.
    """
    pretrained = read_tensors(golden_albef / "state" / "pretrain.safetensors")
    ours, _ = from_published(pretrained, PUBLISHED_PRETRAINING)
    config = albef_config(golden_albef)
    wide = dataclasses.replace(config, vision=dataclasses.replace(config.vision, width=config.text.width))
    started = start_of_answer_decoder(ours, wide)
    wanted = {name for name in build(golden_albef).state_dict() if name.startswith(("head.", "momentum_head."))}
    assert set(started) == wanted
    published = to_published(started, PUBLISHED_VQA)
    unfit = set(published) - set(to_published(start_of_answer_decoder(ours, config), PUBLISHED_VQA))
    assert bool(unfit) == (config.vision.width != config.text.width)
    assert all(".crossattention.self." in name for name in unfit)
    sources = read_json(golden_albef, "loading_maps")["pretrain->vqa"]["map"]
    decoder = {name for name in sources if name.startswith("text_decoder")}
    assert set(published) - unfit <= decoder
    assert all(name.endswith("position_ids") for name in decoder - set(published))
    for name in published.keys() & decoder:
        assert torch.equal(published[name], pretrained[sources[name]]), name
    other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, width=2 * config.text.width))
    left_out = wanted - set(start_of_answer_decoder(ours, other))
    assert left_out == {name for name in wanted if ".cross.kv." in name}
