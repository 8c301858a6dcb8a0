"""Tests published data layouts on small folders made exactly as published, and the errors of broken ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.catalog import LAYOUTS, open_source
from diptych.data.entries import from_entry, to_entry
from diptych.data.record import (
    ENTAILMENT_LABELS,
    AnyRecord,
    BadRecord,
    Entailment,
    PairStatement,
    Question,
    Record,
    Referring,
    check_kind,
)
from diptych.data.sources.albef import read_albef
from diptych.data.sources.conceptual import read_conceptual
from diptych.data.sources.files import open_layout
from diptych.data.sources.img2dataset import read_img2dataset
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.karpathy import read_karpathy
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.nlvr2 import read_nlvr2
from diptych.data.sources.refcoco import read_refcoco
from diptych.data.sources.sbu import read_sbu
from diptych.data.sources.snli_ve import read_snli_ve
from diptych.data.sources.visual_genome import read_visual_genome
from diptych.data.sources.vqa import read_vqa
from diptych.schema import SPLITS, DataConfig
from tests.layouts import (
    karpathy,
    lines,
    nlvr2_line,
    picture,
    refcoco,
    vqa_annotations,
    vqa_questions,
    write,
)


def config(**changes: Any) -> DataConfig:
    return DataConfig(held_out=0.0, **changes)


def reasons(listing: SourceListing) -> dict[str, str]:
    return {error.record: error.reason for error in listing.skipped}


# --------------------------------------------------------------------------- schemas

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
paths = st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4})?\.jpg", fullmatch=True)
sides = st.floats(0.5, 1e4)
shares = st.floats(0.01, 1)
boxes = st.tuples(st.floats(-10, 1e4), st.floats(-10, 1e4), sides, sides)
listed = st.lists(boxes).map(tuple)
pairs = st.tuples(texts, texts)
records: st.SearchStrategy[tuple[type, tuple[Any, ...]]] = st.one_of(
    st.tuples(st.just(Record), st.tuples(texts, paths, st.lists(texts, min_size=1).map(tuple), texts)),
    st.tuples(st.just(Entailment), st.tuples(texts, paths, texts, st.sampled_from(ENTAILMENT_LABELS), texts)),
    st.tuples(st.just(Question), st.tuples(texts, paths, texts, st.lists(texts).map(tuple), texts)),
    st.tuples(st.just(Question), st.tuples(texts, paths, texts, pairs, texts, st.tuples(shares, shares))),
    st.tuples(st.just(PairStatement), st.tuples(texts, pairs, texts, st.booleans(), pairs, texts)),
    st.tuples(st.just(Referring), st.tuples(texts, paths, texts, texts, st.none() | boxes, listed, texts, texts)),
)


@given(records)
def test_a_record_of_any_task_survives_its_line_of_json(kind_and_values: tuple[type, tuple[Any, ...]]) -> None:
    kind, values = kind_and_values
    record = kind(*values)
    assert from_entry(json.loads(json.dumps(to_entry(record))), "elsewhere") == record


def test_what_a_line_leaves_out_has_the_documented_default() -> None:
    pair = from_entry({"images": ["a.png", "./b.png"], "statement": "both are red", "label": False}, "f:1")
    assert pair == PairStatement("f:1", ("a.png", "./b.png"), "both are red", False, ("a.png", "b.png"), "both are red")
    question = from_entry({"image": "a.png", "question": "why?"}, "f:2")
    assert question == Question("f:2", "a.png", "why?", (), "a.png")
    phrase = from_entry({"image": "a.png", "phrase": "the fox"}, "f:3")
    assert phrase == Referring("f:3", "a.png", "the fox", "a.png")


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("entails", "entailment"), ("E", "entailment"), ("contradicts", "contradiction"),
        ("Contradict", "contradiction"), ("C", "contradiction"), ("n", "neutral"), (" Neutral ", "neutral"),
    ],
)  # fmt: skip
def test_labels_of_entailment_may_be_other_forms_of_their_words(written: str, label: str) -> None:
    entry = {"image": "a.png", "hypothesis": "a fox"}
    assert from_entry({**entry, "label": written}, "f:1").label == label
    assert from_entry({**entry, "gold_label": written}, "f:1").label == label


@pytest.mark.parametrize(("written", "truth"), [(1, True), (0, False), ("yes", True), ("No", False), ("1", True)])
def test_a_statement_about_two_pictures_is_read_in_its_usual_forms(written: object, truth: bool) -> None:
    told = {"statement": "both are red", "label": written}
    pair = PairStatement("f:1", ("a.png", "b.png"), "both are red", truth, ("a.png", "b.png"), "both are red")
    for images in ({"images": ["a.png", "b.png"]}, {"image": ["a.png", "b.png"]}, {"left": "a.png", "right": "b.png"}):
        assert from_entry({**images, **told}, "f:1") == pair
        assert from_entry({**images, "sentence": "both are red", "label": written}, "f:1") == pair


@pytest.mark.parametrize(
    ("written", "answers"),
    [
        ("['red', 'blue']", ("red", "blue")), ('["red", "blue"]', ("red", "blue")), (["red", None], ("red",)),
        ({"red": 2, "blue": 1}, ("red", "red", "blue")), ("[sic]", ("[sic]",)), ("red, blue", ("red, blue",)),
    ],
)  # fmt: skip
def test_answers_are_read_in_their_usual_forms(written: object, answers: tuple[str, ...]) -> None:
    for key in ("answers", "answer"):
        assert from_entry({"image": "a.png", "question": "what?", key: written}, "f:1").answers == answers


def test_weights_above_1_are_divided_by_their_sum() -> None:
    entry = {"image": "a.png", "question": "what?", "answers": ["red", "blue"]}
    assert from_entry({**entry, "weights": [90, 10]}, "f:1").weights == (0.9, 0.1)
    assert from_entry({**entry, "weights": [1, 0.5]}, "f:1").weights == (1.0, 0.5)


@pytest.mark.parametrize(
    "written",
    [
        {"x": 1, "y": 2, "w": 3, "h": 4}, {"x": 1, "y": 2, "width": 3, "height": 4}, "1,2,3,4", "[1, 2, 3, 4]",
        ["1", "2", "3", "4"], [[1, 2, 3, 4]],
    ],
)  # fmt: skip
def test_a_box_is_read_in_its_usual_forms(written: object) -> None:
    for key in ("box", "bbox"):
        assert from_entry({"image": "a.png", "phrase": "the fox", key: written}, "f:1").box == (1, 2, 3, 4)


def test_answers_weigh_as_many_annotators_as_gave_them() -> None:
    question = Question("q", "a.png", "what colour?", ("red", "blue", "red", "red"), "a")
    assert question.targets == (("red", 0.75), ("blue", 0.25))
    assert Question("q", "a.png", "why?", ("so",), "a", weights=(0.5,)).targets == (("so", 0.5),)
    assert Question("q", "a.png", "why?", (), "a").targets == ()


@pytest.mark.parametrize(
    ("entry", "reason", "words"),
    [
        ({"image": "a", "hypothesis": "x", "label": "maybe"}, "label unknown", "'maybe' is none of contradiction"),
        ({"image": "a", "hypothesis": "x"}, "key missing", "label"),
        ({"image": "a", "question": "x", "answers": [True]}, "wrong type", 'write "yes" or "no"'),
        ({"image": "a", "question": "x", "answers": ["b"], "weights": [0]}, "wrong type", "above 0"),
        ({"image": "a", "question": "x", "answers": ["b"], "weights": [1, 1]}, "wrong type", "one number for each"),
        ({"images": ["a"], "statement": "x", "label": True}, "wrong type", "two texts"),
        ({"images": ["a", "b"], "statement": "x", "label": 2}, "label unknown", "true or false"),
        ({"image": "a", "hypothesis": "x", "label": "1"}, "label unknown", "number the labels differently"),
        ({"image": "a", "question": "x", "answers": {"red": 0}}, "wrong type", "counts the annotators"),
        ({"image": "a", "phrase": "x", "box": [[0, 0, 5, 5], [1, 1, 5, 5]]}, "box wrong", "[x, y, width, height]"),
        ({"image": "a", "phrase": "x", "box": [0, 0, 5]}, "box wrong", "[x, y, width, height]"),
        ({"image": "a", "phrase": "x", "box": [0, 0, 5, 0]}, "box wrong", "above 0"),
        ({"image": "a", "phrase": "x", "box": [0, 0, 5, float("nan")]}, "box wrong", "[x, y, width, height]"),
        ({"image": "a", "phrase": "x", "proposals": "all"}, "wrong type", "`proposals`"),
        ({"phrase": "x"}, "key missing", "image"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place_and_reason(entry: object, reason: str, words: str) -> None:
    with pytest.raises(BadRecord) as caught:
        from_entry(entry, "list.jsonl:7")
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"list.jsonl:7: {reason}")
    assert words in str(caught.value)


def test_a_jsonl_file_holds_one_task_and_names_what_it_cannot_use(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = lines(
        tmp_path / "questions.jsonl",
        [
            {"id": 7, "image": "a.png", "question": "Who?", "answers": ["me"]},
            {"image": "a.png", "question": " ?"},
            {"image": "gone.png", "question": "Where?"},
            {"image": "a.png", "caption": "a fox"},
            {"id": "7", "image": "a.png", "question": "Who else?"},
        ],
    )
    listing = read_jsonl(str(file), config())
    assert [(record.id, record.image) for record in listing.records] == [("7", str(tmp_path / "a.png"))]
    assert reasons(listing) == {
        f"{file}:2": "question empty",
        f"{file}:3": "picture missing",
        f"{file}:4": "another task",
        f"{file}:5": "id repeated",
    }


def test_both_pictures_of_a_pair_must_be_there_and_are_opened(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 10)
    picture(tmp_path / "b.png", 20)
    entry = {"images": ["a.png", "b.png"], "statement": "x", "label": True}
    file = lines(tmp_path / "pairs.jsonl", [entry, {**entry, "images": ["a.png", "gone.png"]}])
    source = open_layout(read_jsonl, config(path=str(file)), "train")
    assert [image.getpixel((0, 0)) for image in source.pictures(source.record(0))] == [(10, 0, 0), (20, 0, 0)]
    assert [error.reason for error in source.skipped] == ["picture missing"]


def test_pictures_that_pairs_share_fall_into_one_split(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcdefghijklmnopqrstuvwxyz"]
    for name in names:
        picture(tmp_path / name)
    chains = [names[start : start + 2] for start in range(0, 26, 2)] + [["a.png", "d.png"]]
    entries = [{"images": chain, "statement": "x", "label": True} for chain in chains]
    settings = DataConfig(path=str(lines(tmp_path / "pairs.jsonl", list(entries))), held_out=0.1)
    seen = [
        {image for record in open_layout(read_jsonl, settings, split).records for image in record.image_ids}
        for split in SPLITS
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(names)
    assert any({"a.png", "b.png", "c.png", "d.png"} <= split for split in seen)


def test_a_source_of_another_task_is_refused_in_words(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = lines(tmp_path / "questions.jsonl", [{"image": "a.png", "question": "Who?"}])
    source = open_layout(read_jsonl, config(path=str(file)), "train")
    with pytest.raises(ValueError, match="my list holds questions; this task needs captions"):
        check_kind(source, Record, "my list")
    check_kind(source, Question, "my list")
    with pytest.raises(ValueError, match="this task needs entailment hypotheses: lines with `hypothesis` and `label`"):
        check_kind(source, Entailment, "my list")


# --------------------------------------------------------------------------- ALBEF


def test_albef_lists_say_their_task_by_their_keys(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / name)
    question = {"image": "1.jpg", "question": "Who?", "question_id": 11}
    cases: list[tuple[dict[str, object], AnyRecord]] = [
        (
            {"image": "1", "sentence": "a fox", "label": "neutral"},
            Entailment("?", "1.jpg", "a fox", "neutral", "1.jpg"),
        ),
        (
            {"images": ["1.jpg", "2.jpg"], "sentence": "both", "label": "False"},
            PairStatement("?", ("1.jpg", "2.jpg"), "both", False, ("1.jpg", "2.jpg"), "both"),
        ),
        (question, Question("11", "1.jpg", "Who?", (), "1.jpg")),
        (
            {**question, "dataset": "vqa", "answer": ["me", "you"]},
            Question("11", "1.jpg", "Who?", ("me", "you"), "1.jpg"),
        ),
        (
            {**question, "dataset": "vg", "answer": "me"},
            Question("vg/11", "1.jpg", "Who?", ("me",), "1.jpg", (0.5,)),
        ),
        ({"image": "2.jpg", "text": "the fox", "ref_id": 5}, Referring("?", "2.jpg", "the fox", "2.jpg", ref_id="5")),
    ]
    for entry, record in cases:
        file = write(tmp_path / "list.json", [entry])
        (ours,) = read_albef(str(file), config()).records
        assert to_entry(ours) == to_entry(record) | {
            "id": f"{file}[0]" if record.id == "?" else record.id,
            **(
                {"images": [str(tmp_path / name) for name in record.images]}
                if isinstance(record, PairStatement)
                else {"image": str(tmp_path / record.image)}
            ),
        }


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (7, "not an object"),
        ({"image": "1.jpg", "sentence": "x", "label": "unsure"}, "label unknown"),
        ({"images": ["1.jpg"], "sentence": "x", "label": "True"}, "wrong type"),
        ({"images": ["1.jpg", "1.jpg"], "sentence": "x"}, "label unknown"),
        ({"image": "1.jpg", "text": "x", "ref_id": [5]}, "wrong type"),
        ({"image": "1.jpg", "question": "x", "answer": {"yes": "x"}}, "wrong type"),
        ({"question": "x", "question_id": 3}, "key missing"),
    ],
)
def test_a_broken_entry_of_albefs_lists_is_named(tmp_path: Path, entry: object, reason: str) -> None:
    picture(tmp_path / "1.jpg")
    file = write(tmp_path / "list.json", [entry])
    assert reasons(read_albef(str(file), config())) == {f"{file}[0]": reason}


# --------------------------------------------------------------------------- COCO and Flickr30k after Karpathy


@pytest.mark.parametrize("coco", [True, False])
def test_karpathys_file_gives_its_own_splits(tmp_path: Path, coco: bool) -> None:
    file = karpathy(tmp_path, coco, ("test", "train", "restval", "val", "train"))
    content = json.loads(file.read_text())
    content["images"][4]["sentences"] = [{"tokens": []}]
    write(file, content)
    settings = config(source="karpathy", path=str(file), root=str(tmp_path / "images"))
    sources = {split: open_layout(read_karpathy, settings, split) for split in SPLITS}
    assert {split: [record.id for record in source.records] for split, source in sources.items()} == {
        "train": ["1", "2"],
        "validation": ["3"],
        "test": ["0"],
    }
    record = sources["test"].record(0)
    assert record.captions == ("A fox, one.", "A fox, two.")
    assert record.image_id == ("COCO_val2014_000000000000.jpg" if coco else "0.jpg")
    assert sources["test"].picture(record).size == (6, 4)
    assert {e.record: e.reason for e in sources["train"].skipped} == {f"{file}, images[4]": "key missing"}


def test_karpathys_evaluation_splits_tolerate_no_bad_picture(tmp_path: Path) -> None:
    file = karpathy(tmp_path, coco=False)
    (tmp_path / "images/3.jpg").unlink()
    settings = config(source="karpathy", path=str(file), root=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"1 records of the validation split(.|\n)*images\[3\]: picture missing"):
        open_layout(read_karpathy, settings, "validation")
    assert len(open_layout(read_karpathy, settings, "test")) == 1


def test_karpathys_file_with_an_unknown_split_names_the_entry(tmp_path: Path) -> None:
    file = write(tmp_path / "dataset.json", {"images": [{"split": "dev"}, 3, {}]})
    assert reasons(read_karpathy(str(file), config())) == {
        f"{file}, images[0]": "split unknown",
        f"{file}, images[1]": "not an object",
        f"{file}, images[2]": "key missing",
    }


# --------------------------------------------------------------------------- SNLI-VE


def test_snli_ve_reads_hypotheses_on_flickr30ks_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "images/47.jpg")
    line = {
        "annotator_labels": ["neutral"],
        "captionID": "47.jpg#2",
        "gold_label": "neutral",
        "pairID": "47.jpg#2r1n",
        "sentence1": "a premise",
        "sentence2": "A hypothesis.",
        "Flickr30K_ID": "47",
    }
    without = {key: value for key, value in line.items() if key != "Flickr30K_ID"}
    file = lines(
        tmp_path / "snli_ve_dev.jsonl",
        [
            line,
            {**without, "Flikr30kID": "47.jpg", "pairID": "b", "gold_label": "entailment"},
            {**without, "pairID": "c", "gold_label": "contradiction"},
            {**line, "pairID": "d", "gold_label": "-"},
            {**without, "pairID": "e", "captionID": None},
            {**line, "pairID": "f", "Flickr30K_ID": "48"},
        ],
    )
    listing = read_snli_ve(str(file), config(root=str(tmp_path / "images")))
    path = str(tmp_path / "images/47.jpg")
    assert listing.records == [
        Entailment("47.jpg#2r1n", path, "A hypothesis.", "neutral", "47.jpg"),
        Entailment("b", path, "A hypothesis.", "entailment", "47.jpg"),
        Entailment("c", path, "A hypothesis.", "contradiction", "47.jpg"),
    ]
    assert reasons(listing) == {
        f"{file}:4": "label unknown",
        f"{file}:5": "wrong type",
        f"{file}:6": "picture missing",
    }


def test_lines_with_the_keys_of_snli_ve_are_hypotheses_whatever_the_suffix(tmp_path: Path) -> None:
    """They were read as captions, and their labels were lost."""
    entries = [
        {"Flickr30K_ID": number, "sentence1": "x", "sentence2": f"a fox {number}", "gold_label": "neutral"}
        for number in range(3)
    ]
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    listing = read_jsonl(str(lines(tmp_path / "list.jsonl", list(entries))), config())
    assert [(r.hypothesis, r.label, r.image_id) for r in listing.records] == [
        (f"a fox {number}", "neutral", f"{number}.png") for number in range(3)
    ]
    assert "read as SNLI-VE" in listing.notes[0]


# --------------------------------------------------------------------------- VQA v2


def test_vqa_joins_questions_with_the_answers_of_their_subset(tmp_path: Path) -> None:
    files = [
        vqa_questions(tmp_path, "train2014", [900, 901]),
        vqa_annotations(tmp_path, "train2014", [901, 900]),
        vqa_questions(tmp_path, "val2014", [1200]),
        vqa_annotations(tmp_path, "val2014", [1200]),
        vqa_questions(tmp_path, "test-dev2015", [3300]),
    ]
    listing = read_vqa(",".join(map(str, files)), config(root=str(tmp_path / "images")))
    assert listing.skipped == []
    assert [(q.id, q.question, len(q.answers), q.image_id) for q in listing.records] == [
        ("900", "What is 900?", 10, "COCO_train2014_000000000009.jpg"),
        ("901", "What is 901?", 10, "COCO_train2014_000000000009.jpg"),
        ("1200", "What is 1200?", 10, "COCO_val2014_000000000012.jpg"),
        ("3300", "What is 3300?", 0, "COCO_test2015_000000000033.jpg"),
    ]
    assert [answer for answer, _ in listing.records[0].targets] == ["net", "a net"]
    assert listing.records[0].targets[0][1] == pytest.approx(0.7)


def test_vqa_finds_pictures_in_one_folder_too(tmp_path: Path) -> None:
    file = vqa_questions(tmp_path / "a", "test2015", [900])
    picture(tmp_path / "flat/COCO_test2015_000000000009.jpg")
    (question,) = read_vqa(str(file), config(root=str(tmp_path / "flat"))).records
    assert question.image == str(tmp_path / "flat/COCO_test2015_000000000009.jpg")


def test_a_question_without_its_annotation_is_named(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path, "val2014", [900, 901, 902])
    annotations = vqa_annotations(tmp_path, "val2014", [900, 902])
    content = json.loads(annotations.read_text())
    content["annotations"][1]["answers"] = []
    listing = read_vqa(f"{questions},{write(annotations, content)}", config(root=str(tmp_path / "images")))
    assert reasons(listing) == {
        f"{questions}, questions[1]": "answers missing",
        f"{questions}, questions[2]": "answers missing",
    }


def test_annotations_that_contradict_each_other_or_their_question_answer_nothing(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path, "val2014", [900, 1000, 1100, 1200])
    annotations = vqa_annotations(tmp_path, "val2014", [900, 1000, 1100, 1200])
    content = json.loads(annotations.read_text())
    first, second, third, _ = content["annotations"]
    content["annotations"] += [{**first, "answers": first["answers"][:3]}, dict(second)]  # the latter says the same
    third["image_id"] = 12
    listing = read_vqa(f"{questions},{write(annotations, content)}", config(root=str(tmp_path / "images")))
    assert reasons(listing) == {
        f"{questions}, questions[0]": "answers ambiguous",
        f"{questions}, questions[2]": "picture ambiguous",
    }
    assert [record.id for record in listing.records] == ["1000", "1200"]


def test_files_of_vqa_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    questions = vqa_questions(tmp_path, "val2014", [900])
    annotations = vqa_annotations(tmp_path, "train2014", [900])
    with pytest.raises(ValueError, match="annotations of train2014, but no questions"):
        read_vqa(f"{questions},{annotations}", config())
    with pytest.raises(ValueError, match="names no file of questions"):
        read_vqa(str(annotations), config())
    with pytest.raises(ValueError, match="has no list `questions`"):
        read_vqa(str(write(tmp_path / "x.json", {"data_type": "mscoco", "data_subtype": "val2014"})), config())
    with pytest.raises(ValueError, match="does not say which of COCO's pictures"):
        read_vqa(str(write(tmp_path / "x.json", {"questions": []})), config())


# --------------------------------------------------------------------------- NLVR2


def test_nlvr2_finds_both_pictures_and_groups_a_statements_pairs(tmp_path: Path) -> None:
    for name in ("train/53/train-10-0", "dev/dev-20-0", "dev/dev-20-1"):
        picture(tmp_path / f"images/{name}-img0.png")
        picture(tmp_path / f"images/{name}-img1.png")
    train = lines(tmp_path / "train.json", [nlvr2_line("train-10-0-0", directory=53)])
    dev = lines(
        tmp_path / "dev.json",
        [
            nlvr2_line("dev-20-0-1", left_url="http://a/x.jpg", right_url="http://a/y.jpg"),
            nlvr2_line("dev-20-1-1", label="False"),
            nlvr2_line("dev-20-3-1"),
            nlvr2_line("dev-20"),
            nlvr2_line("dev-20-1-0", label="perhaps"),
        ],
    )
    settings = config(root=str(tmp_path / "images"))
    (statement,) = read_nlvr2(str(train), settings).records
    assert statement.images == tuple(str(tmp_path / f"images/train/53/train-10-0-img{side}.png") for side in (0, 1))
    listing = read_nlvr2(str(dev), settings)
    assert [(record.id, record.label, record.group) for record in listing.records] == [
        ("dev-20-0-1", True, "dev-20-1"),
        ("dev-20-1-1", False, "dev-20-1"),
    ]
    assert listing.records[0].image_ids == ("http://a/x.jpg", "http://a/y.jpg")
    assert listing.records[1].image_ids == ("dev-20-1-img0.png", "dev-20-1-img1.png")
    assert reasons(listing) == {
        f"{dev}:3": "picture missing",
        f"{dev}:4": "identifier wrong",
        f"{dev}:5": "label unknown",
    }
    (flat,) = read_nlvr2(str(train), config(root=str(tmp_path / "images/train/53"))).records
    assert flat.images == statement.images


# --------------------------------------------------------------------------- RefCOCO, RefCOCO+, RefCOCOg


def test_refcoco_gives_each_phrase_its_box_proposals_and_split(tmp_path: Path) -> None:
    folder = refcoco(tmp_path)
    write(folder / "dets.json", {"0": [[0, 0, 1, 1, 0.9]], "2": [[1, 1, 2, 2, 0.8], [0, 0, 6, 4, 0.1]]})
    settings = config(source="refcoco", path=str(folder), root=str(tmp_path / "images"))
    sources = {split: open_layout(read_refcoco, settings, split) for split in SPLITS}
    assert {split: [(r.id, r.part) for r in source.records] for split, source in sources.items()} == {
        "train": [("40/0", "train"), ("40/1", "train")],
        "validation": [("41/10", "val"), ("41/11", "val")],
        "test": [("42/20", "testA"), ("42/21", "testA"), ("43/30", "testB"), ("43/31", "testB")],
    }
    record = sources["test"].record(1)
    assert record == Referring(
        id="42/21",
        image=str(tmp_path / "images/train2014/COCO_train2014_000000000002.jpg"),
        phrase="fox 1",
        image_id="COCO_train2014_000000000002.jpg",
        box=(2.0, 0.5, 2.0, 3.0),
        proposals=((1.0, 1.0, 2.0, 2.0), (0.0, 0.0, 6.0, 4.0)),
        ref_id="42",
        part="testA",
    )
    assert sources["test"].picture(record).size == (6, 4)
    assert sources["train"].least_side is None, "boxes count the pixels of the whole picture"


@pytest.mark.parametrize("key", ["box", "bbox"])
def test_refcoco_reads_detections_as_a_list_and_files_by_name(tmp_path: Path, key: str) -> None:
    folder = refcoco(tmp_path)
    boxes = [{"image_id": 0, key: [0, 0, side, 1], "score": 0.5, "category_id": 1} for side in (1, 2)]
    boxes_file = write(tmp_path / "boxes.json", boxes)
    paths = f"{folder / 'refs(unc).p'}, {folder / 'instances.json'}, {boxes_file}"
    listing = read_refcoco(paths, config(root=str(tmp_path / "images")))
    assert listing.records[0].proposals == ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 2.0, 1.0))
    assert listing.records[2].proposals == ()


def test_refs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = refcoco(tmp_path)
    file = folder / "refs(unc).p"
    refs = pickle.loads(file.read_bytes())
    refs[0]["ann_id"] = 99
    refs[1]["sentences"] = []
    refs[2]["split"] = "minival"
    del refs[3]["image_id"]
    file.write_bytes(pickle.dumps([*refs, "ref"]))
    write(folder / "dets.json", {"0": [[0, 0, 1, 0]]})
    listing = read_refcoco(str(folder), config(root=str(tmp_path / "images")))
    assert listing.records == []
    assert reasons(listing) == {
        f"{file}[0], sentence 0": "not in instances.json",
        f"{file}[0], sentence 1": "not in instances.json",
        f"{file}[1], sentence 0": "key missing",
        f"{file}[2], sentence 0": "split unknown",
        f"{file}[2], sentence 1": "split unknown",
        f"{file}[3], sentence 0": "key missing",
        f"{file}[3], sentence 1": "key missing",
        f"{file}[4], sentence 0": "not an object",
    }


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    folder = refcoco(tmp_path)
    mark = tmp_path / "it ran"
    (folder / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": Evil(mark)}], protocol=protocol))
    with pytest.raises(
        ValueError, match=r"refs\(unc\)\.p is not a pickle of plain data: .*mkdir, which could run code"
    ):
        read_refcoco(str(folder), config())
    assert not mark.exists()


def test_even_a_harmless_class_and_broken_bytes_are_refused(tmp_path: Path) -> None:
    folder = refcoco(tmp_path)
    whole = pickle.dumps([{"ref_id": 1}])
    for content in (pickle.dumps(Path("x")), pickle.dumps({1, 2}, protocol=2), whole[:-4], b"", b"plain text"):
        (folder / "refs(unc).p").write_bytes(content)
        with pytest.raises(ValueError, match="is not a pickle of plain data"):
            read_refcoco(str(folder), config())


def test_a_folder_of_refcoco_that_lacks_a_file_says_which(tmp_path: Path) -> None:
    folder = refcoco(tmp_path)
    (folder / "refs(google).p").write_bytes(pickle.dumps([]))
    with pytest.raises(ValueError, match=r"one file of refs, and has refs\(google\)\.p, refs\(unc\)\.p"):
        read_refcoco(str(folder), config())
    with pytest.raises(ValueError, match=r"has no instances\.json"):
        read_refcoco(str(folder / "refs(unc).p"), config())
    (folder / "refs(google).p").unlink()
    (folder / "refs(unc).p").write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not a list"):
        read_refcoco(str(folder), config())
    write(folder / "dets.json", {"0": [5]})
    with pytest.raises(ValueError, match=r"dets\.json: the boxes of picture 0"):
        read_refcoco(str(folder), config())
    write(folder / "dets.json", [{"image_id": 0}])
    with pytest.raises(ValueError, match=r"dets\.json\[0\] is no detection"):
        read_refcoco(str(folder), config())


# --------------------------------------------------------------------------- Visual Genome


def test_visual_genomes_regions_are_captions_of_their_picture(tmp_path: Path) -> None:
    picture(tmp_path / "VG_100K/1.jpg")
    picture(tmp_path / "VG_100K_2/2.jpg")
    region = {"width": 82, "height": 139, "image_id": 1, "y": 57, "x": 421}
    file = write(
        tmp_path / "region_descriptions.json",
        [
            {"id": 1, "regions": [region | {"region_id": 1382, "phrase": "the clock is green"}]},
            {"id": 2, "regions": [region | {"region_id": n, "phrase": text} for n, text in ((7, "a dog"), (8, " "))]},
            {"id": 3, "regions": [region | {"region_id": 9, "phrase": "a cat"}]},
            {"id": 4},
        ],
    )
    listing = read_visual_genome(str(file), config())
    assert listing.records == [
        Record("vg/1382", str(tmp_path / "VG_100K/1.jpg"), ("the clock is green",), "vg/1"),
        Record("vg/7", str(tmp_path / "VG_100K_2/2.jpg"), ("a dog",), "vg/2"),
    ]
    assert reasons(listing) == {
        f"{file}[1], regions[1]": "caption empty",
        f"{file}[2], regions[0]": "picture missing",
        f"{file}[3]": "key missing",
    }


def test_visual_genomes_questions_have_one_answer_of_half_weight(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    qa = {"image_id": 1, "a_objects": [], "q_objects": []}
    answers = {986768: "Green.", 986769: "."}
    qas = [qa | {"qa_id": n, "question": "What colour is the clock?", "answer": text} for n, text in answers.items()]
    file = write(tmp_path / "question_answers.json", [{"id": 1, "qas": qas}])
    listing = read_visual_genome(str(file), config())
    (question,) = listing.records
    assert (question.id, question.image, question.image_id) == ("vg/986768", str(tmp_path / "1.jpg"), "vg/1")
    assert question.targets == (("green", 0.5),)
    assert reasons(listing) == {f"{file}[0], qas[1]": "answer empty"}


# --------------------------------------------------------------------------- SBU, Conceptual Captions, img2dataset


def test_sbu_reads_both_of_its_forms_alike(tmp_path: Path) -> None:
    picture(tmp_path / "images/43_b0.jpg")
    urls = ["http://static.flickr.com/2723/43_b0.jpg", "http://static.flickr.com/2723/44_gone.jpg", "http://x/"]
    captions = ["My dog\u2028on the beach", "A car", "A tree"]
    both = write(tmp_path / "sbu.json", {"image_urls": urls, "captions": captions, "user_ids": ["a", "b", "c"]})
    addresses = write(tmp_path / "urls.txt", "\n".join(urls) + "\n")
    captions_file = write(tmp_path / "captions.txt", "\n".join(captions) + "\n")
    for paths, first in ((str(both), both), (f"{addresses},{captions_file}", addresses)):
        listing = read_sbu(paths, config(root=str(tmp_path / "images")))
        path = str(tmp_path / "images/43_b0.jpg")
        assert listing.records == [Record(f"{first}[0]", path, (captions[0],), "43_b0.jpg")]
        assert reasons(listing) == {f"{first}[1]": "picture missing", f"{first}[2]": "address wrong"}
    write(captions_file, "only one\n")
    with pytest.raises(ValueError, match="3 addresses, but 1 captions"):
        read_sbu(f"{addresses},{captions_file}", config())
    with pytest.raises(ValueError, match="has no list `image_urls`"):
        read_sbu(str(write(tmp_path / "x.json", {})), config())


@pytest.mark.parametrize("address_first", [False, True])
def test_conceptual_captions_finds_pictures_by_row_and_counts_the_lost(tmp_path: Path, address_first: bool) -> None:
    urls = [f"https://example.org/{n}.jpg" for n in range(5)]
    rows = [[url, f"caption {n}"] if address_first else [f"caption {n}", url] for n, url in enumerate(urls)]
    picture(tmp_path / "pictures/00000/000000000.jpg")
    for number, name in ((1, f"1_{zlib.crc32(urls[1].encode())}"), (3, "3_12345")):
        Image.new("RGB", (6, 4)).save(tmp_path / "pictures" / name, format="JPEG")
        assert number == int(name.partition("_")[0])
    picture(tmp_path / "pictures/00000/4.png")
    write(tmp_path / "pictures/2.txt", "no picture")
    file = tmp_path / "captions.tsv"
    content = "\n".join("\t".join(row) for row in rows).encode() + b"\n\xff\tx\na\tb\tc\n"
    file.write_bytes(content)
    settings = config(path=str(file), root=str(tmp_path / "pictures"))
    source = open_layout(read_conceptual, settings, "train")
    assert [(record.captions[0], record.image_id) for record in source.records] == [
        ("caption 0", urls[0]),
        ("caption 1", urls[1]),
        ("caption 4", urls[4]),
    ]
    assert [source.picture(record).size for record in source.records] == [(6, 4)] * 3
    assert {error.record: error.reason for error in source.skipped} == {
        f"{file}:3": "picture missing",
        f"{file}:4": "picture of another address",
        f"{file}:6": "line is not UTF-8",
        f"{file}:7": "row wrong",
    }


def jpeg(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(stream, "JPEG")
    return stream.getvalue()


def img2dataset(folder: Path, shards: bool) -> Path:
    """Writes four samples: one whole, one captioned in its metadata, one not fetched, one with broken metadata."""
    metadata = {"caption": "from metadata", "url": "http://a/0.jpg", "key": "000000000", "status": "success"}
    failed = metadata | {"status": "failed_to_download", "error_message": "HTTP Error 404", "url": "http://a/2.jpg"}
    files = {
        "000000000.jpg": jpeg(50),
        "000000000.txt": b"a fox",
        "000000000.json": json.dumps(metadata).encode(),
        "000000001.jpg": jpeg(200),
        "000000001.json": json.dumps(metadata | {"url": "http://a/1.jpg"}).encode(),
        "000000002.txt": b"gone",
        "000000002.json": json.dumps(failed).encode(),
        "000000003.jpg": jpeg(0),
        "000000003.json": b"{",
    }
    write(folder / "00000_stats.json", {"count": 4, "successes": 3})
    if shards:
        with tarfile.open(folder / "00000.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (folder / "00000").mkdir(exist_ok=True)
            (folder / "00000" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_img2datasets_output_is_read_from_folders_and_from_shards(tmp_path: Path, shards: bool) -> None:
    folder = img2dataset(tmp_path, shards)
    source = open_layout(read_img2dataset, config(path=str(folder)), "train")
    key = "00000.tar/" if shards else "00000/"
    assert [(record.id, record.captions, record.image_id) for record in source.records] == [
        (f"{key}000000000", ("a fox",), "http://a/0.jpg"),
        (f"{key}000000001", ("from metadata",), "http://a/1.jpg"),
    ]
    shades = [source.picture(record).getpixel((0, 0)) for record in source.records]
    assert shades == [(50, 50, 50), (200, 200, 200)]
    assert {error.record: str(error) for error in source.skipped} == {
        f"{key}000000002": f"{key}000000002: picture missing (HTTP Error 404)",
        f"{key}000000003": str(source.skipped[1]),
    }
    assert source.skipped[1].reason == "metadata is not JSON"
    part = folder / ("00000.tar" if shards else "00000")
    assert len(read_img2dataset(str(part), config()).records) == 2


@pytest.mark.parametrize("inside", [100, -512])
def test_a_shard_that_ends_early_is_named_and_its_whole_samples_are_kept(tmp_path: Path, inside: int) -> None:
    """The shard is cut in the second picture, or between two members, which tar readers do not notice."""
    shard = img2dataset(tmp_path, shards=True) / "00000.tar"
    with tarfile.open(shard) as archive:
        cut = archive.getmember("000000001.jpg").offset_data + inside
    shard.write_bytes(shard.read_bytes()[:cut])
    listing = read_img2dataset(str(tmp_path), config())
    assert (str(shard), "shard broken") in reasons(listing).items()
    assert [record.captions for record in listing.records] == [("a fox",)]


def test_shards_of_one_name_in_two_folders_are_both_read(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        img2dataset(tmp_path / part, shards=True)
    listing = read_img2dataset(str(tmp_path), config())
    assert [record.id for record in listing.records] == [f"{p}/00000.tar/00000000{n}" for p in "ab" for n in (0, 1)]
    with pytest.raises(ValueError, match=r"data\.root says nothing here"):
        read_img2dataset(str(tmp_path), config(root="elsewhere"))


def test_a_picture_in_a_shard_survives_a_line_of_json(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path, shards=True)
    listing = read_img2dataset(str(folder), config())
    file = lines(tmp_path / "list.jsonl", [to_entry(record) for record in listing.records])
    source = open_layout(read_jsonl, config(path=str(file)), "train")
    assert source.skipped == ()
    assert source.picture(source.record(1)).getpixel((0, 0)) == (200, 200, 200)
    gone = {"image": f"{folder}/99999.tar@512+10", "caption": "x"}
    assert [e.reason for e in read_jsonl(str(lines(file, [gone])), config()).skipped] == ["picture missing"]


# --------------------------------------------------------------------------- every layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_says_what_it_wants_where_there_is_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.source={name} needs data\.path"):
        open_source(config(source=name), "train")
    with pytest.raises(ValueError, match=rf"absent.*data\.source={name} reads"):
        open_source(config(source=name, path=str(tmp_path / "absent")), "train")


def test_several_lists_are_read_one_after_the_other_each_beside_its_pictures(tmp_path: Path) -> None:
    for folder in ("vqa", "genome, too"):
        picture(tmp_path / folder / "a.png")
    question = {"image": "a.png", "question": "Who?"}
    one = lines(tmp_path / "vqa/train.jsonl", [{"id": "1", **question}, {"id": "2", **question}])
    two = lines(tmp_path / "vqa/val.jsonl", [{"id": "1", **question}])
    three = lines(tmp_path / "genome, too/qa.jsonl", [{"id": "4", **question}])
    four = lines(tmp_path / "vqa/captions.jsonl", [{"id": "3", "image": "a.png", "caption": "x"}])
    source = open_source(config(source="jsonl", path=f"{one},{two}, {four}"), "train", Question)
    assert [record.id for record in source.records] == ["1", "2"]
    assert [(e.record, e.reason) for e in source.skipped] == [
        (f"{two}, 1", "id repeated"),
        (f"{four}, 3", "another task"),
    ]
    alone = open_source(config(source="jsonl", path=str(three)), "train", Question)
    assert [record.image for record in alone.records] == [str(tmp_path / "genome, too/a.png")]


def test_several_lists_keep_the_splits_of_each(tmp_path: Path) -> None:
    files = []
    for number, name in enumerate(["coco", "flickr"]):
        file = karpathy(tmp_path / name, coco=not number)
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["imgid"] += 5 * number
        files.append(write(file.parent / "images/dataset.json", content))
    settings = config(source="karpathy", path=",".join(map(str, files)))
    ids = {split: [record.id for record in open_source(settings, split).records] for split in SPLITS}
    assert ids == {"train": ["1", "2", "6", "7"], "validation": ["3", "8"], "test": ["0", "5"]}


@pytest.mark.parametrize("name", ["albef", "karpathy", "visual_genome", "sbu", "vqa"])
@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("3", "is not an? (list|object)"), ("\xff", "JSON")])
def test_a_file_that_is_no_such_list_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    file = tmp_path / "list.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"list\.json.*{words}"):
        LAYOUTS[name](str(file), config())


def test_a_layout_of_another_task_is_refused_before_training(tmp_path: Path) -> None:
    settings = config(source="vqa", path=str(vqa_questions(tmp_path, "val2014", [900])), root=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"data\.source=vqa holds questions; this task needs captions"):
        open_source(settings, "train")
    assert len(open_source(settings, "train", Question)) == 1
