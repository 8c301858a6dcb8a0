"""Tests which picture files sources read, in which order, and how they split them."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import skimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.catalog import find_layout
from diptych.data.loader import PairLoader, evaluation_items
from diptych.data.sources.albef import read_albef
from diptych.data.sources.files import FileSource, open_layout, open_split
from diptych.data.sources.folder import read_folder
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.listing import SourceListing, each
from diptych.data.tokenizer import Tokenizer
from diptych.schema import DataConfig, Split

open_folder = partial(open_layout, read_folder)
open_jsonl = partial(open_layout, read_jsonl)
open_albef = partial(open_layout, each(read_albef))

PHOTOS = Path(skimage.__file__).parent / "data"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def picture(file: Path, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade % 256, 0, 0)).save(file)


def reasons(source: FileSource) -> dict[str, str]:
    return {error.record: error.reason for error in source.skipped}


def config(path: Path | str, **changes: object) -> DataConfig:
    return DataConfig(path=str(path), **{"held_out": 0.0, **changes})  # type: ignore[arg-type]


# --------------------------------------------------------------------------- folder


def test_a_folder_pairs_each_picture_with_the_first_line_of_its_text(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\nsecond line\n")
    source = open_folder(config(tmp_path), "train")
    assert [(r.id, r.image_id, r.captions[0].strip()) for r in source.records] == [
        (name, name, f"caption of {name}") for name in ("a.JPG", "b.png", "deep/er/c.webp")
    ]
    assert source.skipped == ()
    assert [source.picture(source.record(n)).size for n in range(len(source))] == [(6, 4)] * 3
    (note,) = read_folder(str(tmp_path), config(tmp_path)).notes
    assert "only the first line is read of 3 texts with several, such as a.txt" in note


def test_pictures_without_text_and_texts_without_picture_are_named(tmp_path: Path) -> None:
    for name in ("good.png", "lonely.png", "blank.png", "latin.png"):
        picture(tmp_path / name)
    (tmp_path / "good.txt").write_text("\ufeffa fox", encoding="utf-8")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("Gebäude".encode("latin-1"))
    (tmp_path / "orphan.txt").write_text("nothing to see")
    (tmp_path / "notes.md").write_text("neither picture nor caption")
    for hidden in ("._good.png", ".cache/x.png", "__MACOSX/good.png"):
        picture(tmp_path / hidden)
    source = open_folder(config(tmp_path), "train")
    assert [record.captions for record in source.records] == [("a fox",)]
    assert reasons(source) == {
        "lonely.png": "picture without text",
        "blank.png": "caption empty",
        "latin.png": "text is not UTF-8",
        "orphan.txt": "text without picture",
    }


def test_a_captions_file_takes_the_place_of_the_texts(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "unnamed.png", "mute.png"):
        picture(tmp_path / name)
    lines = [
        {"image": "sub/b.png", "captions": ["one", "two"]},
        {"image": "a.png", "caption": "three"},
        {"image": "mute.png", "caption": ""},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.txt").write_text("not this one")
    source = open_folder(config(tmp_path), "train")
    assert [(record.image_id, record.captions) for record in source.records] == [
        ("sub/b.png", ("one", "two")),
        ("a.png", ("three",)),
    ]
    assert set(reasons(source).values()) == {"picture without text", "caption empty"}
    assert reasons(source)["unnamed.png"] == "picture without text"
    assert len(source.skipped) == 2


def test_a_folder_of_photographs_trains_and_says_what_it_skipped(tmp_path: Path) -> None:
    """Copies scikit-image's pictures: grey, palette, transparent, animated, real photographs; two are broken."""
    names = sorted(file.name for file in PHOTOS.iterdir() if file.suffix in (".png", ".jpg", ".gif"))
    for name in names:
        shutil.copy(PHOTOS / name, tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"a picture named {Path(name).stem.replace('_', ' ')}")
    whole = (tmp_path / "rocket.jpg").read_bytes()
    (tmp_path / "rocket.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "coins.png").write_bytes(b"")
    settings = DataConfig(source="folder", path=str(tmp_path), workers=0)
    train, validation, test = (open_folder(settings, split) for split in SPLITS)
    assert len(names) > 20
    assert len(train) + len(validation) + len(test) >= len(names) - 2
    assert min(len(validation), len(test)) >= 1
    tokenizer = Tokenizer.train([record.captions[0] for record in train.records], 300)
    pairs = PairLoader(train, tokenizer, settings, 32, 8, seed=0)
    batches = pairs.batches()
    for _ in range(pairs.steps_per_epoch * 3):
        loaded = next(batches)
        assert torch.isfinite(loaded.batch.pixels).all()
    named = {*pairs.ledger.bad, *reasons(validation), *reasons(test)}
    assert named == {"rocket.jpg", "coins.png"}
    assert len(list(evaluation_items(validation, DataConfig(), 32))) == len(validation)


# --------------------------------------------------------------------------- jsonl and ALBEF's lists


def test_jsonl_reads_the_schema_and_fills_in_what_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "pictures/a.png")
    lines = [
        {"id": "first", "image": "pictures/a.png", "captions": ["x", "y"], "image_id": "A", "clean": ["X", "Y"]},
        {"image": "./pictures/a.png", "caption": "z"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    first, second = open_jsonl(config(file), "train").records
    assert (first.id, first.captions, first.image_id, first.clean) == ("first", ("x", "y"), "A", ("X", "Y"))
    assert (second.id, second.captions, second.image_id) == (f"{file}:3", ("z",), "pictures/a.png")


def test_relative_pictures_start_beside_the_list_or_from_the_root_given(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/a.png")
    absolute = {"image": str(tmp_path / "elsewhere/a.png"), "caption": "x"}
    for opener, text in (
        (open_jsonl, json.dumps({"image": "a.png", "caption": "x"}) + "\n" + json.dumps(absolute)),
        (open_albef, json.dumps([{"image": "a.png", "caption": "x"}, absolute])),
    ):
        (tmp_path / "list").write_text(text)
        source = opener(config(tmp_path / "list", root=str(tmp_path / "elsewhere")), "train")
        assert [source.picture(record).size for record in source.records] == [(6, 4), (6, 4)]
        beside = opener(config(tmp_path / "list"), "train")
        assert [error.reason for error in beside.skipped] == ["picture missing"]


def test_albef_lists_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        picture(tmp_path / name)
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    first.write_text(
        json.dumps([{"image": "1.jpg", "caption": "a", "image_id": "x_7"}, {"image": "9.jpg", "caption": "b"}])
    )
    second.write_text(json.dumps([{"image": "2.jpg", "caption": ["c", "d"]}, {"image": "3.jpg", "caption": "!"}, 7]))
    source = open_albef(config(f"{first}, {second}"), "train")
    assert [(record.id, record.captions, record.image_id) for record in source.records] == [
        (f"{first}[0]", ("a",), "x_7"),
        (f"{second}[0]", ("c", "d"), "2.jpg"),
    ]
    assert reasons(source) == {
        f"{first}[1]": "picture missing",
        f"{second}[1]": "caption empty",
        f"{second}[2]": "not an object",
    }


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ('{"image": "1.jpg"}', "is not a list")])
def test_a_file_that_is_no_albef_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_albef(config(tmp_path / "list.json"), "train")


# --------------------------------------------------------------------------- splits


def _jsonl(folder: Path, image_ids: list[str]) -> Path:
    picture(folder / "a.png")
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"image": "a.png", "caption": "x", "image_id": name}) for name in image_ids))
    return file


