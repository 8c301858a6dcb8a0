"""Tests the errors that `diptych data` reports, that conversion loses nothing, and that samples are shown whole."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.apps.report.samples import render
from diptych.cli import data as verb
from diptych.data.convert import write_splits
from diptych.data.sources.files import open_layout, read_splits
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.listing import SourceListing
from diptych.data.tokenizer import SPECIAL, Tokenizer
from diptych.data.validate import Check, validate
from diptych.metrics.vqa import normalise_answer
from diptych.schema import SPLITS, DataConfig, Split

FILES: dict[Split, str] = {"train": "path", "validation": "validation_path", "test": "test_path"}
LABELS = ("contradiction", "neutral", "entailment")


def picture(file: Path, shade: int) -> str:
    Image.new("RGB", (6, 4), (shade % 256, shade // 256, 7)).save(file)
    return file.name


def entailments(folder: Path, split: Split, count: int = 6) -> list[dict[str, Any]]:
    """Writes sound records of a split, each with its own picture."""
    first = 1000 * SPLITS.index(split)
    return [
        {
            "id": f"{split}{number}",
            "image": picture(folder / f"{split}{number}.png", first + number),
            "hypothesis": f"hypothesis {number}",
            "label": LABELS[number % 3],
        }
        for number in range(count)
    ]


def split_files(folder: Path, **entries: list[dict[str, Any]]) -> DataConfig:
    """Writes three JSONL files of sound records, except for the splits that are passed."""
    paths = {}
    for split, key in FILES.items():
        lines = entries.get(split) or entailments(folder, split)
        paths[key] = str(folder / f"{split}.jsonl")
        Path(paths[key]).write_text("\n".join(map(json.dumps, lines)))
    return DataConfig(source="jsonl", **paths)


def check(config: DataConfig, open_pictures: bool = True) -> Check:
    return validate(read_splits(read_jsonl, config), config, open_pictures)


def test_sound_data_is_ready_and_counted(tmp_path: Path) -> None:
    report = check(split_files(tmp_path))
    assert report.ready
    assert (report.errors, report.notes) == ((), ())
    assert [(s.split, s.records, s.pictures, s.texts, s.bad) for s in report.splits] == [
        (split, 6, 6, 6, ()) for split in SPLITS
    ]
    assert "contradiction 33.3%, entailment 33.3%, neutral 33.3%" in report.text()
    assert report.text().endswith("\ntraining can start")


def test_broken_and_missing_pictures_are_counted_by_record(tmp_path: Path) -> None:
    """A small training set of 13 tolerates three bad records, as the loader does, but not four."""
    train = entailments(tmp_path, "train", 12)
    (tmp_path / "train0.png").write_bytes(b"no picture")
    (tmp_path / "train1.png").unlink()
    train.append({**train[0], "id": "again", "hypothesis": "the same broken picture"})
    config = split_files(tmp_path, train=train)
    report = check(config)
    assert report.ready
    assert [(e.record, e.reason) for e in report.splits[0].bad] == [
        (f"{config.path}:2", "picture missing"),
        ("train0", "not a picture"),
        ("again", "not a picture"),
    ]
    assert report.splits[0].records == 10
    (tmp_path / "train2.png").write_bytes(b"")
    worse = check(config)
    assert worse.errors == ("train: 4 records cannot be used; data.bad_share allows 3",)
    assert not worse.ready
    assert worse.text().endswith("training cannot start: 1 error")
    assert check(config, open_pictures=False).ready, "without opening them, broken pictures are not found"


def test_evaluation_tolerates_no_broken_picture(tmp_path: Path) -> None:
    config = split_files(tmp_path)
    (tmp_path / "test3.png").write_bytes(b"GIF89a")
    assert check(config).errors == ("test: 1 record cannot be used; evaluation tolerates 0",)


def test_a_drawn_split_goes_on_without_its_broken_pictures(tmp_path: Path) -> None:
    train = entailments(tmp_path, "train", 40)
    config = split_files(tmp_path, train=train)
    drawn = DataConfig(source="jsonl", path=config.path)
    held = read_splits(read_jsonl, drawn)["test"]
    assert held.drawn
    Path(held.records[0].image).write_bytes(b"no picture")
    assert check(drawn).ready


def test_pictures_that_splits_share_are_found_by_name_and_by_content(tmp_path: Path) -> None:
    test = entailments(tmp_path, "test")
    test[0]["image"] = "train4.png"
    (tmp_path / "copy.png").write_bytes((tmp_path / "test1.png").read_bytes())
    train = entailments(tmp_path, "train")
    train.append({"id": "copied", "image": "copy.png", "hypothesis": "x", "label": "neutral"})
    config = split_files(tmp_path, train=train, test=test)
    assert check(config).errors == ("train and test share 2 pictures: test1.png (the same as copy.png), train4.png",)
    assert check(config, open_pictures=False).errors == ("train and test share 1 picture: train4.png",)


def test_what_validation_shares_with_test_is_a_note(tmp_path: Path) -> None:
    test = entailments(tmp_path, "test")
    entailments(tmp_path, "validation")
    test[0] |= {"image": "validation0.png", "id": "validation1"}
    report = check(split_files(tmp_path, test=test))
    assert report.ready
    assert report.notes == (
        "validation and test share 1 picture: validation0.png",
        "validation and test share 1 id: validation1",
    )


def test_copies_in_a_drawn_split_are_a_note(tmp_path: Path) -> None:
    train = entailments(tmp_path, "train", 40)
    drawn = DataConfig(source="jsonl", path=split_files(tmp_path, train=train).path)
    parts = read_splits(read_jsonl, drawn)
    copy, original = (Path(parts[split].records[0].image) for split in ("validation", "train"))
    copy.write_bytes(original.read_bytes())
    report = check(drawn)
    assert report.ready
    assert report.notes == (f"train and validation share 1 picture: {copy.name} (the same as {original.name})",)


def test_texts_ids_and_labels_are_looked_at(tmp_path: Path) -> None:
    train = [entry for entry in entailments(tmp_path, "train", 30) if entry["label"] != "entailment"]
    train = [entry for number, entry in enumerate(train) if entry["label"] == "neutral" or number < 4]
    train[2]["hypothesis"] = " ".join(["word"] * 31)
    train[3]["hypothesis"] = "?!"
    train.append({**train[0], "id": "same again"})
    train.append({**train[0], "hypothesis": "of the same id"})
    config = split_files(tmp_path, train=train)
    report = check(config)
    assert report.ready
    assert [(e.record, e.reason) for e in report.splits[0].bad] == [
        (f"{config.path}:4", "hypothesis empty"),
        (f"{config.path}:{len(train)}", "id repeated"),
    ]
    long, repeated, absent, lopsided = report.notes
    assert absent.startswith("train: no record is labelled entailment")
    assert long == f"train: 1 record with texts of more than 30 words, which are cut: {train[2]['id']}"
    assert repeated == "train: 1 record saying what another one says: same again"
    assert lopsided.startswith("train: the labels are out of balance")


@pytest.mark.parametrize("label", LABELS)
def test_labels_that_are_all_the_same_leave_nothing_to_learn(tmp_path: Path, label: str) -> None:
    train = [entry | {"label": label} for entry in entailments(tmp_path, "train")]
    report = check(split_files(tmp_path, train=train))
    assert report.errors == (f"train: all 6 records are labelled {label}: nothing can be learnt from them",)
    assert not report.notes


def test_answers_that_are_all_the_same_are_noted(tmp_path: Path) -> None:
    train = [
        {"image": picture(tmp_path / f"a{n}.png", n), "question": f"Who is {n}?", "answers": [str(n), "no", "no"]}
        for n in range(6)
    ]
    report = check(split_files(tmp_path, train=train))
    assert report.ready
    assert (
        "train: the likeliest answer to all 6 questions is 'no': nothing else can be learnt from them" in report.notes
    )


def test_questions_to_learn_from_need_answers_and_phrases_to_find_boxes(tmp_path: Path) -> None:
    for split in SPLITS:
        entailments(tmp_path, split)
    questions = [{"image": "train0.png", "question": "Who?", "answers": ["me", "me", "you"]}]
    questions += [{"image": "train1.png", "question": "Where?"}]
    unanswered = [{"image": f"{split}0.png", "question": "Who?"} for split in SPLITS]
    config = split_files(tmp_path, train=questions, validation=unanswered[1:2], test=unanswered[2:])
    report = check(config)
    assert report.errors == ("train: 1 record without an answer to learn",)
    assert report.splits[0].labels == {"me": 1}
    phrases = [{"image": f"{split}0.png", "phrase": "the fox"} for split in SPLITS]
    boxed = {**phrases[1], "box": [0, 0, 2, 2]}
    config = split_files(tmp_path, train=phrases[:1], validation=[boxed], test=phrases[2:])
    assert check(config).errors == ("test: 1 record without a box to measure by",)


def test_an_empty_split_keeps_training_from_starting_unless_it_is_the_test(tmp_path: Path) -> None:
    config = split_files(tmp_path, validation=[{"image": "gone.png", "hypothesis": "x", "label": "neutral"}])
    assert "the validation split has no record that can be used" in check(config).errors
    config = split_files(tmp_path)
    Path(config.test_path or "").write_text("")
    report = check(config)
    assert report.ready
    assert report.notes == ("the test split is empty: the trained model cannot be measured on it",)


def test_what_cannot_be_used_is_counted_nowhere_else(tmp_path: Path) -> None:
    """All pictures of neutral hypotheses are broken, so the model would never learn what is neutral."""
    train = entailments(tmp_path, "train", 30)
    for entry in train[1::3]:
        (tmp_path / entry["image"]).write_bytes(b"no picture")
    report = check(split_files(tmp_path, train=train))
    assert any(note.startswith("train: no record is labelled neutral") for note in report.notes)
    assert report.splits[0].labels == {"contradiction": 10, "entailment": 10}
    assert (report.splits[0].pictures, report.splits[0].texts) == (20, 20)


def test_questions_without_a_word_of_an_answer_are_refused_and_blanks_beside_words_noted(tmp_path: Path) -> None:
    train = [
        {
            "id": f"q{number}",
            "image": picture(tmp_path / f"q{number}.png", number),
            "question": "Who?",
            "answers": answers,
        }
        for number, answers in enumerate(
            [["me"], ["you", " "], [""], ["\u200b", "\u200b"], ["me"], ["me"], ["me"], ["me"]]
        )
    ]
    report = check(split_files(tmp_path, train=train))
    assert [error.reason for error in report.splits[0].bad] == ["answer empty"] * 2
    assert report.splits[0].labels == {"me": 5, "you": 1}
    assert "train: 1 question with an answer without a word, which is left out: q1" in report.notes


def test_answers_are_read_as_people_write_them(tmp_path: Path) -> None:
    """One answer, numbers, and the objects of VQA v2 and VizWiz; anything else is named."""
    written: list[dict[str, Any]] = [
        {"answer": "red"},
        {"answers": "red"},
        {"answers": [3, 2.5, 1e6]},
        {"answers": [{"answer": "red", "answer_confidence": "yes"}, {"answer": 2}]},
        {},
        {"answers": [["red"]]},
        {"answer": True},
    ]
    image = picture(tmp_path / "a.png", 1)
    entries = [{"id": str(n), "image": image, "question": "Who?", **answers} for n, answers in enumerate(written)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, entries)))
    listing = read_jsonl(str(tmp_path / "q.jsonl"), DataConfig())
    assert [record.answers for record in listing.records] == [
        ("red",), ("red",), ("3", "2.5", "1000000"), ("red", "2"), (),
    ]  # fmt: skip
    assert [error.reason for error in listing.skipped] == ["wrong type"] * 2
    assert listing.skipped[0].detail.startswith("`answers` must be a text, a number")
    assert listing.skipped[1].detail.startswith("`answer` holds true or false")


def asked(folder: Path, **columns: list[Any]) -> tuple[str, ...]:
    """Returns what is noted about questions, of which the columns hold the values."""
    train = [
        {"image": picture(folder / f"q{number}.png", number), **dict(zip(columns, values, strict=True))}
        for number, values in enumerate(zip(*columns.values(), strict=True))
    ]
    config = split_files(folder, train=train)
    return validate(read_splits(read_jsonl, config), config, False, normalise=normalise_answer).notes


COLOURS = ["red", "blue", "pink", "grey"] * 3
QUESTIONS = [f"what colour is thing {number}?" for number in range(12)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"question": COLOURS, "answers": QUESTIONS}, "are they swapped?"),
        ({"question": COLOURS, "answers": [text.rstrip("?") for text in QUESTIONS]}, "are they swapped?"),
        (
            {"question": QUESTIONS, "answers": [f"{colour}, red, blue" for colour in COLOURS]},
            "It is read as one answer",
        ),
        (
            {"question": QUESTIONS, "answers": ["red", "Red", "RED", " red", "the red", "red."] * 2},
            "6 different answers",
        ),
        (
            {"question": QUESTIONS, "answers": [[c, "x"] for c in COLOURS], "weights": [[9, 1]] * 12},
            "above 1: they are",
        ),
        ({"question": QUESTIONS, "answer": list("ABCD") * 3, "choices": [COLOURS[:4]] * 12}, "letters or numbers of"),
        ({"question": QUESTIONS, "answer": [0, 1, 2, 3] * 3, "options": [COLOURS[:4]] * 12}, "letters or numbers of"),
    ],
)
def test_questions_that_are_not_meant_as_written_are_noted(
    tmp_path: Path, columns: dict[str, list[Any]], words: str
) -> None:
    assert words in " ".join(asked(tmp_path, **columns))


def test_questions_that_are_meant_as_written_are_not_noted(tmp_path: Path) -> None:
    mostly = [note for note in asked(tmp_path, question=QUESTIONS, answers=COLOURS) if "share" not in note]
    assert not mostly
    choices = asked(tmp_path, question=QUESTIONS, answer=list("1234") * 3, choices=[list("1234")] * 12)
    assert not any("letters or numbers" in note for note in choices)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"label": "neutral"},
            "`label` stands beside the captions and is not read: for entailment call the text `hypoth",
        ),
        (
            {"bbox": [1, 2, 3, 4]},
            "`bbox` stands beside the captions and is not read: for grounding call the text `phrase`",
        ),
        (
            {"question": "who?", "answers": ["me"]},
            "`question` and `answers` stand beside the captions and are not read",
        ),
        ({"label": "dog"}, ""),
    ],
)
@pytest.mark.parametrize("key", ["caption", "sentence"])
def test_what_belongs_to_another_task_and_stands_beside_captions_is_noted(
    tmp_path: Path, key: str, extra: dict[str, Any], words: str
) -> None:
    train = [{"image": picture(tmp_path / f"o{n}.png", n), key: f"thing number {n}", **extra} for n in range(9)]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, train)))
    if key == "sentence" and "question" in extra:
        return  # whose columns are refused, because nothing says that they hold captions
    notes = " ".join(read_jsonl(str(path), DataConfig()).notes)
    assert words in notes
    assert ("beside the captions" in notes) == bool(words)


def test_short_answers_of_conversations_are_noted(tmp_path: Path) -> None:
    for answer, noted in (("red", True), ("a red fox that sits in the snow", False)):
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
        entries = [{"image": picture(tmp_path / f"v{n}.png", n), "conversations": turns} for n in range(4)]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
        notes = " ".join(read_jsonl(str(tmp_path / "list.jsonl"), DataConfig()).notes)
        assert ("the questions of `conversations` are not read" in notes) == noted


def test_pairs_that_are_all_connected_are_said_to_need_other_files(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / f"p{number}.png", number)
    pairs = [
        {"images": [f"p{n}.png", f"p{(n + 1) % 12}.png"], "statement": f"statement {n}", "label": n % 2}
        for n in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    config = DataConfig(source="jsonl", path=str(tmp_path / "pairs.jsonl"))
    words = "are connected through pictures that they share"
    assert any(words in note and "data.validation_path" in note for note in check(config).notes)
    with pytest.raises(ValueError, match=f"the validation split is empty: .*{words}"):
        open_layout(read_jsonl, config, "validation")


def test_pairs_of_one_picture_are_noted(tmp_path: Path) -> None:
    train = [
        {"images": [picture(tmp_path / f"p{n}.png", n)] * 2, "statement": f"statement {n}", "label": n % 2}
        for n in range(6)
    ]
    assert any("6 of 6 pairs show one image twice" in note for note in check(split_files(tmp_path, train=train)).notes)


def captioned(folder: Path, captions: list[str]) -> DataConfig:
    train = [
        {"image": picture(folder / f"c{number}.png", number), "caption": text} for number, text in enumerate(captions)
    ]
    return split_files(folder, train=train)


def test_many_pictures_with_few_texts_are_noted(tmp_path: Path) -> None:
    notes = check(captioned(tmp_path, ["A cat."] * 10 + ["a dog"] * 10)).notes
    assert (
        "train: 20 pictures share 2 different texts, such as 'a cat' (10 pictures): 47.4% of the pairs of different "
        "pictures have the same text; task.ignore_true_texts=true takes these from the negatives"
    ) in notes
    (note,) = (note for note in check(captioned(tmp_path, ["a cat"] * 5)).notes if "pictures" in note)
    assert note.startswith("train: all 5 pictures have the same text ('a cat')")
    assert not check(captioned(tmp_path, [f"cat number {number}" for number in range(9)])).notes


def test_words_that_a_vocabulary_does_not_know_are_counted(tmp_path: Path) -> None:
    config = captioned(tmp_path, ["红色圆形", "绿色圆形", "a cat"])
    (note,) = (note for note in check(config).notes if note.startswith("train"))
    assert "2 records with texts in another script than Latin" in note
    known = Tokenizer([*SPECIAL, "a", "cat"])
    parts = read_splits(read_jsonl, config)
    (note,) = (note for note in validate(parts, config, tokenizer=known).notes if note.startswith("train"))
    assert "the vocabulary does not know 80.0% of the word pieces ([UNK]), as in '红色圆形'" in note


@pytest.mark.parametrize("opened", [True, False])
def test_files_that_differ_and_have_one_identity_are_noted(tmp_path: Path, opened: bool) -> None:
    train = [
        {"image": picture(tmp_path / f"d{number}.png", number), "caption": f"thing {number}", "image_id": number // 4}
        for number in range(24)
    ]
    copy = {"image": picture(tmp_path / "copy.png", 9), "caption": "a copy", "image_id": "c"}
    same = {"image": picture(tmp_path / "same.png", 9), "caption": "the same", "image_id": "c"}
    config = split_files(tmp_path, train=[*train, copy, same])
    (note,) = (note for note in check(config, opened).notes if "`image_id`" in note)
    assert note.startswith(f"train: {6 if opened else 7} `image_id`s of several files that differ, such as 0 of ")
    assert f"{tmp_path}/d0.png, {tmp_path}/d1.png" in note
    assert not any("`image_id`" in note for note in check(split_files(tmp_path), opened).notes)


def boxed(folder: Path, boxes: list[list[float]]) -> tuple[str, ...]:
    """Returns what is noted about the boxes of phrases, which are in pictures of 6 × 4 pixels."""
    train = [
        {"image": picture(folder / f"b{number}.png", number), "phrase": f"thing {number}", "bbox": box}
        for number, box in enumerate(boxes)
    ]
    return tuple(note for note in check(split_files(folder, train=train)).notes if "box" in note)


def test_boxes_that_are_not_meant_as_written_are_noted(tmp_path: Path) -> None:
    assert boxed(tmp_path, [[0, 0, 6, 4], [3, 2, 3, 2]]) == ()
    (corners,) = boxed(tmp_path, [[3, 2, 6, 4], [0, 0, 2, 2]])
    assert corners.startswith("train: 1 of 2 boxes leave their picture, such as [3, 2, 6, 4] in the 6 × 4 pixels of ")
    assert "all would fit as two corners" in corners
    (outside,) = boxed(tmp_path, [[0, 0, 6, 4], [90, 90, 2, 2]])
    assert "1 of 2 boxes leave" in outside
    assert "corners" not in outside
    (shares,) = boxed(tmp_path, [[0.5, 0.5, 0.2, 0.2]])
    assert "within 0..1" in shares
    (near,) = boxed(tmp_path, [[0.1 + n / 100, 0.1, 2, 2] for n in range(20)])
    assert near.startswith("train: in all 20 boxes the third number is larger than the first")
    assert boxed(tmp_path, [[3, 0.1, 2, 2], *([0.1 + n / 100, 0.1, 2, 2] for n in range(20))]) == ()
    assert boxed(tmp_path, [[0.1, 0.1, 2, 2]] * 20) == ()


def test_proposals_that_miss_their_boxes_are_noted(tmp_path: Path) -> None:
    train = [
        {
            "image": picture(tmp_path / f"b{n}.png", n),
            "phrase": f"a {n}",
            "box": [0, 0, 2, 2],
            "proposals": [[3, 2, 2, 2]],
        }
        for n in range(4)
    ]
    notes = check(split_files(tmp_path, train=train)).notes
    assert any(note.startswith("train: no proposal overlaps the box in 4 of 4 phrases") for note in notes)


# --------------------------------------------------------------------------- conversion and samples


def test_conversion_keeps_every_record_and_leads_to_its_pictures(tmp_path: Path) -> None:
    config = split_files(tmp_path)
    parts = read_splits(read_jsonl, config)
    said = write_splits(parts, tmp_path / "deep/er")
    assert f"data.path={tmp_path / 'deep/er/train.jsonl'}" in said
    paths = {key: str(tmp_path / f"deep/er/{split}.jsonl") for split, key in FILES.items()}
    again = DataConfig(source="jsonl", **paths)
    for split in SPLITS:
        ours, theirs = open_layout(read_jsonl, again, split), open_layout(read_jsonl, config, split)
        assert [(r.id, r.image_ids, r.texts) for r in ours.records] == [
            (r.id, r.image_ids, r.texts) for r in theirs.records
        ]
        assert [ours.picture(r).tobytes() for r in ours.records] == [
            theirs.picture(r).tobytes() for r in theirs.records
        ]
        first = json.loads((tmp_path / f"deep/er/{split}.jsonl").read_text().splitlines()[0])
        assert first["image"] == f"../../{split}0.png"


def test_conversion_leaves_drawn_splits_to_be_drawn_again(tmp_path: Path) -> None:
    config = split_files(tmp_path, train=[*entailments(tmp_path, "train", 30), {"image": "gone.png"}])
    drawn = DataConfig(source="jsonl", path=config.path)
    before = read_splits(read_jsonl, drawn)
    said = write_splits(before, tmp_path / "out")
    assert "30 records" in said
    assert "1 could not be used" in said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train.jsonl"]
    after = read_splits(read_jsonl, DataConfig(source="jsonl", path=str(tmp_path / "out/train.jsonl")))
    for split in SPLITS:
        assert {record.id for record in after[split].records} == {record.id for record in before[split].records}


def test_pictures_are_packed_once_each_into_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    train = entailments(tmp_path, "train", 12)
    train += [{**train[0], "id": "again", "hypothesis": "another about the same picture"}]
    config = split_files(tmp_path, train=train)
    write_splits(read_splits(read_jsonl, config), tmp_path / "out", shard_bytes=8 * 1024)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    members: list[tarfile.TarInfo] = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            members += archive.getmembers()
    assert [member.name for member in members] == [f"{number:09}.png" for number in range(12 + 6 + 6)]
    assert len(shards) == 3, "a picture takes 1 KiB with its header, and a shard holds eight"
    for file in tmp_path.glob("*.png"):
        file.unlink()
    again = DataConfig(source="jsonl", **{key: str(tmp_path / f"out/{s}.jsonl") for s, key in FILES.items()})
    assert check(again).ready
    source = open_layout(read_jsonl, again, "train")
    shades = [source.picture(record).getpixel((0, 0)) for record in source.records]
    assert shades == [(number, 0, 7) for number in [*range(12), 0]]


def test_nothing_to_convert_or_show_is_an_error_that_says_why(tmp_path: Path) -> None:
    parts: dict[Split, SourceListing] = {split: SourceListing() for split in SPLITS}
    with pytest.raises(ValueError, match="no record to write"):
        write_splits(parts, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no record to show"):
        render(parts, "nothing", 3, 0)


def test_samples_show_escaped_text_answers_boxes_and_what_is_broken(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (0, 0, 255)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    entries: dict[str, list[dict[str, Any]]] = {
        "train": [{"image": "a.png", "question": "<b>Who?</b>", "answers": ["me", "me", "you", "me"]}],
        "test": [{"image": "b.png", "question": "Where?"}],
    }
    entries["validation"] = [{"image": "a.png", "question": "When?", "answers": ["now"], "weights": [0.5]}]
    config = split_files(tmp_path, **entries)
    page = render(read_splits(read_jsonl, config), "my <data>", 3, 0)
    assert "<b>Who?" not in page
    assert "&lt;b&gt;Who?" in page
    assert "me (0.75), you (0.25)" in page
    assert "now (0.5)" in page
    assert "no answer known" in page
    assert "not a picture" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page loads nothing"


def test_samples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    parts = read_splits(read_jsonl, split_files(tmp_path, train=entailments(tmp_path, "train", 30)))
    pages = [render(parts, "x", 4, seed) for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count('class="tile"') == 12


# --------------------------------------------------------------------------- the command


def arguments(config: DataConfig) -> list[str]:
    return ["jsonl", str(config.path), "--validation", str(config.validation_path), "--test", str(config.test_path)]


def test_the_exit_status_of_validate_says_whether_training_can_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = split_files(tmp_path)
    verb.run(["validate", *arguments(config)])
    assert capsys.readouterr().out.endswith("training can start\n")
    (tmp_path / "validation0.png").write_bytes(b"no picture")
    verb.run(["validate", *arguments(config), "--fast"])
    with pytest.raises(SystemExit) as end:
        verb.run(["validate", *arguments(config)])
    assert end.value.code == 1
    assert "training cannot start" in capsys.readouterr().out


def test_convert_and_show_write_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = split_files(tmp_path)
    verb.run(["convert", *arguments(config), "--to", str(tmp_path / "out")])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{split}.jsonl" for split in SPLITS}
    verb.run(["convert", *arguments(config), "--to", str(tmp_path / "packed"), "--shards"])
    assert (tmp_path / "packed/pictures-00000.tar").is_file()
    verb.run(["show", *arguments(config), "--to", str(tmp_path / "page.html"), "--count", "2"])
    assert (tmp_path / "page.html").read_text().count('class="tile"') == 6
    assert str(tmp_path / "page.html") in capsys.readouterr().out


OVERWRITTEN = r"is one of the files that are read|is there already, and diptych did not write it"


@pytest.mark.parametrize(
    "call",
    [
        ["convert", "jsonl", "Q/train.jsonl", "--to", "Q"],
        ["convert", "jsonl", "Q/link.jsonl", "--to", "Q"],
        ["convert", "jsonl", "Q/other.jsonl", "--validation", "Q/other.jsonl", "--to", "Q"],
        ["convert", "jsonl", "own/train.jsonl", "--to", "own"],
        ["convert", "texts", "texts", "--to", "texts"],
        ["convert", "img2dataset", "Q/pictures-00000.tar", "--to", "Q", "--shards"],
        ["shard", "shards", "Q/train-00000.tar", "--to", "Q"],
        ["shard", "jsonl", "Q/other.jsonl", "--to", "Q"],
        ["show", "jsonl", "Q/train.jsonl", "--to", "Q/train.jsonl"],
        ["show", "jsonl", "Q/train.html", "--to", "Q/train.html"],
        ["show", "jsonl", "Q/train.jsonl", "--to", "Q/0.jpg"],
    ],
    ids=lambda call: " ".join(call[:4]),
)
def test_no_verb_overwrites_what_it_reads_or_what_diptych_did_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Q"
    folder.mkdir()
    captioned(folder, [f"a thing {number}" for number in range(12)])
    content = (folder / "train.jsonl").read_text()
    for name in ("train", "validation", "other"):
        (folder / f"{name}.jsonl").write_text(content)
    (folder / "link.jsonl").symlink_to("train.jsonl")
    (folder / "train.html").write_text(content)
    Image.new("RGB", (8, 8)).save(folder / "0.jpg")
    for name in ("train-00000", "pictures-00000"):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for number in range(2):
                (tmp_path / "text").write_text(f"a thing {number}")
                archive.add(folder / "0.jpg", f"{number:09}.jpg")
                archive.add(tmp_path / "text", f"{number:09}.txt")
    verb.run(["convert", "jsonl", "Q/other.jsonl", "--to", "own"])
    Path("texts").mkdir()
    Path("texts/train.jsonl").write_text("".join(f'{{"id": "{n}", "text": "word {n}"}}\n' for n in range(12)))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=OVERWRITTEN):
        verb.run(call)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {file for file in after if not file.name.endswith(".index")} == set(before)
    assert {file: after[file] for file in before} == before


def test_a_conversion_can_be_repeated(tmp_path: Path) -> None:
    config = split_files(tmp_path)
    call = ["convert", *arguments(config), "--to", str(tmp_path / "out"), "--shards"]
    verb.run(call)
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    verb.run(call)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no layout 'karpathi'\. Did you mean 'karpathy'\? Known: .*refcoco"):
        verb.run(["validate", "karpathi", str(tmp_path)])
