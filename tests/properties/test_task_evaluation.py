"""Each task's evaluation against what single records, one at a time and by hand, give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.catalog import TASKS as TASK_CLASSES
from diptych.data.dataset import PairDataset
from diptych.data.loader import EvaluationBatch, evaluation_batches
from diptych.data.record import AnyRecord, Box, Entailment, PairStatement, Question, Record, Referring
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import EvaluationTransform, TrainTransform
from diptych.evaluate import TaskEvaluation, evaluate_task
from diptych.metrics.grounding import box_iou
from diptych.metrics.vqa import answer_score
from diptych.schema import (
    AddedTaskConfig,
    AlbefPretrainConfig,
    DataConfig,
    GroundingConfig,
    GroundingTrainingConfig,
    RetrievalConfig,
    TaskConfig,
    VlmoPretrainConfig,
)
from diptych.task import Task
from diptych.tasks.grounding import Grounding, find_box, phrase_maps
from diptych.types import Batch, PicturePairs, Texts
from tests import tiny

CONFIG = DataConfig(workers=0)
COLOURS = ("red", "blue", "green", "pink", "black", "white", "grey")
NAMES = ("fox", "dog", "cat", "owl", "cup", "car", "hat")
TOKENIZER = Tokenizer.train([f"is the {a} {b} two yes no" for a, b in zip(COLOURS, NAMES, strict=True)] * 3, 300)
MODEL: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "dropout": 0.1}
LABELS = ("neutral", "contradiction", "neutral", "entailment", "neutral", "entailment", "contradiction")
ANSWERS: tuple[tuple[str, ...], ...] = (
    ("yes",) * 10, ("no",) * 6 + ("two",) * 4, ("red",), ("yes",) * 2 + ("no",) * 8, ("two",) * 10, ("no",), ("yes",)
)  # fmt: skip
LAYER = 2
"""The tiny model's first fusion layer."""


@dataclass(frozen=True)
class Shown:
    """Records over pictures of noise of no two sizes, all wider than high; with `closed` none can be opened."""

    records: tuple[AnyRecord, ...]
    closed: bool = False
    first: int = 0
    """Number of the first record's picture."""
    skipped: tuple[()] = ()

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Any:
        return self.records[index]

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        assert not self.closed, "a picture was opened"
        return tuple(noise(self.first + number) for number in record.images)


def size_of(number: int) -> tuple[int, int]:
    return 40 + 7 * number, 20 + number


def noise(number: int) -> Image.Image:
    width, height = size_of(number)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def phrase(number: int, text: str) -> Referring:
    """The right box is the second of four proposals, which is neither the largest nor the most central but once."""
    picture = number // 2
    width, height = size_of(picture)
    own = (2.0 + number, 3.0, 9.0, 8.0)
    whole = (0.0, 0.0, float(width), float(height))
    proposals: tuple[Box, ...] = ((width - 8.0, height - 8.0, 6.0, 6.0), own, whole, (own[0] + 1, 3.0, 9.0, 8.0))
    return Referring(f"r{number}", picture, text, f"picture {picture}", own, proposals, part=f"test{'AB'[number % 2]}")


TEXTS = tuple(f"the {colour} {name}" for colour, name in zip(COLOURS, NAMES, strict=True))
RECORDS: dict[str, tuple[Any, ...]] = {
    "entailment": tuple(
        Entailment(f"r{n}", n, text, LABELS[n], f"picture {n // 2}") for n, text in enumerate(TEXTS)
    ),
    "nlvr2": tuple(
        PairStatement(f"r{n}", (n, n + 1), text, n % 3 > 0, (f"picture {n}", f"picture {n + 1}"), f"group {n // 3}")
        for n, text in enumerate(TEXTS)
    ),
    "vqa": tuple(
        Question(f"r{n}", n, f"is {text}?", ANSWERS[n], f"picture {n // 2}") for n, text in enumerate(TEXTS)
    ),
    "grounding": tuple(phrase(n, text) for n, text in enumerate(TEXTS)),
}  # fmt: skip


def grounding(**changes: Any) -> Grounding:
    config = GroundingTrainingConfig(queue_size=6, boxes=GroundingConfig(layer=LAYER, alpha=1.0))
    return Grounding(tiny.albef(**MODEL), replace(config, **changes))