def _drawn(file: Path, held_out: float = 0.1) -> dict[Split, set[str]]:
    settings = config(file, held_out=held_out)
    return {split: {r.image_id for r in open_jsonl(settings, split).records} for split in SPLITS}


def test_a_picture_is_in_one_split_only_with_all_of_its_captions(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(60)] * 3
    drawn = _drawn(_jsonl(tmp_path, names))
    assert sum(len(names) for names in drawn.values()) == 60
    assert set.union(*drawn.values()) == set(names)
    assert len(drawn["validation"]) == len(drawn["test"]) == 6
    records = sum(len(open_jsonl(config(tmp_path / "pairs.jsonl", held_out=0.1), split)) for split in SPLITS)
    assert records == len(names)


def test_no_order_of_the_file_changes_the_splits(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(60)]
    drawn = _drawn(_jsonl(tmp_path, names))
    assert _drawn(_jsonl(tmp_path, names[::-1])) == drawn


def test_a_few_more_pictures_move_hardly_any_between_splits(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(200)]
    before = _drawn(_jsonl(tmp_path, names))
    after = _drawn(_jsonl(tmp_path, [*names, "new1", "new2"]))
    moved = sum(len(before[split] - after[split]) for split in SPLITS)
    assert moved <= 4


@given(st.integers(4, 30), st.floats(0.001, 0.2))
def test_the_smallest_source_has_something_in_every_split(count: int, held_out: float) -> None:
    def read(path: str) -> SourceListing:
        listing = SourceListing()
        for number in range(count):
            listing.add({"image": __file__, "caption": "x", "image_id": number}, f"{path}:{number}", Path(), 30)
        return listing

    settings = DataConfig(path="made", held_out=held_out)
    assert len(open_split(read, settings, "train")) >= count / 2


