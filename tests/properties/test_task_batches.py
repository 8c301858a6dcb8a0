"""Batches for each task: what a record says arrives in its row, whatever process made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.answers import answer_vocabulary
from diptych.data.collate import identity_number
from diptych.data.dataset import KINDS, PairDataset
from diptych.data.loader import Loaded, PairLoader
from diptych.data.record import (
    AnyRecord,
    BadRecord,
    Entailment,
    PairStatement,
    Picture,
    PlainText,
    Question,
    Record,
    Referring,
)
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import TrainTransform, to_picture
from diptych.schema import DataConfig
from diptych.task import Task
from diptych.tasks import entailment, nlvr2
from diptych.types import Batch, LabelledBatch, LabelledPicturePairs, Progress, QuestionBatch
from tests import tiny
from tests.properties.test_data_loader import take

SIZE = 16
CONFIG = DataConfig(workers=0, bad_share=0.5)
WHOLE = replace(CONFIG, crop=(1.0, 1.0), randaugment=(0, 0))
"""No draw but the flip: the square pictures are shown whole."""
WORDS = ["a red fox left of the dog", "is it red or blue", "yes", "no", "two", "number 0 1 2 3 4 5 6 7 8 9"]
TOKENIZER = Tokenizer.train(WORDS, 300)
CLOSED = ("red", "yes", "no")

CAPTIONS = Record("r0", 0, ("a fox", "a dog"), "picture a")
PHRASE = Referring("r0", 0, "the red fox", "picture a", box=(0.0, 0.0, 2.0, 2.0))
HYPOTHESIS = Entailment("r0", 0, "a red fox", "entailment", "picture a")
PEOPLE = Question("r0", 0, "is it red?", ("yes", "yes", "no", "yes", "two"), "picture a")
WEIGHED = Question("r0", 0, "is it (red) or blue?", ("red",), "picture a", (0.5,))
STATEMENT = PairStatement("r0", (0, 1), "a red fox", True, ("picture a", "picture b"), "a red fox")
EVERY = [CAPTIONS, PHRASE, HYPOTHESIS, PEOPLE, STATEMENT]
each_kind = pytest.mark.parametrize("record", EVERY, ids=lambda record: type(record).__name__)


@dataclass(frozen=True)
class Made:
    """Records over square pictures of noise, numbered; those in `broken` cannot be read."""

    records: tuple[AnyRecord, ...]
    broken: frozenset[int] = frozenset()
    skipped: tuple[BadRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Any:
        return self.records[index]

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        if bad := self.broken.intersection(record.images):
            raise BadRecord(record.id, "picture truncated", f"{min(bad)}.jpg")
        return tuple(map(noise, record.images))


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def several(record: AnyRecord, count: int, broken: frozenset[int] = frozenset()) -> Made:
    """`record` again and again, as r0, r1, …; r0 shows picture 0 (and 1), r1 picture 2 (and 3), and so on."""

    def images(number: int) -> dict[str, Any]:
        if isinstance(record, PairStatement):
            return {"images": (2 * number, 2 * number + 1)}
        return {"image": 2 * number}

    return Made(tuple(replace(record, id=f"r{number}", **images(number)) for number in range(count)), broken)


def loader(source: Made, config: DataConfig = CONFIG, batch: int = 4, answers: tuple[str, ...] = ()) -> PairLoader:
    return PairLoader(source, TOKENIZER, config, SIZE, batch, 3, answers)


def batch_of(*records: AnyRecord, config: DataConfig = CONFIG, answers: tuple[str, ...] = (), epoch: int = 0) -> Any:
    """The records in this order, as a batch."""
    dataset = PairDataset(Made(records), TrainTransform(config, SIZE), TOKENIZER, config, 3, answers)
    return dataset.__getitems__([(epoch, index) for index in range(len(records))]).batch


def tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor of a batch by its name, also of nested texts."""
    found: dict[str, Tensor] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if isinstance(content, Tensor):
            found[item.name] = content
        elif is_dataclass(content):
            found |= {f"{item.name}.{name}": tensor for name, tensor in tensors(content).items()}
    return found


def same(one: Loaded, other: Loaded) -> bool:
    ours, theirs = tensors(one.batch), tensors(other.batch)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return equal and type(one.batch) is type(other.batch) and one.records == other.records and one.epoch == other.epoch


def read(row: Tensor) -> str:
    return TOKENIZER.decode(row.tolist())


def turned(pixels: Tensor, number: int) -> bool:
    """Whether a picture that is shown whole is flipped; it must be one of the two."""
    shown, plain = np.asarray(to_picture(pixels, "albef")), np.asarray(noise(number))
    flipped = not np.array_equal(shown, plain)
    assert not flipped or np.array_equal(shown, plain[:, ::-1])
    return flipped


# --------------------------------------------------------------------------- every kind


