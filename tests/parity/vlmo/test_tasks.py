"""Retrieval, VQA and NLVR2 on VLMo against the released code's: losses, gradients, heads, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.data.answers import score_row
from diptych.evaluate import evaluate_retrieval
from diptych.losses.distillation import class_loss
from diptych.metrics.recall import retrieval_metrics, retrieval_ranks
from diptych.models.vlmo import Vlmo
from diptych.pretrained.vlmo_names import published_rules
from diptych.schema import EvaluationConfig, Nlvr2Config, RetrievalConfig, VqaClosedSetConfig
from diptych.task import Task
from diptych.tasks.nlvr2 import Nlvr2
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import VqaClosedSet
from diptych.types import Batch, LabelledPicturePairs, Losses, Progress, QuestionBatch, Texts
from tests.parity.golden import check_number, padded
from tests.parity.vlmo.golden import (
    Golden,
    Reader,
    build,
    load_stage,
    manifest,
    read_texts,
    special_ids,
    stored,
    vlmo_config,
)
from tests.parity.vlmo.golden import scaled as made_small

START = Progress(0, 0.0)
DUAL = RetrievalConfig(keys="batch", queue_size=0, alpha=0.0, itm=0.0)
PADDING = pytest.mark.parametrize("keep_padding", [True, False], ids=["padded", "packed"])


def build_task(folder: Path, stage: str, keep_padding: bool = True, read: Reader = stored) -> Task:
    """A stage's task in its stored state, or as it is `read`; what the stage does not use is random."""
    model, special = padded(Vlmo(vlmo_config(folder, stage)), keep_padding), special_ids(folder)
    answers = tuple(map(str, range(manifest(folder)["config"]["vqa_label_size"])))
    task: Task = {
        "irtr": lambda: Retrieval(model, DUAL),
        "vqa": lambda: VqaClosedSet(model, VqaClosedSetConfig(answers=answers), special),
        "nlvr2": lambda: Nlvr2(model, Nlvr2Config(alpha=0.0, head="gelu")),
    }[stage]()
    unused = tuple(f"model.{part}" for part in model.parts_unused_by(*task.trained(task.config)))
    load_stage(task, folder, stage, ("queue.", *unused), read)
    return task


def target_rows(folder: Path) -> Tensor:
    """The dense scores of the folder's ragged labels."""
    told = manifest(folder)
    answers = [str(number) for number in range(told["config"]["vqa_label_size"])]
    labels, scores = told["inputs"]["vqa_labels"], told["inputs"]["vqa_scores"]
    each = (dict(zip(map(str, numbers), values, strict=True)) for numbers, values in zip(labels, scores, strict=True))
    return torch.tensor([score_row(one, answers) for one in each])


def batch_of(inputs: Golden, stage: str) -> Batch:
    group = {"irtr": "vl"}.get(stage, stage)
    texts = read_texts(inputs, group)
    ids = torch.arange(len(texts))
    if stage == "nlvr2":
        first, second, answers = (inputs[f"nlvr2/{name}"] for name in ("image_0", "image_1", "answers"))
        return LabelledPicturePairs(first, texts, ids, second_pixels=second, labels=answers)
    if stage == "vqa":
        return QuestionBatch(inputs["vqa/image"], texts, ids, scores=target_rows(inputs.folder))
    return Batch(inputs["vl/image"], texts, ids)


def step(inputs: Golden, stage: str, keep_padding: bool = True) -> tuple[Task, Losses]:
    task = build_task(inputs.folder, stage, keep_padding)
    losses = task(batch_of(inputs, stage), START)
    losses.total.backward()
    return task, losses


@pytest.fixture
def inputs(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "inputs")


@pytest.fixture
def losses(golden_vlmo: Path) -> Golden:
    return Golden(golden_vlmo, "losses")


# --------------------------------------------------------------------------- losses and gradients


@PADDING
@pytest.mark.parametrize("stage", ["irtr", "vqa", "nlvr2"])
def test_losses_are_the_released_ones(stage: str, inputs: Golden, losses: Golden, keep_padding: bool) -> None:
    _, found = step(inputs, stage, keep_padding)
    losses.check(f"{stage}/{stage}_loss", found.total)
    check_number(stage, found.total.item(), manifest(inputs.folder)["scalars"][f"{stage}/{stage}_loss"])