TASKS: dict[str, tuple[Callable[[], Any], str]] = {
    "entailment": (lambda: tiny.entailment(model=MODEL), "entailment"),
    "nlvr2": (lambda: tiny.nlvr2(model=MODEL), "nlvr2"),
    "rank": (lambda: tiny.vqa_decoding(model=MODEL, answers=tiny.ANSWERS), "vqa"),
    "generate": (lambda: tiny.vqa_decoding(model=MODEL, inference="generate"), "vqa"),
    "closed set": (lambda: tiny.vqa_closed_set(model=MODEL), "vqa"),
    "grounding": (grounding, "grounding"),
}
each_task = pytest.mark.parametrize("name", TASKS)


def made(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A task, and records for it, of which it does not always say the same: weights are loud, biases even."""
    build, kind = TASKS[name]
    task, records = build(), RECORDS[kind]
    with torch.no_grad():
        for weight in (task.model.text.embedding.words.weight, task.model.vision.embedding.proj.weight):
            weight *= 5
        for part, weight in task.model.named_parameters():
            if "layers" in part and weight.dim() == 2:
                weight *= 3
        if name in ("entailment", "nlvr2", "closed set"):
            (one,) = asked(records, 64)
            task.head[-1].bias -= task.eval().logits(one.batch).mean(0)
    return task.train(), records


def asked(records: Sequence[AnyRecord], batch_size: int = 3, config: DataConfig = CONFIG) -> list[EvaluationBatch]:
    return list(evaluation_batches(Shown(tuple(records)), TOKENIZER, config, tiny.SIDE, batch_size))


def judged(
    task: Task, records: Sequence[AnyRecord], batch_size: int = 3, config: DataConfig = CONFIG
) -> TaskEvaluation:
    return evaluate_task(task, asked(records, batch_size, config), TOKENIZER, resamples=20)


def read(text: str) -> Texts:
    """A text as it stands in the batch, alone."""
    (ids,) = TOKENIZER.encode([text])
    return Texts(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))


def seen(number: int) -> Tensor:
    return EvaluationTransform(DataConfig(), tiny.SIDE)(noise(number))[None]


def alone(record: Any, text: str) -> Any:
    """What a model sees of a record, put together without the loader."""
    ids = torch.zeros(1, dtype=torch.long)
    if isinstance(record, PairStatement):
        first, second = record.images
        return PicturePairs(seen(first), read(text), ids, second_pixels=seen(second))
    return Batch(seen(record.image), read(text), ids)


def share(values: Sequence[object]) -> float:
    return 100 * sum(map(float, values)) / len(values)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- every task


def test_every_task_is_either_measured_record_by_record_or_as_retrieval() -> None:
    own = set(get_args(TaskConfig)) - {AddedTaskConfig}  # added ones state it in their own files
    assert own <= set(TASK_CLASSES)
    ranking = {config for config in own if TASK_CLASSES[config].evaluate is Task.evaluate}
    assert ranking == {AlbefPretrainConfig, VlmoPretrainConfig, RetrievalConfig}
    for config in own:
        task = TASK_CLASSES[config]
        assert task.measured_as_retrieval == (config in ranking)
        assert (task.report is None) == task.measured_as_retrieval
    with pytest.raises(ValueError, match="Retrieval is not judged record by record"):
        judged(tiny.retrieval(), RECORDS["grounding"])


@each_task
def test_every_record_is_judged_once_and_in_order_whatever_the_batches(name: str) -> None:
    task, records = made(name)
    whole = judged(task, records, 64)
    assert [one.record for one in whole.decisions] == [record.id for record in records]
    assert len({str(one.said) for one in whole.decisions}) > 1, "a model that always says the same tests nothing"
    assert whole.to_json()["labelled"] == whole.scores["accuracy"].count == len(records)
    for batch_size in (1, 3):
        found = judged(task, records, batch_size)
        assert found.scores == whole.scores
        assert found.references == whole.references
        for one, other in zip(found.decisions, whole.decisions, strict=True):
            assert one == replace(other, probability=one.probability)
            assert one.probability == (other.probability and pytest.approx(other.probability, rel=1e-4))


@each_task
def test_what_is_right_never_reaches_the_model(name: str) -> None:
    task, records = made(name)
    right = {Entailment: "label", PairStatement: "label", Question: "answers", Referring: "box"}[type(records[0])]
    turned = records[1:] + records[:1]
    changed = [replace(one, **{right: getattr(other, right)}) for one, other in zip(records, turned, strict=True)]
    plain, other = judged(task, records), judged(task, changed)
    assert [one.right for one in plain.decisions] != [one.right for one in other.decisions]
    for one, again in zip(plain.decisions, other.decisions, strict=True):
        assert (one.record, one.said, one.probability) == (again.record, again.said, again.probability)
    assert {type(one.batch) for one in asked(records)} <= {Batch, PicturePairs}


@each_task
def test_the_modes_of_all_modules_are_put_back_and_dropout_rests_meanwhile(name: str) -> None:
    task, records = made(name)
    still = judged(task.eval(), records)
    task.train()
    task.model.vision.eval()
    modes = [module.training for module in task.modules()]
    assert judged(task, records) == still
    assert [module.training for module in task.modules()] == modes

    def broken() -> Any:
        yield from asked(records[:3])
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        evaluate_task(task, broken(), TOKENIZER)
    assert [module.training for module in task.modules()] == modes


@each_task
@pytest.mark.parametrize("batch_size", [1, 64])
def test_what_is_not_finite_is_not_judged_and_the_record_is_named(name: str, batch_size: int) -> None:
    task, records = made(name)
    elsewhere = [record.texts[0] for place, record in enumerate(records) if place != 3]
    only = set(TOKENIZER.encode(["pink owl"])[0]).difference(*TOKENIZER.encode(elsewhere))
    assert only
    with torch.no_grad():
        task.model.text.embedding.words.weight[list(only)] = torch.nan
    with pytest.raises(ValueError, match="r3: what the model says of it is not finite"):
        judged(task, records, batch_size)


@each_task
def test_no_record_is_an_error(name: str) -> None:
    task, _ = made(name)
    with pytest.raises(ValueError, match="nothing to measure: the evaluation holds no record"):
        evaluate_task(task, [], TOKENIZER)


# --------------------------------------------------------------------------- classes


def test_a_hypothesis_has_the_class_that_its_pair_alone_is_given() -> None:
    task, records = made("entailment")
    found = judged(task, records)
    names = ("contradiction", "neutral", "entailment")
    for record, one in zip(records, found.decisions, strict=True):
        probability = task.eval().predict(alone(record, record.hypothesis))[0]
        assert one.said == names[int(probability.argmax())]
        assert one.probability == pytest.approx(float(probability.max()), rel=1e-4)
        assert (one.right, one.score) == (record.label, float(one.said == record.label))
    assert found.scores["accuracy"].value == pytest.approx(share([one.said == one.right for one in found.decisions]))
    assert found.references["commonest"].value == pytest.approx(300 / 7), "three of seven are neutral"
    said = [one.said for one in found.decisions]
    for name in names:
        counts = found.classes[name]
        right = sum(one.said == one.right == name for one in found.decisions)
        assert (counts.labelled, counts.predicted, counts.right) == (LABELS.count(name), said.count(name), right)
    assert found.to_json()["classes.neutral"]["labelled"] == 3


def test_a_statement_is_judged_of_both_pictures_in_order_and_consistent_where_all_its_pairs_are_right() -> None:
    task, records = made("nlvr2")
    found = judged(task, records)
    for record, one in zip(records, found.decisions, strict=True):
        probability = task.eval().predict(alone(record, record.statement))[0]
        assert one.said == ("false", "true")[int(probability.argmax())]
        assert one.probability == pytest.approx(float(probability.max()), rel=1e-4)
        assert one.score == float((one.said == "true") == record.label)
    hits = [one.score for one in found.decisions]
    assert found.scores["accuracy"].value == pytest.approx(share(hits))
    # Their own labels for the second group, and one wrong in the others: one statement of three is consistent.
    said = [one.said == "true" for one in found.decisions]
    labels = [not said[0], *said[1:6], not said[6]]
    again = judged(task, [replace(record, label=label) for record, label in zip(records, labels, strict=True)])
    assert again.scores["accuracy"].value == pytest.approx(500 / 7)
    assert again.scores["consistency"].value == pytest.approx(100 / 3)
    assert found.references["commonest"].value == pytest.approx(400 / 7), "four of seven are true"


def test_text_assignment_leaves_out_what_has_nothing_to_draw_from() -> None:
    task = tiny.text_assignment(model=MODEL)
    captions = [Record(f"r{n}", n, (text,), f"picture {n}") for n, text in enumerate(TEXTS)]
    found = judged(task, captions, batch_size=5)
    assert [one.record for one in found.decisions] == ["r0", "r1", "r2", "r3", "r4"], "the last two are too few"
    assert found == judged(task.train(), captions, batch_size=5), "drawn again, the same pictures"
    assert {one.right for one in found.decisions} <= {"first", "second", "neither"}
    assert found.scores["accuracy"].value == share([one.said == one.right for one in found.decisions])
    with pytest.raises(ValueError, match=r"no batch had three: raise evaluation\.batch_size"):
        judged(task, captions, batch_size=2)


# --------------------------------------------------------------------------- answers


def always(answer: str) -> Any:
    """A closed set that says one answer whatever it is asked."""
    task = tiny.vqa_closed_set(model=MODEL)
    with torch.no_grad():
        task.head[-1].bias[tiny.ANSWERS.index(answer)] += 1000
    return task


def question(number: int, answers: tuple[str, ...], weights: tuple[float, ...] = ()) -> Question:
    return replace(RECORDS["vqa"][number], answers=answers, weights=weights)


@pytest.mark.parametrize("name", ["rank", "generate", "closed set"])
def test_an_answer_is_what_its_question_alone_is_given(name: str) -> None:
    task, records = made(name)
    found = judged(task, records)
    for record, one in zip(records, found.decisions, strict=True):
        single = alone(record, record.question.rstrip("?"))
        task.eval()
        if name == "closed set":
            said = tiny.ANSWERS[int(task.predict(single).argmax())]
        elif name == "generate":
            said = TOKENIZER.decode(task.generate(single).ids[0, 0].tolist())
        else:
            ids = [[*each, TOKENIZER.sep_id] for each in TOKENIZER.encode(tiny.ANSWERS)]
            likely = [float(answer_likelihood(task, single, each)) for each in ids]
            said = tiny.ANSWERS[int(np.argmax(likely))]
        assert one.said == said
        people = record.answers if len(record.answers) > 1 else record.answers * 10
        assert one.score == pytest.approx(answer_score(said, people, "released"))
    assert found.scores["accuracy"].value == pytest.approx(share([one.score for one in found.decisions]))
    # Shares of people: no 0.6 + 0.8 + 1, yes 1 + 0.2 + 1, two 0.4 + 1, red 1.
    assert found.references["commonest"].value == pytest.approx(300 / 7)


def answer_likelihood(task: Any, question: Batch, ids: list[int]) -> Tensor:
    """log P of an answer [CLS] … [SEP], word by word."""
    answer = Texts(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    with torch.no_grad():
        logits, labels, _ = task.word_logits(task.model, task.head, question, answer, torch.tensor([0]))
    return logits.log_softmax(1).gather(1, labels[:, None]).sum()


@pytest.mark.parametrize(
    ("answers", "weights", "expected"),
    [
        (("red",), (), 1.0),
        (("red", "blue"), (0.2, 0.8), 0.6),  # two of ten people: 8 of 10 times both stay, 2 of 10 times one of them
        (("red",), (0.5,), 1.0),  # half a weight is all the weight there is
        (("red", "blue"), (0.01, 9.0), 0.0),  # less than half a person
        (("blue", "red", "red"), (), 1.0),  # 7 of ten
        (("red", "blue", "blue"), (), 0.9),  # 3 of ten
        (("red", "blue", "pink"), (), 1.0),  # 4, 3 and 3 of ten
        (("red", "blue", "blue", "pink", "pink"), (), 0.8 / 3),  # five people, enough as they are
    ],
)
def test_shares_of_people_are_judged_as_ten_people(
    answers: tuple[str, ...], weights: tuple[float, ...], expected: float
) -> None:
    (one,) = judged(always("red"), [question(0, answers, weights)]).decisions
    assert one.said == "red"
    assert one.score == pytest.approx(expected)


def test_number_words_count_as_intended_only() -> None:
    found = judged(always("two"), [question(0, ("two",) * 10), question(1, ("2",) * 10)])
    assert found.scores["accuracy"].value == 50.0, "the released evaluation turns only the prediction into 2"
    assert found.scores["accuracy.intended"].value == 100.0


def test_questions_that_nobody_answered_are_answered_and_not_scored() -> None:
    task, records = always("red"), [question(0, ("red",)), question(1, ()), question(2, ("blue",))]
    found = judged(task, records)
    assert [one.said for one in found.decisions] == ["red"] * 3
    assert [(one.right, one.score) for one in found.decisions] == [(["red"], 1.0), (None, None), (["blue"], 0.0)]
    assert (found.scores["accuracy"].value, found.scores["accuracy"].count) == (50.0, 2)
    assert (found.to_json()["examples"], found.to_json()["labelled"]) == (3, 2)
    hidden = judged(task, [replace(record, answers=()) for record in records])
    assert (hidden.scores, hidden.references) == ({}, {})
    assert [one.said for one in hidden.decisions] == ["red"] * 3


# --------------------------------------------------------------------------- boxes


def test_boxes_are_in_pixels_of_the_picture_itself() -> None:
    task, records = made("grounding")
    found = judged(task, records)
    config, overlap, of_map = task.config.boxes, [], []
    for record, one in zip(records, found.decisions, strict=True):
        width, height = size_of(record.image)
        maps = phrase_maps(task.model.eval(), seen(record.image), read(record.phrase), config).phrase
        assert tuple(one.said) == find_box(maps[0], (width, height), record.proposals, config)
        assert one.right == list(record.box)
        overlap.append(float(box_iou(np.array(one.said), np.array(record.box))))
        assert one.score == pytest.approx(overlap[-1])
        box = find_box(maps[0], (width, height), (), config)
        assert 0 <= box[0] < box[0] + box[2] <= width
        assert 0 <= box[1] < box[1] + box[3] <= height
        of_map.append(float(box_iou(np.array(box), np.array(record.box))))
        # Without proposals the box of the map is what was found.
        (bare,) = judged(task, [replace(record, proposals=())]).decisions
        assert tuple(bare.said) == box
    hits = np.array(overlap) >= 0.5
    assert found.scores["accuracy"].value == pytest.approx(100 * hits.mean())
    assert found.scores["accuracy.testA"].value == pytest.approx(100 * hits[::2].mean())
    assert found.scores["accuracy.testB"].value == pytest.approx(100 * hits[1::2].mean())
    assert found.scores["accuracy.without_proposals"].value == pytest.approx(share([one >= 0.5 for one in of_map]))
    assert [found.scores[f"accuracy.{part}"].count for part in ("testA", "testB")] == [4, 3]


def test_guesses_without_a_look_are_those_by_hand() -> None:
    task, records = made("grounding")
    found = judged(task, records)
    # The whole picture is largest and most central, and overlaps no right box by half. Right by half are the box itself
    # and the one beside it: 8 · 8 of 9 · 8 + 9 · 8 − 8 · 8 are shared.
    assert {name: one.value for name, one in found.references.items()} == pytest.approx(
        {"largest_proposal": 0.0, "central_proposal": 0.0, "any_proposal": 50.0}
    )
    middle = (19.0, 9.0, 2.0, 2.0)  # of 40 × 20 pixels
    corner, large = (30.0, 10.0, 9.0, 9.0), (0.0, 0.0, 15.0, 15.0)
    offered = [(corner, large), (middle, corner), (corner, large)]
    right = [large, middle, corner]
    pairs = zip(right, offered, strict=True)
    found = judged(task, [replace(records[0], box=box, proposals=proposals) for box, proposals in pairs])
    # Largest: large, corner, large. Central: large (offset 12.5, 2.5), middle, large, for corner lies (14.5, 4.5) away.
    assert {name: one.value for name, one in found.references.items()} == pytest.approx(
        {"largest_proposal": 100 / 3, "central_proposal": 200 / 3, "any_proposal": 50.0}
    )
    assert judged(task, [replace(records[0], proposals=()), records[1]]).references == {}, "not all have proposals"


def test_phrases_without_a_box_are_found_and_not_scored() -> None:
    task, records = made("grounding")
    whole = judged(task, records)
    part = judged(task, [records[0], replace(records[1], box=None), *records[2:]])
    assert [one.said for one in part.decisions] == [one.said for one in whole.decisions]
    assert (part.decisions[1].right, part.decisions[1].score) == (None, None)
    assert [one.score for one in part.decisions[2:]] == [one.score for one in whole.decisions[2:]]
    assert part.scores["accuracy"].count == 6
    hidden = judged(task, [replace(record, box=None) for record in records])
    assert (hidden.scores, hidden.references) == ({}, {})
    assert [one.said for one in hidden.decisions] == [one.said for one in whole.decisions]


# --------------------------------------------------------------------------- blank pictures


each_kind = pytest.mark.parametrize("kind", RECORDS)
BLIND = replace(CONFIG, blank_images=True)


def training_batch(source: Shown, config: DataConfig) -> Any:
    dataset = PairDataset(source, TrainTransform(config, tiny.SIDE), TOKENIZER, config, 3)
    return dataset.__getitems__([(0, index) for index in range(len(source))]).batch


@each_kind
def test_blank_pictures_are_all_the_same_and_none_is_opened(kind: str) -> None:
    closed = Shown(RECORDS[kind], closed=kind != "grounding")  # a phrase's picture is opened for its size
    (one,) = evaluation_batches(closed, TOKENIZER, BLIND, tiny.SIDE, 64)
    pixels = [*one.batch.pixels, *getattr(one.batch, "second_pixels", ())]
    assert all(torch.equal(each, pixels[0]) for each in pixels)
    assert pixels[0].flatten(1).std(1).max() < 1e-6, "plain grey"
    assert training_batch(Shown(RECORDS[kind], closed=True), BLIND).pixels.shape == one.batch.pixels.shape


@each_kind
def test_blank_training_batches_do_not_depend_on_the_pictures(kind: str) -> None:
    def pixels(config: DataConfig, first: int) -> Tensor:
        batch: Tensor = training_batch(Shown(RECORDS[kind], first=first), config).pixels
        return batch

    assert torch.equal(pixels(BLIND, 0), pixels(BLIND, 50))
    assert not torch.equal(pixels(CONFIG, 0), pixels(CONFIG, 50))


def test_boxes_beside_blank_pictures_are_in_pixels_of_the_picture_itself() -> None:
    records = RECORDS["grounding"]
    sizes = [one.sizes for one in asked(records, 64, BLIND)]
    assert sizes == [tuple(size_of(record.image) for record in records)]
    references = judged(grounding(), records, config=BLIND).references
    assert references == judged(grounding(), records).references


# --------------------------------------------------------------------------- texts


def test_evaluation_reads_fifty_words_of_a_question_whole_and_training_as_many_as_configured() -> None:
    long = replace(RECORDS["vqa"][0], question=" ".join(["red"] * 49 + ["fox", "dog"]))
    config = replace(CONFIG, max_words=20, max_tokens=15, max_tokens_evaluation=10)
    (one,) = asked([long], config=config)
    assert TOKENIZER.decode(one.batch.texts.input_ids[0].tolist()) == " ".join(["red"] * 49 + ["fox"])
    trained = training_batch(Shown((long,)), config)
    assert trained.texts.input_ids.shape[1] == 15
    trained = training_batch(Shown((long,)), replace(config, max_tokens=100))
    assert TOKENIZER.decode(trained.texts.input_ids[0].tolist()) == " ".join(["red"] * 20)


def test_evaluation_cuts_other_texts_as_configured() -> None:
    long = replace(RECORDS["entailment"][0], hypothesis=" ".join(["red"] * 60))
    (words,) = asked([long], config=replace(CONFIG, max_words=20, max_tokens_evaluation=100))
    assert TOKENIZER.decode(words.batch.texts.input_ids[0].tolist()) == " ".join(["red"] * 20)
    (tokens,) = asked([long], config=replace(CONFIG, max_words=20, max_tokens_evaluation=10))
    assert tokens.batch.texts.input_ids.shape[1] == 10


def test_a_text_without_words_is_named() -> None:
    with pytest.raises(ValueError, match="r0: question empty"):
        asked([replace(RECORDS["vqa"][0], question="?!")])
