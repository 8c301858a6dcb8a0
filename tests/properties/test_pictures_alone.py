"""Pictures without texts, from wherever they lie."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch

from diptych.apps.report.samples import render
from diptych.catalog import find_layout, open_source
from diptych.data.convert import write_splits
from diptych.data.entries import picture_from_entry, to_entry
from diptych.data.loader import PairLoader, evaluation_batches
from diptych.data.record import BadRecord, Picture, Record
from diptych.data.sources.files import read_splits
from diptych.data.tokenizer import Tokenizer
from diptych.data.validate import validate
from diptych.schema import DataConfig, ScenesConfig
from diptych.types import PictureBatch
from tests.layouts import karpathy, picture

WORDS = Tokenizer.train(["a word"], 40)
COUNT = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures without captions, a few levels deep."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    for number in range(COUNT):
        picture(place / ("more" if number % 2 else ".") / f"{number:02}.png", number)
    return place


def config(source: str, path: Path, **changes: object) -> DataConfig:
    return DataConfig(source=source, path=str(path), held_out=0.2, workers=0, **changes)  # type: ignore[arg-type]


def every_picture(given: DataConfig) -> list[str]:
    sources = [open_source(given, split, Picture) for split in ("train", "validation", "test")]
    records = [source.record(number) for source in sources for number in range(len(source))]
    assert {type(record) for record in records} == {Picture}
    return sorted(record.image_id for record in records)


@pytest.mark.parametrize("source", ["folder", "pictures"])
def test_a_folder_needs_no_captions(folder: Path, source: str) -> None:
    found = every_picture(config(source, folder))
    assert found == sorted(f"{'more/' * (number % 2)}{number:02}.png" for number in range(COUNT))


def test_lines_shards_and_folders_hold_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    lines = tmp_path / "list.jsonl"
    lines.write_text("".join(json.dumps({"image": str(file), "caption": "a word"}) + "\n" for file in files))
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as archive:
        for file in files:
            archive.add(file, f"{file.stem}.png")
    for source, path in [
        ("jsonl", lines),
        ("pictures", lines),
        ("img2dataset", shards),
        ("pictures", shards / "0.tar"),
    ]:
        given = config(source, path)
        assert len(every_picture(given)) == COUNT
        batch = next(PairLoader(open_source(given, "train", Picture), WORDS, given, 24, 4, 0).batches()).batch
        assert isinstance(batch, PictureBatch)
        assert batch.pixels.shape == (4, 3, 24, 24)


def test_a_picture_of_many_records_is_there_once(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    questions = [{"image": str(file), "question": f"what is {n}?"} for file in files for n in range(3)]
    lines = tmp_path / "questions.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in questions))
    assert len(every_picture(config("jsonl", lines))) == COUNT


def test_pictures_of_a_layout_with_captions(tmp_path: Path) -> None:
    given = DataConfig(source="karpathy", path=str(karpathy(tmp_path, coco=False)), root=str(tmp_path / "images"))
    assert every_picture(given) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_evaluation_reads_pictures_in_order(folder: Path) -> None:
    given = config("folder", folder)
    source = open_source(given, "validation", Picture)
    asked = list(evaluation_batches(source, WORDS, given, 24, 2))
    assert [record.id for one in asked for record in one.records] == [source.record(n).id for n in range(len(source))]
    assert all(isinstance(one.batch, PictureBatch) for one in asked)


def test_made_scenes_come_without_captions_and_know_those_that_have_them() -> None:
    given = DataConfig(source="scenes", scenes=ScenesConfig(sprites="shapes", count=20, evaluation_count=12), workers=0)
    pictures, pairs = open_source(given, "train", Picture), open_source(given, "train")
    for number in range(len(pictures)):
        alone, told = pictures.record(number), pairs.record(number)
        assert alone.image == told.image
        assert alone.image_id == told.image_id
        assert not alone.texts


def test_a_line_without_a_text_is_a_mistake_unless_pictures_are_wanted(folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "list.jsonl"
    lines.write_text("".join(json.dumps({"image": str(file)}) + "\n" for file in sorted(folder.rglob("*.png"))))
    assert len(every_picture(config("jsonl", lines))) == COUNT
    with pytest.raises(ValueError, match="key missing"):
        open_source(config("jsonl", lines), "train", Record)
    with pytest.raises(BadRecord, match="key missing"):
        picture_from_entry({"caption": "a word"}, "x")
    with pytest.raises(BadRecord, match="not an object"):
        picture_from_entry([], "x")


def test_pictures_can_be_validated_shown_and_converted(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    given = config("pictures", folder)
    parts = read_splits(find_layout("pictures"), given)
    check = validate(parts, given)
    assert "picture" in check.text()
    assert sum(split.pictures for split in check.splits) == COUNT  # those that can be used
    assert [error.reason for split in check.splits for error in split.bad] == ["not a picture"]
    assert render(parts, "photos", 4, 0).count("<figure") >= 4
    write_splits(parts, tmp_path / "written")
    again = config("pictures", tmp_path / "written" / "train.jsonl")
    assert len(read_splits(find_layout("pictures"), again)["train"].records) > COUNT // 2


def test_a_picture_survives_its_line() -> None:
    record = Picture("1", "a.png", "same")
    assert picture_from_entry(to_entry(record), "x") == record


def test_the_pixels_are_those_that_a_pair_would_show(folder: Path) -> None:
    given = config("folder", folder, crop=(1.0, 1.0), flip=0.0, randaugment=(0, 0))
    with pytest.raises(ValueError, match="picture without text"):
        open_source(given, "train")
    for file in folder.rglob("*.png"):
        file.with_suffix(".txt").write_text("a word")
    alone, told = (
        next(PairLoader(open_source(given, "train", kind), WORDS, given, 24, 4, 0).batches()).batch
        for kind in (Picture, Record)
    )
    assert torch.equal(alone.pixels, told.pixels)