def irtr_numbers(task: Retrieval, batch: Batch, losses: Golden) -> None:
    logits = task.run(batch, torch.zeros(2, len(batch))).contrast.logits
    losses.check("irtr/irtr_i2t_logits", logits.image_to_text)
    losses.check("irtr/irtr_t2i_logits", logits.text_to_image)
    losses.check("irtr/irtr_logit_scale", 1 / task.model.temperature())


def vqa_numbers(task: VqaClosedSet, batch: QuestionBatch, losses: Golden) -> None:
    losses.check("vqa/vqa_targets", batch.scores)
    losses.check("vqa/vqa_logits", task.logits(batch))


def nlvr2_numbers(task: Nlvr2, batch: LabelledPicturePairs, losses: Golden) -> None:
    logits, told = task.logits(batch), manifest(losses.folder)["inputs"]
    losses.check("nlvr2/nlvr2_logits", logits)
    losses.check("nlvr2/nlvr2_labels", batch.labels)
    assert batch.labels.tolist() == [int(answer) for answer in told["nlvr2_answers"]]
    for split in ("dev", "test"):
        rows = torch.tensor([split in table for table in told["nlvr2_table_name"]])
        losses.check(f"nlvr2/eval/{split}_nlvr2_loss", class_loss(logits[rows], batch.labels[rows]).mean)
        hits = logits[rows].argmax(1) == batch.labels[rows]
        losses.check(f"nlvr2/eval/{split}_nlvr2_accuracy", hits.float().mean())
        for name in ("loss", "accuracy"):
            key = f"nlvr2/eval/{split}_nlvr2_{name}"
            check_number(key, losses[key].item(), manifest(losses.folder)["scalars"][key], 1e-6)


NUMBERS: dict[str, Callable[..., None]] = {"irtr": irtr_numbers, "vqa": vqa_numbers, "nlvr2": nlvr2_numbers}


@pytest.mark.parametrize("stage", list(NUMBERS))
def test_every_stored_number_of_a_task_is_the_released_one(stage: str, inputs: Golden, losses: Golden) -> None:
    losses.check(f"{stage}/{stage}_loss", step(inputs, stage)[1].total)
    NUMBERS[stage](build_task(inputs.folder, stage).eval(), batch_of(inputs, stage), losses)
    assert set(losses.keys(f"{stage}/")) == losses.used


@PADDING
@pytest.mark.parametrize("stage", list(NUMBERS))
def test_what_trains_and_its_gradients_are_the_released_ones(stage: str, inputs: Golden, keep_padding: bool) -> None:
    task, _ = step(inputs, stage, keep_padding)
    told, rules = manifest(inputs.folder), published_rules(task.model.config, (f"{stage}_classifier",))
    trained = {name: weight.grad for name, weight in task.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in trained.items() if gradient is None]
    found, norms = to_published(trained, rules), told["grad_norms"][stage]
    assert set(found) == set(norms)
    assert not set(found) & set(told["no_gradient"][stage])
    for name, norm in norms.items():
        scale = max(norm, 1e-3)
        check_number(name, found[name].norm().item() / scale, norm / scale, 2e-5)


# --------------------------------------------------------------------------- heads


@pytest.mark.parametrize("stage", ["vqa", "nlvr2"])
def test_the_epsilon_of_a_head_is_the_released_one(stage: str, inputs: Golden) -> None:
    probe, task = Golden(inputs.folder, "eps_probe"), build_task(inputs.folder, stage, read=made_small).eval()
    assert isinstance(task, VqaClosedSet | Nlvr2)
    probe.check(f"{stage}/logits", task.logits(batch_of(inputs, stage)))


@pytest.mark.parametrize("stage", ["vqa", "nlvr2"])
def test_a_head_is_written_again_under_its_published_name(stage: str, golden_vlmo: Path) -> None:
    task, classifier = build_task(golden_vlmo, stage), f"{stage}_classifier"
    written = to_published(task.state_dict(), published_rules(task.model.config, (classifier,)))
    weights = Golden(golden_vlmo, f"weights_{stage}")
    assert {name for name in written if "classifier" in name} == set(weights.keys(classifier))
    assert all(torch.equal(written[name], weights[name]) for name in weights.keys(classifier))


