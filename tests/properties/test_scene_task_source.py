"""Tests that the records of the tasks are the generated examples, in every process."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from diptych.catalog import open_source
from diptych.data.record import (
    ENTAILMENT_LABELS,
    AnyRecord,
    Entailment,
    PairStatement,
    Question,
    Referring,
    TaskSource,
    check_kind,
)
from diptych.schema import DataConfig, ScenesConfig
from diptych.synthetic.examples import PAIRS, pair_example, referring_example

CONFIG = DataConfig(scenes=ScenesConfig(sprites="shapes", count=60, evaluation_count=20))
KINDS: list[type[AnyRecord]] = [Entailment, Question, PairStatement, Referring]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tasks_source_holds_its_records_once_each(kind: type[AnyRecord]) -> None:
    sources = {split: open_source(CONFIG, split, kind) for split in ("train", "validation", "test")}
    names, identities = set(), set()
    for split, source in sources.items():
        assert isinstance(source, TaskSource)
        assert len(source) == (60 if split == "train" else 20)
        check_kind(source, kind, "scenes")
        for index in range(len(source)):
            record = source.record(index)
            assert all(record.texts)
            names.add(record.id)
            identities.update(record.image_ids)
            pictures = source.pictures(record)
            assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (64, 64))] * len(record.images)
        with pytest.raises(IndexError, match=rf"scenes/{kind.__name__.lower()}/{split} has {len(source)} records"):
            source.record(len(source))
    assert len(names) == 100
    assert len(identities) == (200 if kind is PairStatement else 100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tasks_source_travels_small_and_gives_the_same(kind: type[AnyRecord]) -> None:
    source = open_source(CONFIG, "train", kind)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    copy = pickle.loads(packed)
    assert copy.record(7) == source.record(7)
    assert copy.pictures(copy.record(7)) == source.pictures(source.record(7))
    other = open_source(replace(CONFIG, scenes=replace(CONFIG.scenes, seed=1)), "train", kind)
    assert other.record(7) != source.record(7)


def test_labels_answers_groups_and_boxes_come_through() -> None:
    entailment, questions = open_source(CONFIG, "train", Entailment), open_source(CONFIG, "train", Question)
    pairs, referring = open_source(CONFIG, "train", PairStatement), open_source(CONFIG, "train", Referring)
    assert {entailment.record(index).label for index in range(60)} == set(ENTAILMENT_LABELS)
    for index in range(20):
        assert len(questions.record(index).answers) == 10
        record, made = pairs.record(index), pair_example(CONFIG.scenes, "train", index)
        assert (record.label, record.images) == (made.label, (made.left, made.right))
        assert (record.group == pairs.record(0).group) == (index < PAIRS)
        scene, said = referring_example(CONFIG.scenes, "train", index)
        found = referring.record(index)
        assert (found.image, found.box, found.proposals) == (scene, said.box, said.proposals)
        assert found.box in found.proposals


def test_what_leaves_nothing_to_say_is_reported_when_opened() -> None:
    german = replace(CONFIG, scenes=replace(CONFIG.scenes, sprites="openmoji", language="de"))
    with pytest.raises(ValueError, match=r"scenes\.language='de': the tasks' texts are English"):
        open_source(german, "train", Question)


@pytest.mark.parametrize("kind", [Entailment, Question])
def test_training_scenes_have_as_many_texts_as_asked_for(kind: type[AnyRecord]) -> None:
    config = replace(CONFIG, texts_per_image=4)
    alone, grouped = (open_source(chosen, "train", kind) for chosen in (CONFIG, config))
    records = [grouped.record(index) for index in range(60)]
    for number in range(15):
        about = records[4 * number : 4 * number + 4]
        first = alone.record(number)
        assert {record.image_id for record in about} == {first.image_id}
        assert all(record.images == first.images for record in about)
        assert about[0].texts == first.texts
        assert len({record.texts for record in about}) == 4
    assert len({record.id for record in records}) == 60
    assert [open_source(config, "test", kind).record(index) for index in range(8)] == [
        open_source(CONFIG, "test", kind).record(index) for index in range(8)
    ]