def test_every_kind_of_record_has_its_batches() -> None:
    """Those of one modality: test_pictures_alone.py, test_data_texts.py."""
    assert set(KINDS) == {type(record) for record in EVERY} | {Picture, PlainText}


@each_kind
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_any_step_on_are_those_of_the_whole_run(record: AnyRecord, workers: int) -> None:
    source = several(record, 10, broken=frozenset({4}))
    whole = take(loader(source), 7)
    assert not same(whole[0], whole[2])
    for start in (0, 3):  # an epoch has 2 steps
        late = take(loader(source, replace(CONFIG, workers=workers)), 4, start)
        assert all(same(ours, early) for ours, early in zip(late, whole[start:], strict=False))


@each_kind
def test_a_broken_picture_shrinks_its_batch_and_is_named(record: AnyRecord) -> None:
    broken = 7 if isinstance(record, PairStatement) else 6  # of a pair: the second one
    pairs = loader(several(record, 8, broken=frozenset({broken})))
    batches = take(pairs, 2)
    assert sorted(len(loaded.batch) for loaded in batches) == [3, 4]
    (short,) = [loaded for loaded in batches if loaded.skipped]
    for name in ("pixels", "second_pixels", "labels"):
        assert len(tensors(short.batch).get(name, short.batch.pixels)) == 3, name
    assert short.batch.records == tuple(one.id for one in short.records)
    reason = f"r3: picture truncated ({broken}.jpg)"
    assert pairs.ledger.summary() == f"1 of 8 records skipped: 1 × picture truncated\n  {reason}"


@each_kind
def test_texts_are_cut_to_the_configured_tokens(record: AnyRecord) -> None:
    assert batch_of(record, config=replace(CONFIG, max_tokens=3)).texts.input_ids.shape[1] == 3


@pytest.mark.parametrize(
    ("task", "records", "answers"),
    [
        (tiny.retrieval, (CAPTIONS, replace(CAPTIONS, image=1, image_id="picture b")), ()),
        (tiny.entailment, (HYPOTHESIS,), ()),
        (tiny.nlvr2, (STATEMENT,), ()),
        (tiny.vqa_decoding, (PEOPLE, WEIGHED), ()),
        (tiny.vqa_closed_set, (PEOPLE, WEIGHED), tiny.ANSWERS),
    ],
    ids=["retrieval", "entailment", "nlvr2", "vqa decoder", "vqa closed set"],
)
def test_each_task_learns_from_its_batch(
    task: Callable[..., Task], records: tuple[AnyRecord, ...], answers: tuple[str, ...]
) -> None:
    batch = batch_of(*records, answers=answers)
    losses = task(model={"vocab_size": TOKENIZER.vocab_size})(batch, Progress(0, 0.5))
    assert torch.isfinite(losses.total)
    assert losses.total > 0


# --------------------------------------------------------------------------- one kind after the other


@pytest.mark.parametrize("record", [CAPTIONS, PHRASE], ids=lambda record: type(record).__name__)
def test_retrieval_and_grounding_get_the_identities_of_their_pictures(record: Record | Referring) -> None:
    again, other = replace(record, id="r1", image=9), replace(record, id="r2", image_id="picture b")
    batch = batch_of(record, again, other)
    assert type(batch) is Batch
    assert batch.image_ids.tolist() == [identity_number(f"picture {name}") for name in "aab"]
    assert set(map(read, batch.texts.input_ids)) <= ({"a fox", "a dog"} if record is CAPTIONS else {"the red fox"})


def test_hypotheses_come_with_the_class_of_their_label() -> None:
    batch = batch_of(*[replace(HYPOTHESIS, label=label) for label in entailment.CLASSES[::-1]])
    assert type(batch) is LabelledBatch
    assert batch.labels.tolist() == [2, 1, 0]
    assert batch.pixels.shape == (3, 3, SIZE, SIZE)
    assert read(batch.texts.input_ids[0]) == "a red fox"


def test_statements_come_with_their_truth_and_both_pictures_in_order() -> None:
    other = replace(STATEMENT, id="r1", images=(5, 4), label=False, image_ids=("picture c", "picture d"))
    batch = batch_of(STATEMENT, other, config=replace(WHOLE, flip=0.0))
    assert type(batch) is LabelledPicturePairs
    assert [nlvr2.CLASSES[label] for label in batch.labels] == ["true", "false"]
    shown = [*batch.pixels, *batch.second_pixels]
    assert not any(turned(pixels, number) for pixels, number in zip(shown, (0, 5, 1, 4), strict=True))
    assert batch.image_ids.tolist() == [identity_number("picture a"), identity_number("picture c")]


def test_each_picture_of_a_pair_has_its_own_draws() -> None:
    alike = replace(STATEMENT, images=(0, 0))
    batch = batch_of(alike)
    assert not torch.equal(batch.pixels, batch.second_pixels)
    epochs = [batch_of(alike, config=WHOLE, epoch=epoch) for epoch in range(40)]
    flips = [(turned(batch.pixels[0], 0), turned(batch.second_pixels[0], 0)) for batch in epochs]
    assert set(flips) == {(False, False), (False, True), (True, False), (True, True)}