# --------------------------------------------------------------------------- retrieval


def test_the_dual_encoder_finds_what_the_released_one_finds(golden_vlmo: Path) -> None:
    golden, task = Golden(golden_vlmo, "retrieval"), build_task(golden_vlmo, "irtr", keep_padding=False).eval()
    case = case_named(golden_vlmo, "model_")
    pixels, owner = golden[f"{case}/image"], places_of(golden, case)
    texts = Texts(golden[f"{case}/text_ids"], golden[f"{case}/text_masks"].bool())
    with torch.no_grad():
        golden.check(f"{case}/image_feats", task.model.embed_image(task.model.image_state(pixels))["main"])
        golden.check(f"{case}/text_feats", task.model.embed_text(task.model.text_state(texts))["main"])
    config = EvaluationConfig(rerank=0, batch_size=7, bootstrap=10)
    found = evaluate_retrieval(task.model, pixels.split(4), texts, owner, config).to_json()
    check_recalls(found, manifest(golden_vlmo)["retrieval"][case])


def test_reranking_gives_the_released_scores_and_recalls(golden_vlmo: Path) -> None:
    """As released, the similarity is added to the matches, and to the mark of those that were not asked."""
    golden, model = Golden(golden_vlmo, "retrieval"), build(golden_vlmo, keep_padding=False)
    case, whole = case_named(golden_vlmo, "rerank_"), case_named(golden_vlmo, "model_")
    rows = golden[f"{case}/text_rows_of_{whole}"]
    pixels, owner = golden[f"{whole}/image"], places_of(golden, whole)[rows]
    texts = Texts(golden[f"{whole}/text_ids"][rows], golden[f"{whole}/text_masks"][rows].bool())
    with torch.no_grad():
        image = model.embed_image(model.image_state(pixels))["main"]
        text = model.embed_text(model.text_state(texts))["main"]
    golden.check(f"{case}/image_feats", image)
    golden.check(f"{case}/text_feats", text)
    config = EvaluationConfig(rerank=int(case.partition("_k")[2]), batch_size=6, bootstrap=10, tokens_per_call=100)
    found = evaluate_retrieval(model, pixels.split(4), texts, owner, config)
    tables = found.image_to_text.reranked.dense(len(rows)), found.text_to_image.reranked.dense(len(pixels))
    ranks = {}
    right = owner[None] == torch.arange(len(pixels))[:, None]
    for way, table, similarity, key, relevant in (
        ("image_to_text", tables[0], image @ text.T, "i2t", right),
        ("text_to_image", tables[1], text @ image.T, "t2i", right.T),
    ):
        golden.check(f"{case}/itm_scores_{key}", table)
        ranks[way] = retrieval_ranks(table + similarity, relevant)
    recalls = {f"{way}.recall@{k}": value for way in ranks for k, value in levels(ranks, way).items()}
    check_recalls(recalls, manifest(golden_vlmo)["retrieval"][case])


def case_named(folder: Path, start: str) -> str:
    """The only case of that kind; the rest of its name says its size (`model_10x5`, `rerank_10x2_k4`)."""
    (case,) = (name for name in manifest(folder)["retrieval"] if name.startswith(start))
    return case


def places_of(golden: Golden, case: str) -> Tensor:
    """The picture of each text, by its place."""
    return (golden[f"{case}/text_image_ids"][:, None] == golden[f"{case}/image_ids"]).long().argmax(1)


def levels(ranks: dict[str, Tensor], way: str) -> dict[int, float]:
    found = retrieval_metrics({way: ranks[way]})
    return {k: found[f"{way}.recall@{k}"] for k in (1, 5, 10)}


def check_recalls(found: dict[str, float], told: dict[str, float]) -> None:
    for name, share in told.items():
        way, _, k = name.partition("_r")
        direction = {"tr": "image_to_text", "ir": "text_to_image"}[way]
        assert found[f"{direction}.recall@{k}"] == pytest.approx(100 * share, abs=1e-4), name