def test_given_splits_are_read_whole_and_training_keeps_everything(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        for number in range(5):
            picture(tmp_path / name / f"{name}{number}.png")
            (tmp_path / name / f"{name}{number}.txt").write_text("x")
    settings = DataConfig(
        path=str(tmp_path / "train"), validation_path=str(tmp_path / "val"), test_path=str(tmp_path / "test")
    )
    for split, name in zip(SPLITS, ("train", "val", "test"), strict=True):
        assert [record.id for record in open_folder(settings, split).records] == [f"{name}{n}.png" for n in range(5)]


@pytest.mark.parametrize("stray", [False, True])
def test_folders_called_after_splits_divide_pairs_if_all_lie_in_them(tmp_path: Path, stray: bool) -> None:
    names = {"train": "train", "val": "validation", "Test": "test"}
    for name in names:
        for number in range(5):
            picture(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text("x")
    picture(tmp_path / "cover.png")  # without a text it is no pair
    if stray:
        (tmp_path / "cover.txt").write_text("x")
    listing = read_folder(str(tmp_path), DataConfig())
    expected = {f"{name}/{number}.png": split for name, split in names.items() for number in range(5)}
    assert listing.splits == ({} if stray else expected)
    assert len(listing.records) == 15 + stray


def test_an_empty_split_says_what_to_do(tmp_path: Path) -> None:
    file = _jsonl(tmp_path, ["p1", "p2", "p3"])
    with pytest.raises(ValueError, match=r"the validation split is empty: of 3 records .* data\.validation_path"):
        open_jsonl(config(file, held_out=0.05), "validation")
    with pytest.raises(ValueError, match=r"data\.held_out is 0\.7"):
        open_jsonl(config(file, held_out=0.7), "train")


def test_a_source_without_any_usable_pair_names_why(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"holds no usable record(.|\n)*a\.png: picture without text"):
        open_folder(config(tmp_path), "train")


@pytest.mark.parametrize("opener", [open_folder, open_jsonl, open_albef])
def test_a_missing_path_is_refused_in_words(tmp_path: Path, opener: object) -> None:
    assert callable(opener)
    with pytest.raises(ValueError, match=r"needs data\.path"):
        opener(DataConfig(source="folder"), "train")
    with pytest.raises(ValueError, match=r"no (file|folder) .*absent: data\.source="):
        opener(config(tmp_path / "absent"), "train")


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = open_jsonl(config(_jsonl(tmp_path, ["p1", "p2"])), "train")
    again = pickle.loads(pickle.dumps(source))
    assert again.records == source.records
    assert again.picture(again.record(0)).tobytes() == source.picture(source.record(0)).tobytes()


def test_names_meet_in_either_form_of_their_accents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS writes é as two characters; a list or a text file beside the picture may have it as one."""
    composed, split = "caf\u00e9", "cafe\u0301"
    photos = tmp_path / split
    photos.mkdir()
    for number, (name, other) in enumerate([(f"{split}1", f"{composed}1"), (f"{composed}2", f"{split}2")]):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(photos / f"{name}.png")
        (photos / f"{other}.txt").write_text(f"a cup {number}", encoding="utf-8")
    config = DataConfig(source="folder", path=str(tmp_path / composed))
    listing = find_layout("folder")(str(tmp_path / composed), config)
    assert [record.captions for record in listing.records] == [("a cup 0",), ("a cup 1",)]
    assert listing.skipped == []
    lines = [{"image": f"{composed}/{composed}1.png", "caption": "x"}, {"image": "~/gone.png", "caption": "x"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    listing = find_layout("jsonl")(str(tmp_path / "list.jsonl"), config)
    assert [record.images for record in listing.records] == [(str(photos / f"{split}1.png"),)]
    assert listing.skipped[0].detail == str(tmp_path / "home/gone.png")