def test_no_picture_of_a_pair_is_flipped_under_left_or_right() -> None:
    spatial = replace(STATEMENT, statement="a red fox left of the dog")
    for epoch in range(40):
        batch = batch_of(spatial, config=WHOLE, epoch=epoch)
        assert not turned(batch.pixels[0], 0)
        assert not turned(batch.second_pixels[0], 1)


def test_questions_come_with_each_answer_once_its_owner_and_its_share() -> None:
    batch = batch_of(PEOPLE, WEIGHED)
    assert type(batch) is QuestionBatch
    assert list(map(read, batch.texts.input_ids)) == ["is it red", "is it red or blue"]
    assert batch.answers is not None
    assert batch.answer_of is not None
    assert batch.weights is not None
    lengths = batch.answers.attention_mask.sum(1)
    rows = [row[:length].tolist() for row, length in zip(batch.answers.input_ids, lengths, strict=True)]
    assert {(row[0], row[-1]) for row in rows} == {(TOKENIZER.cls_id, TOKENIZER.sep_id)}
    assert [TOKENIZER.decode(row) for row in rows] == ["yes", "no", "two", "red"]
    assert batch.answer_of.tolist() == [0, 0, 0, 1]
    assert batch.weights.tolist() == pytest.approx([0.6, 0.2, 0.2, 0.5])
    assert batch.scores is None


def test_the_words_of_a_question_are_counted_as_released() -> None:
    """Two blanks enclose an empty word, which a caption would not have."""
    spaced = replace(PEOPLE, question="is  it red or blue?")
    assert read(batch_of(spaced, config=replace(CONFIG, max_words=4)).texts.input_ids[0]) == "is it red"


def test_a_long_answer_is_cut_before_its_end() -> None:
    long = replace(PEOPLE, answers=("number 0 1 2 3 4 5",))
    (row,) = batch_of(long, config=replace(CONFIG, max_tokens=4)).answers.input_ids.tolist()
    assert len(row) == 4
    assert row[-1] == TOKENIZER.sep_id
    assert TOKENIZER.decode(row) == "number 0"


def test_a_closed_set_gets_rows_of_scores_in_its_order() -> None:
    """Of five annotators one is left out, whoever it is: of three `yes` 2 or 3 stay, of one `no` 0 or 1."""
    unknown = replace(PEOPLE, id="r2", answers=("two",))
    batch = batch_of(PEOPLE, WEIGHED, unknown, answers=CLOSED)
    assert type(batch) is QuestionBatch
    rows = torch.tensor([[0, (2 * 3 / 3 + 3 * 2 / 3) / 5, (4 * 1 / 3) / 5], [0.5, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(batch.scores, rows)
    assert (batch.answers, batch.answer_of, batch.weights) == (None, None, None)


@pytest.mark.parametrize(
    ("answers", "closed", "message"),
    [
        ((), (), "r0: answer missing"),
        ((), CLOSED, "r0: answer missing"),
        (("", " \u200b"), (), "r0: answer empty"),
        (("", " \u200b"), CLOSED, "r0: answer empty"),
    ],
)
def test_a_question_that_teaches_nothing_is_a_bad_record(
    answers: tuple[str, ...], closed: tuple[str, ...], message: str
) -> None:
    source = Made((replace(PEOPLE, answers=answers),))
    dataset = PairDataset(source, TrainTransform(CONFIG, SIZE), TOKENIZER, CONFIG, 0, closed)
    with pytest.raises(BadRecord, match=message):
        dataset[0, 0]


def test_an_answer_without_a_word_is_left_out_and_the_others_are_learnt() -> None:
    """Nobody can learn to write it, and no list of candidates may hold it (ALBEF issue 40)."""
    blank = replace(PEOPLE, answers=("yes", "", "\u200b", "no"))
    assert blank.targets == (("yes", 0.25), ("no", 0.25))
    assert len(batch_of(blank).answers.input_ids) == 2
    assert answer_vocabulary([blank, replace(PEOPLE, answers=("", " "))], 9) == ("no", "yes")


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (replace(HYPOTHESIS, hypothesis="\u200b"), "hypothesis"),
        (replace(HYPOTHESIS, hypothesis="!?"), "hypothesis"),
        (replace(PEOPLE, question="?"), "question"),
        (replace(STATEMENT, statement="..."), "statement"),
        (replace(PHRASE, phrase=""), "phrase"),
    ],
)
def test_a_text_of_punctuation_only_is_a_bad_record(record: AnyRecord, name: str) -> None:
    dataset = PairDataset(Made((record,)), TrainTransform(CONFIG, SIZE), TOKENIZER, CONFIG, 0)
    with pytest.raises(BadRecord, match=f"r0: {name} empty"):
        dataset[0, 0]
