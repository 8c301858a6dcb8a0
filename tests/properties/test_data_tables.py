"""Tests that people's own lists are read: tables of any columns, data sets of Hugging Face, COCO's captions."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from diptych.catalog import LAYOUTS, open_source, read_splits
from diptych.cli.main import main
from diptych.data.columns import NoColumns, choose_columns, is_path
from diptych.data.pictures import open_picture
from diptych.data.record import BadRecord, Picture, PlainText
from diptych.data.sources.coco import read_coco_captions
from diptych.data.sources.folder import read_folder
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import read_table
from diptych.data.tables import open_table
from diptych.data.validate import validate
from diptych.data.written_lists import written_list
from diptych.schema import DataConfig
from tests.layouts import karpathy, lines, picture, write

COUNT = 12
CAPTIONS = [f"a fox, number {chr(97 + number)}" for number in range(COUNT)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of which each has its number as its shade."""
    for number in range(COUNT):
        picture(tmp_path / f"photos/{number:02}.png", number)
    return tmp_path / "photos"


def config(**changes: Any) -> DataConfig:
    return DataConfig(**{"held_out": 0.0, "workers": 0, **changes})


def shown(listing: SourceListing) -> dict[int, tuple[str, ...]]:
    """Returns the captions of each record by the number that its picture shows."""
    return {open_shade(record.image): record.captions for record in listing.records}


def open_shade(image: str) -> int:
    return open_picture(image, "").getpixel((0, 0))[0]


WHOLE = {number: (caption,) for number, caption in enumerate(CAPTIONS)}


def quoted(caption: str) -> str:
    return f'"{caption}"'


TABLES = {
    "excel.csv": "\ufeffDatei;Text\r\n" + "".join(f"{n:02}.png;{c}\r\n" for n, c in enumerate(CAPTIONS)),
    "pandas.csv": ",url,img,beschreibung\n"
    + "".join(f"{n},http://a/{n}.png,photos/{n:02}.png,{quoted(c)}\n" for n, c in enumerate(CAPTIONS)),
    "captions.txt": "image,caption\n" + "".join(f"{n:02}.png,{quoted(c)}\n" for n, c in enumerate(CAPTIONS)),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{n:02}.png| 0| {c}\n" for n, c in enumerate(CAPTIONS)),
    "results.token": "".join(f"{n:02}.png#0\t{c}\n" for n, c in enumerate(CAPTIONS)),
    "reversed.tsv": "".join(f"{c}\t{n:02}.png\n" for n, c in enumerate(CAPTIONS)),
    "windows.tsv": "pic\tsays\r\n" + "".join(f"photos\\{n:02}.png\t{c}\r\n" for n, c in enumerate(CAPTIONS)),
    "list.json": json.dumps([{"img": f"{n:02}.png", "says": c} for n, c in enumerate(CAPTIONS)]),
    "wrapped.json": json.dumps({"v": 1, "data": [{"img": f"{n:02}.png", "says": c} for n, c in enumerate(CAPTIONS)]}),
    "mapped.json": json.dumps({f"{n:02}.png": [c] for n, c in enumerate(CAPTIONS)}),
    "objects.json": json.dumps({f"{n:02}.png": {"says": c, "by": n} for n, c in enumerate(CAPTIONS)}),
    "numbers.csv": "id,price,productName\n" + "".join(f"{n:02},{n},{quoted(c)}\n" for n, c in enumerate(CAPTIONS)),
    "numbers.json": json.dumps({f"{n:02}": [c] for n, c in enumerate(CAPTIONS)}),
    "lines.jsonl": "".join(json.dumps({"file_name": f"{n:02}.png", "text": c}) + "\n" for n, c in enumerate(CAPTIONS)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_list_with_any_columns_gives_each_picture_its_own_caption(tmp_path: Path, pictures: Path, name: str) -> None:
    file = write(tmp_path / "photos" / name if "photos" not in TABLES[name] else tmp_path / name, TABLES[name])
    for layout in ("table", "auto"):
        source = open_source(config(source=layout, path=str(file)), "train")
        pairs = {source.picture(record).getpixel((0, 0))[0]: record.captions for record in source.records}
        assert pairs == WHOLE
        assert source.skipped == ()


def test_what_was_guessed_is_said_by_every_verb(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path / "captions.txt", TABLES["captions.txt"]))
    said = f"pictures from `image`, captions from `caption`, below {pictures}"
    for verb in (["validate"], ["convert", "--to", str(tmp_path / "to")], ["show", "--to", str(tmp_path / "s.html")]):
        assert main(["data", verb[0], "table", file, *verb[1:]]) == 0
        assert said in "".join(capsys.readouterr())
    open_source(config(source="table", path=file), "train")
    assert said in capsys.readouterr().err
    converted = read_jsonl(str(tmp_path / "to/train.jsonl"), config())
    assert shown(converted) == WHOLE


def test_rows_of_one_picture_are_one_record_with_several_captions(tmp_path: Path, pictures: Path) -> None:
    rows = "".join(f"{n:02}.png#{k}\t{c} {k}\n" for n, c in enumerate(CAPTIONS) for k in range(5))
    listing = read_table(str(write(tmp_path / "photos/x.token", rows)), config())
    assert [record.captions for record in listing.records] == [tuple(f"{c} {k}" for k in range(5)) for c in CAPTIONS]
    entries: list[object] = [{"file": f"{n:02}.png", "says": [c, c]} for n, c in enumerate(CAPTIONS)]
    listing = read_jsonl(str(lines(tmp_path / "photos/x.jsonl", entries)), config())
    assert [record.captions for record in listing.records] == [(c, c) for c in CAPTIONS]
    columns = "image,caption_1,caption_2\n" + "".join(f'{n:02}.png,"{c}","{c}!"\n' for n, c in enumerate(CAPTIONS))
    listing = read_table(str(write(tmp_path / "photos/x.csv", columns)), config())
    assert [record.captions for record in listing.records] == [(c, f"{c}!") for c in CAPTIONS]


def test_a_column_of_splits_divides_and_validation_is_drawn_where_it_names_none(tmp_path: Path, pictures: Path) -> None:
    rows = [f'{n:02}.png,"{c}",{"test" if n < 4 else "train"}\n' for n, c in enumerate(CAPTIONS)]
    file = write(tmp_path / "photos/x.csv", "filename,raw,split\n" + "".join(rows))
    parts = read_splits(config(source="table", path=str(file), held_out=0.25))
    assert {split: len(part) for split, part in parts.items()} == {"train": 6, "validation": 2, "test": 4}
    assert {open_shade(record.image) for record in parts["test"].records} == {0, 1, 2, 3}


def test_columns_are_taken_only_for_what_they_hold(tmp_path: Path, pictures: Path) -> None:
    rows = "".join(f"{n:02}.png\tm{n}.png\t{c}\tin German {c}\n" for n, c in enumerate(CAPTIONS))
    path = str(write(tmp_path / "photos/x.tsv", "image\tmask\tenglish\tgerman\n" + rows))
    with pytest.raises(ValueError, match=r"`english`, `german` all hold texts .*data\.caption_column=english"):
        read_table(path, config())
    listing = read_table(path, config(caption_column="German"))
    assert shown(listing) == {n: (f"in German {c}",) for n, c in enumerate(CAPTIONS)}
    assert len(read_table(path, config(caption_column="english,german")).records[0].captions) == 2
    for wrong, words in (
        ({"caption_column": "mask"}, "the column holds no texts, but paths of pictures"),
        ({"image_column": "english"}, "the column holds no pictures and no paths"),
        ({"image_column": "photo"}, "there is no such column, only `image`, `mask`, `english`, `german`"),
    ):
        with pytest.raises(ValueError, match=words):
            read_table(path, config(**{"caption_column": "english", **wrong}))
    addresses = "caption,url\n" + "".join(f'"{c}",http://a/{n}.png\n' for n, c in enumerate(CAPTIONS))
    with pytest.raises(ValueError, match=r"`url` holds web addresses\. Fetch them first"):
        read_table(str(write(tmp_path / "x.csv", addresses)), config())


def test_two_columns_of_pictures_without_a_usual_name_leave_a_choice() -> None:
    rows = [{"left": "a.png", "right": "b.png", "text": "a fox"}]
    with pytest.raises(NoColumns, match=r"`left`, `right` all hold pictures: choose one"):
        choose_columns(["left", "right", "text"], rows)


def test_a_broken_row_is_named_and_loses_no_other(tmp_path: Path, pictures: Path) -> None:
    good = [f'{n:02}.png,"{c}"\n' for n, c in enumerate(CAPTIONS)]
    good[3] = f'03.png,"{CAPTIONS[3]}\nover two lines"\n'
    rows = [*good[:2], '01.png,"never closed\n', *good[2:], "05.png,a, b\n", '06.png,a 5" disk\n']
    listing = read_table(str(write(tmp_path / "photos/x.csv", "image,caption\n" + "".join(rows))), config())
    assert len(listing.records) == COUNT
    captions = shown(listing)
    assert captions[3] == (f"{CAPTIONS[3]}\nover two lines",)
    assert captions[6] == (CAPTIONS[6], 'a 5" disk')
    assert [str(error).partition("x.csv:")[2] for error in listing.skipped] == [
        "4: row wrong (a quotation mark is not closed)",
        "16: row wrong (3 columns instead of 2: a text that holds commas needs quotation marks)",
    ]


def test_flickrs_row_without_its_bar_is_named(tmp_path: Path, pictures: Path) -> None:
    file = write(tmp_path / "results.csv", TABLES["results.csv"] + "03.png| 4   a row that lost its bar .\n")
    listing = read_table(str(file), config())
    assert len(listing.records) == COUNT
    assert [error.reason for error in listing.skipped] == ["row wrong"]


def test_a_path_may_hold_blanks_and_a_sentence_is_no_path() -> None:
    assert is_path("my photos/Screenshot 2024 at 10.png")
    assert is_path("photos\\a.JPG")
    assert not is_path("http://example.org/a.jpg")
    assert not is_path("a fox")


# --------------------------------------------------------------------------- Hugging Face


def test_imagefolder_is_read_with_its_metadata_and_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 8)):
        folder = tmp_path / "data" / split
        numbers = range(first, 8 if split == "train" else COUNT)
        for number in numbers:
            picture(folder / f"{number:02}.png", number)
        rows = "".join(f'{n:02}.png,"{CAPTIONS[n]}"\n' for n in numbers)
        write(folder / "metadata.csv", "file_name,text\n" + rows)
    picture(tmp_path / "data/train/forgotten.png")
    parts = read_splits(config(source="folder", path=str(tmp_path / "data")))
    pairs = [shown(parts[split]) for split in ("train", "test")]
    assert pairs == [{n: WHOLE[n] for n in range(8)}, {n: WHOLE[n] for n in range(8, COUNT)}]
    assert [(e.record, e.reason) for e in parts["train"].skipped] == [("train/forgotten.png", "picture without text")]


@pytest.mark.parametrize("keys", [("file_name", "text"), ("image", "text"), ("image", "caption")])
def test_captions_of_a_folder_may_have_other_keys(tmp_path: Path, pictures: Path, keys: tuple[str, str]) -> None:
    lines = [json.dumps({keys[0]: f"{n:02}.png", keys[1]: caption}) for n, caption in enumerate(CAPTIONS)]
    write(pictures / "captions.jsonl", "\n".join(lines))
    listing = read_folder(str(pictures), config())
    assert shown(listing) == WHOLE
    assert listing.skipped == []


def test_lines_with_a_caption_and_with_a_text_stand_in_one_file(pictures: Path) -> None:
    keys = ("caption", "text")
    lines = [json.dumps({"image": f"{n:02}.png", keys[n % 2]: caption}) for n, caption in enumerate(CAPTIONS)]
    listing = read_jsonl(str(write(pictures / "list.jsonl", "\n".join(lines))), config())
    assert shown(listing) == WHOLE
    assert listing.skipped == []


def test_metadata_in_json_lines_takes_the_place_of_texts(tmp_path: Path, pictures: Path) -> None:
    write(pictures / "metadata.jsonl", TABLES["lines.jsonl"])
    listing = read_folder(str(pictures), config())
    assert shown(listing) == WHOLE
    assert listing.skipped == []


def table_of_pictures() -> pa.Table:
    def png(shade: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (6, 4), (shade, 0, 0)).save(stream, "PNG")
        return stream.getvalue()

    return pa.table(
        {
            "photo": [{"bytes": png(number), "path": None} for number in range(COUNT)],
            "alt": [[caption, f"{caption}!"] for caption in CAPTIONS],
            "label": list(range(COUNT)),
        }
    )


BOTH = {number: (caption, f"{caption}!") for number, caption in enumerate(CAPTIONS)}


def test_pictures_in_parquet_are_unpacked_once(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = table_of_pictures()
    pyarrow.parquet.write_table(pa.concat_tables([content, content]), tmp_path / "x.parquet", row_group_size=5)
    listing = read_table(str(tmp_path / "x.parquet"), config())
    assert "are unpacked into" in capsys.readouterr().err
    assert shown(listing) == {n: both * 2 for n, both in BOTH.items()}
    again = read_table(str(tmp_path / "x.parquet"), config(cache=str(tmp_path / "elsewhere")))
    assert [record.image_id for record in again.records] == [record.image_id for record in listing.records]
    capsys.readouterr()
    read_table(str(tmp_path / "x.parquet"), config())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
    ],
)
def test_a_folder_of_parquet_files_has_the_splits_of_their_names(
    tmp_path: Path, training: str, validation: str
) -> None:
    content = table_of_pictures()
    for name, rows in ((training, content.slice(0, 9)), (validation, content.slice(9))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(rows, tmp_path / name)
    parts = read_splits(config(source="table", path=str(tmp_path)))
    assert [len(parts[split]) for split in ("train", "validation")] == [9, 3]


def save(folder: Path, content: pa.Table) -> None:
    """Writes what `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), content.schema) as writer:
        writer.write_table(content, max_chunksize=5)
    write(folder / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})


@pytest.mark.parametrize("layout", ["datasets", "auto"])
def test_a_saved_data_set_is_read_with_its_splits(tmp_path: Path, layout: str) -> None:
    content = table_of_pictures()
    save(tmp_path / "all/train", content.slice(0, 8))
    save(tmp_path / "all/test", content.slice(8))
    write(tmp_path / "all/dataset_dict.json", {"splits": ["train", "test"]})
    parts = read_splits(config(source=layout, path=str(tmp_path / "all")))
    pairs = [shown(parts[split]) for split in ("train", "test")]
    assert pairs == [{n: BOTH[n] for n in range(8)}, {n: BOTH[n] for n in range(8, COUNT)}]
    save(tmp_path / "one", content)
    source = open_source(config(source=layout, path=str(tmp_path / "one")), "train")
    assert len(source) == COUNT


def test_missing_packages_are_named_with_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(table_of_pictures(), tmp_path / "x.parquet")
    for package in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"is Parquet, which needs pyarrow: pip install 'diptych\[datasets\]'"):
        read_table(str(tmp_path / "x.parquet"), config())
    with pytest.raises(ValueError, match=r"install datasets: pip install 'diptych\[datasets\]'"):
        open_source(config(source="datasets", path="someone/photos"), "train")


def test_the_real_package_reads_what_a_name_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    content = datasets.Dataset(table_of_pictures())
    content.save_to_disk(str(tmp_path / "saved"))
    assert len(open_source(config(source="datasets", path=str(tmp_path / "saved")), "train")) == COUNT
    splits = {"train": content.select(range(8)), "test": content.select(range(8, COUNT))}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, part: datasets.DatasetDict(splits))
    parts = read_splits(config(source="datasets", path="someone/photos"))
    pairs = {open_shade(r.image): r.captions for part in parts.values() for r in part.records}
    assert pairs == BOTH


# --------------------------------------------------------------------------- COCO's own captions


def coco(folder: Path) -> Path:
    images = [{"id": 7 * n, "file_name": f"{n:012}.png"} for n in range(COUNT)]
    annotations = [
        {"id": 9 * n + k, "image_id": 7 * n, "caption": f"{c} {k}"} for k in range(2) for n, c in enumerate(CAPTIONS)
    ]
    for number in range(COUNT):
        picture(folder / f"train2017/{number:012}.png", number)
    content = {"info": {"year": 2017}, "licenses": [{"id": 1}], "images": images, "annotations": annotations}
    return write(folder / "annotations/captions_train2017.json", content)


def test_cocos_captions_are_read_and_their_pictures_found_beside_them(tmp_path: Path) -> None:
    listing = read_coco_captions(str(coco(tmp_path)), config())
    assert shown(listing) == {n: (f"{c} 0", f"{c} 1") for n, c in enumerate(CAPTIONS)}
    assert "pictures are taken from" in listing.notes[0]


def test_captions_that_vizwiz_marks_as_rejected_are_left_out_and_counted(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["is_rejected"] = annotation["caption"].endswith(" 1")
    listing = read_coco_captions(str(write(file, content)), config())
    assert shown(listing) == {n: (f"{c} 0",) for n, c in enumerate(CAPTIONS)}
    assert any(f"{COUNT} captions are marked as rejected" in note for note in listing.notes)
    assert listing.skipped == []


def test_cocos_captions_and_pictures_that_do_not_meet_are_named(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"].pop()
    content["annotations"] = [*content["annotations"][1:COUNT], {"image_id": 7}, "x"]
    write(file, content)
    listing = read_coco_captions(str(file), config(root=str(tmp_path / "train2017")))
    assert len(listing.records) == COUNT - 2
    assert sorted(error.reason for error in listing.skipped) == [
        "caption missing", "key missing", "not an object", "picture missing",
    ]  # fmt: skip


# --------------------------------------------------------------------------- what a file is


@pytest.mark.parametrize("layout", [*LAYOUTS, "texts", "shards"])
def test_a_file_of_another_layout_is_answered_with_the_way_to_read_it(
    tmp_path: Path, pictures: Path, layout: str
) -> None:
    for name, fitting in (("captions.txt", "table"), ("annotations/captions_train2017.json", "coco_captions")):
        file = coco(tmp_path) if "coco" in fitting else write(tmp_path / "photos" / name, TABLES[name])
        if layout in (fitting, "pictures"):
            continue
        kind = {"kind": PlainText} if layout == "texts" else {}
        with pytest.raises(ValueError, match=f"data.source={fitting}") as caught:
            open_source(config(source=layout, path=str(file)), "train", **kind)
        assert str(file) in str(caught.value)
        with pytest.raises(ValueError, match=f"data.source={fitting}"):
            read_splits(config(source=layout, path=str(file)))


def test_a_folder_names_the_lists_that_lie_in_it(tmp_path: Path, pictures: Path) -> None:
    write(tmp_path / "captions.txt", TABLES["captions.txt"])
    write(tmp_path / "readme.txt", "nothing of interest\n")
    with pytest.raises(ValueError, match=r"it holds .*captions\.txt, a table separated by commas") as caught:
        read_splits(config(source="folder", path=str(tmp_path)))
    assert "readme.txt" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"conversations": [{"from": "human"}], "info": {}}', r"Nearest are table \(no column holds pictures"),
        ('{"images": [{"file": 1}], "other": [{"a": 1}]}', r"karpathy \(its images have no `sentences`\)"),
        ("", "an empty file, which no layout fits"),
        ("\x7fELF\x00\x00\x01\x00\x00\x00", "no text .*which no layout fits"),
    ],
)
def test_an_unknown_file_is_answered_with_the_two_nearest_layouts(tmp_path: Path, content: str, words: str) -> None:
    file = write(tmp_path / "x.json", content)
    for layout in ("auto", "jsonl", "table"):
        with pytest.raises(ValueError, match=words) as caught:
            read_splits(config(source=layout, path=str(file)))
        assert str(caught.value).count(") and ") == 1


OBJECT = '{\n "image": "00.png",\n "caption": "a fox"\n}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "a fox\nan owl\n", "give it a name in .txt, and read it with data.source=texts"),
        ("l.yaml", "- image: 00.png\n  caption: a fox\n", "give it a name in .txt"),
        ("l.csv", "00.png a fox\n01.png an owl\n", r"2 of the first 2 lines begin with the name .* with a tab between"),
        ("l.txt", "00.png a fox\n01.png an owl\n", r"2 of (the|its) first 2 lines begin with the name .* with a tab"),
        ("l.csv", "\n \n", "a file of blank lines"),
        ("l.jsonl", OBJECT * 3, "is not JSON: Extra data.* each object on a line of its own"),
        (
            "l.jsonl",
            "{'image': '00.png', 'caption': 'a fox'}\n" * 3,
            "is not JSON: .* each object on a line of its own",
        ),
        ("l.json", '[{"image": "00.png"},]', "is not JSON: .* Write it as one JSON list"),
    ],
)
@pytest.mark.parametrize("layout", ["auto", "table", "jsonl", "texts"])
def test_no_answer_leads_to_a_source_that_refuses_the_file(
    tmp_path: Path, layout: str, name: str, content: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        open_source(config(source=layout, path=str(write(tmp_path / name, content))), "train")
    assert "Read it with data.source=texts" not in str(caught.value)


def test_captions_of_mixed_kinds_are_read_if_the_column_is_named(tmp_path: Path, pictures: Path) -> None:
    texts = ["🦊", "1234", *CAPTIONS[2:]]
    rows = "".join(f'{n:02}.png,"{c}"\n' for n, c in enumerate(texts))
    file = str(write(pictures / "list.csv", "image,caption\n" + rows))
    with pytest.raises(ValueError, match=r"in `caption`, say so: data\.caption_column=caption"):
        read_table(file, config())
    assert set(shown(read_table(file, config(caption_column="caption")))) == set(range(COUNT))


CHAT = {
    "llava": ("conversations", "from", "value", ("human", "gpt")),
    "messages": ("messages", "role", "content", ("user", "assistant")),
}


def conversation(form: str, number: int, answers: list[str]) -> dict[str, Any]:
    """A row in which a picture is asked about as often as there are answers."""
    key, speaker, said, (asks, replies) = CHAT[form]
    turns = [turn for text in answers for turn in ({speaker: asks, said: "<image>"}, {speaker: replies, said: text})]
    return {"id": f"{number:02}", "image": f"{number:02}.png", key: turns}


@pytest.mark.parametrize("form", CHAT)
@pytest.mark.parametrize("layout", ["auto", "table"])
def test_the_answer_of_a_conversation_is_a_caption(
    tmp_path: Path, pictures: Path, form: str, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [conversation(form, n, [c]) for n, c in enumerate(CAPTIONS)]
    listing = read_splits(config(source=layout, path=str(write(tmp_path / "chat.json", json.dumps(rows)))))["train"]
    assert shown(listing) == WHOLE
    assert f"captions from the answers of `{CHAT[form][0]}`" in listing.notes[0]


def test_a_conversation_of_several_answers_holds_no_caption(tmp_path: Path, pictures: Path) -> None:
    rows = [conversation("llava", n, [c] if n else [c, "a fox"]) for n, c in enumerate(CAPTIONS)]
    rows.append({**rows[1], "conversations": [{"from": "gpt", "value": 7}]})
    listing = read_table(str(write(tmp_path / "chat.json", json.dumps(rows))), config())
    assert len(listing.records) == COUNT - 1
    assert [(error.reason, error.record.rsplit("/")[-1]) for error in listing.skipped] == [
        ("no caption", "chat.json[0]"),
        ("wrong type", f"chat.json[{COUNT}]"),
    ]


def test_a_message_in_parts_is_its_texts(tmp_path: Path, pictures: Path) -> None:
    parts = [[{"type": "image"}, {"type": "text", "text": caption}] for caption in CAPTIONS]
    rows = [{"image": f"{n:02}.png", "messages": [{"role": "assistant", "content": p}]} for n, p in enumerate(parts)]
    assert shown(read_table(str(write(tmp_path / "chat.json", json.dumps(rows))), config())) == WHOLE


def text_caps(number: int, caption: str) -> dict[str, Any]:
    return {
        "caption_str": caption, "caption_tokens": caption.split(), "reference_strs": [caption],
        "image_classes": ["Art"], "image_id": f"{number:02}", "image_path": f"train/{number:02}.png",
        "set_name": "train", "flickr_original_url": f"https://farm.example/{number}.jpg",
    }  # fmt: skip


def test_textcaps_captions_are_read_and_the_folder_of_another_name_is_pointed_out(tmp_path: Path) -> None:
    for number in range(COUNT):
        picture(tmp_path / f"train_images/{number:02}.png", number)
    content = {"dataset_name": "textcaps", "data": [text_caps(n, c) for n, c in enumerate(CAPTIONS)]}
    file = write(tmp_path / "TextCaps_0.1_train.json", json.dumps(content))
    listing = read_splits(config(source="auto", path=str(file)))["train"]
    assert any(
        f"Files of these names are in {tmp_path / 'train_images'}, but the list" in note for note in listing.notes
    )
    (tmp_path / "train").symlink_to("train_images")
    assert shown(read_splits(config(source="auto", path=str(file)))["train"]) == WHOLE


@pytest.mark.parametrize("layout", ["auto", "folder", "jsonl", "table"])
def test_folders_of_classes_are_answered_with_what_they_are_good_for(tmp_path: Path, layout: str) -> None:
    for number in range(COUNT):
        picture(tmp_path / f"photos/{('fox', 'owl')[number % 2]}/{number:02}.png", number)
    place = tmp_path / "photos"
    with pytest.raises(ValueError, match="12 pictures without texts") as caught:
        read_splits(config(source=layout, path=str(place)))
    assert f"2 folders (fox, owl) are classes, `diptych evaluate RUN --classes {place}`" in str(caught.value)
    assert "data.source=pictures" in str(caught.value)
    with pytest.raises(ValueError, match=r"metadata\.csv"):
        open_source(config(source=layout, path=str(place)), "train")


def test_pictures_without_texts_are_recognised_where_no_text_is_needed(tmp_path: Path, pictures: Path) -> None:
    assert len(open_source(config(source="auto", path=str(pictures)), "train", Picture)) == COUNT


def test_what_the_captions_lack_is_not_said_of_the_pictures(tmp_path: Path, pictures: Path) -> None:
    rows = [{"id": f"{n:02}", "image": f"{n:02}.png", "score": n} for n in range(COUNT)]
    with pytest.raises(ValueError, match="no column holds texts: `id` holds numbers"):
        read_table(str(write(tmp_path / "scores.json", json.dumps(rows))), config())


def test_a_layout_that_fits_is_not_argued_with(tmp_path: Path) -> None:
    file = karpathy(tmp_path, coco=False)
    with pytest.raises(ValueError, match="picture missing") as caught:
        open_source(config(source="karpathy", path=str(file), root=str(tmp_path / "nowhere")), "train")
    assert "Read it with" not in str(caught.value)
    assert len(open_source(config(source="auto", path=str(file), root=str(tmp_path / "images")), "train")) == 2


def test_a_table_trains_and_validates_as_any_other_source(tmp_path: Path, pictures: Path) -> None:
    settings = config(source="table", path=str(write(tmp_path / "x.tsv", TABLES["reversed.tsv"])), held_out=0.25)
    check = validate(read_splits(settings), settings)
    assert check.ready
    assert "note: " in check.text()
    assert check.text().endswith("training can start")


def test_records_of_another_task_whose_values_are_wrong_are_no_captions(tmp_path: Path) -> None:
    lines = [{"image": f"{number}.png", "phrase": "a red bar", "box": [3, 3, 0, 5]} for number in range(3)]
    (tmp_path / "phrases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listing = read_splits(DataConfig(source="jsonl", path=str(tmp_path / "phrases.jsonl")))["train"]
    assert not listing.records
    assert {error.reason for error in listing.skipped} == {"box wrong"}


# --------------------------------------------------------------------------- what looks like something else


@pytest.mark.parametrize(
    "write_list",
    [
        json.dumps,
        repr,
        lambda texts: f"[{' '.join(map(repr, texts))}]",
        lambda texts: repr(tuple(texts)),
        lambda texts: repr(np.array(texts, object)),
    ],
    ids=["JSON", "Python", "NumPy", "tuple", "array"],
)
def test_a_list_of_captions_that_was_written_into_a_cell_is_read_as_a_list(
    tmp_path: Path, pictures: Path, write_list: Any
) -> None:
    texts = ["a fox", 'it\'s "one", a fox']
    cells = [write_list(texts).replace('"', '""') for _ in range(COUNT)]
    rows = "".join(f'{number:02}.png,"{cell}"\n' for number, cell in enumerate(cells))
    listing = read_table(str(write(pictures / "list.csv", "image,captions\n" + rows)), config())
    assert set(shown(listing).values()) == {tuple(texts)}
    entries: list[object] = [{"image": f"{n:02}.png", "captions": write_list(texts)} for n in range(COUNT)]
    listing = read_jsonl(str(lines(pictures / "list.jsonl", entries)), config())
    assert set(shown(listing).values()) == {tuple(texts)}


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a fox | an owl", "12 of 12 captions hold bars between"),
        ("a fox; an owl", "hold semicolons between"),
        ("a fox <SEP> an owl", "hold <SEP> between"),
        ("a fox\nan owl", "hold line breaks between"),
        ("{'en': 'a fox', 'de': 'ein Fuchs'}", "are objects"),
        ("a fox, an owl", ""),
        ("a fox |", ""),
    ],
)
def test_captions_that_seem_to_be_several_are_said_to_be_read_as_one(pictures: Path, caption: str, words: str) -> None:
    entries: list[object] = [{"image": f"{n:02}.png", "caption": f"{caption}{'' if n else '.'}"} for n in range(COUNT)]
    rows = [f'{n:02}.png\t"{caption}"\n' for n in range(COUNT)]
    for file in (
        lines(pictures / "list.jsonl", entries),
        write(pictures / "list.tsv", "image\tcaption\n" + "".join(rows)),
    ):
        notes = read_splits(config(source="auto", path=str(file)))["train"].notes
        assert any("Each is read as one caption" in note for note in notes) == bool(words)
        assert not words or any(words in note for note in notes)


def test_a_text_in_brackets_is_no_list() -> None:
    for text in (
        "[sic] a fox",
        "['a'] and ['b']",
        "['a', b]",
        "[",
        "['a'" + " " * 100_000,
        "('a')",
        "(a, b)",
        "array('a')",
    ):
        assert written_list(text) == text


def test_a_row_with_a_list_of_one_picture_is_read_and_one_of_two_is_refused(tmp_path: Path) -> None:
    def images(count: int) -> list[list[dict[str, Any]]]:
        return [[{"bytes": png(number), "path": None}] * count for number in range(COUNT)]

    pa.parquet.write_table(pa.table({"images": images(1), "text": CAPTIONS}), tmp_path / "one.parquet")
    assert shown(read_table(str(tmp_path / "one.parquet"), config())) == WHOLE
    pa.parquet.write_table(pa.table({"images": images(2), "text": CAPTIONS}), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"two.parquet\[0\]: `images` holds 2 pictures, and nothing says which"):
        read_table(str(tmp_path / "two.parquet"), config())


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "PNG")
    return stream.getvalue()


def test_a_row_of_two_paths_is_said_to_hold_several_pictures(pictures: Path) -> None:
    names = sorted(file.name for file in pictures.iterdir() if file.suffix in (".jpg", ".png"))[:2]
    listing = read_jsonl(str(lines(pictures / "list.jsonl", [{"images": names, "sentence": "a fox"}] * 3)), config())
    assert not listing.records
    assert {error.reason for error in listing.skipped} == {"several pictures"}
    assert "names 2 pictures" in listing.skipped[0].detail


def test_names_without_a_suffix_are_no_pictures_where_no_file_has_them(tmp_path: Path, pictures: Path) -> None:
    rows = "".join(f"x{number},{caption!r}\n" for number, caption in enumerate(CAPTIONS)).replace("'", '"')
    with pytest.raises(ValueError, match="no column holds pictures or paths of pictures"):
        read_table(str(write(pictures / "list.csv", "id,text\n" + rows)), config())


def test_a_list_derived_from_coco_may_name_pictures_by_their_addresses(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"val2017/{number:012}.png", number)
    images = [{"id": n, "coco_url": f"http://images.cocodataset.org/val2017/{n:012}.png"} for n in range(4)]
    content = {"images": images, "annotations": [{"image_id": n, "caption": CAPTIONS[n]} for n in range(4)]}
    file = write(tmp_path / "annotations/captions.json", json.dumps(content))
    assert shown(read_coco_captions(str(file), config())) == {n: (CAPTIONS[n],) for n in range(4)}


@pytest.mark.parametrize("source", ["jsonl", "albef"])
def test_objects_that_name_several_splits_are_divided_by_them(tmp_path: Path, pictures: Path, source: str) -> None:
    splits = ["train", "val", "test", "train"]
    entries = [{"image": f"{n:02}.png", "caption": CAPTIONS[n], "split": splits[n]} for n in range(4)]
    text = "".join(map("{}\n".format, map(json.dumps, entries))) if source == "jsonl" else json.dumps(entries)
    parts = read_splits(config(source=source, path=str(write(pictures / f"list.{source}", text))))
    assert {split: sorted(shown(part)) for split, part in parts.items()} == {
        "train": [0, 3],
        "validation": [1],
        "test": [2],
    }
    assert any("splits from `split`" in note for note in parts["train"].notes)
    single = text.replace('"val"', '"train"').replace('"test"', '"train"')
    parts = read_splits(config(source=source, path=str(write(pictures / f"one.{source}", single))))
    assert sorted(shown(parts["train"])) == [0, 1, 2, 3]


def test_keys_that_are_not_read_are_named(tmp_path: Path, pictures: Path) -> None:
    entries = [{"image": f"{n:02}.png", "question": "what?", "multiple_choice_answer": "fox"} for n in range(4)]
    parts = read_splits(config(source="jsonl", path=str(lines(pictures / "list.jsonl", entries))))
    assert "list.jsonl: keys that are not read: `multiple_choice_answer`" in validate(parts, config()).text()


def test_a_table_of_questions_is_answered_with_the_form_that_is_read(tmp_path: Path, pictures: Path) -> None:
    rows = "".join(f"{n:02}.png,what is it?,fox\n" for n in range(4))
    with pytest.raises(ValueError, match=r"of another task than captions(.|\n)*data.source=jsonl"):
        read_splits(config(source="auto", path=str(write(pictures / "vqa.csv", "image,question,answer\n" + rows))))


def test_the_way_out_stands_before_the_faults(tmp_path: Path, pictures: Path) -> None:
    file = write(pictures / "captions.txt", TABLES["captions.txt"])
    with pytest.raises(ValueError, match="line is not JSON") as error:
        read_splits(config(source="jsonl", path=str(file)))
    first, second, *faults = str(error.value).split("\n")
    assert "holds no usable record" in first
    assert "Read it with data.source=table" in second
    assert faults


def test_a_table_of_addresses_between_commas_is_not_taken_for_conceptual_captions(tmp_path: Path) -> None:
    rows = "".join(f"http://a/{n}.jpg,{quoted(c)}\n" for n, c in enumerate(CAPTIONS))
    with pytest.raises(ValueError, match=r"`url` holds web addresses. Fetch them first"):
        read_splits(config(source="auto", path=str(write(tmp_path / "list.csv", "url,text\n" + rows))))


def test_a_file_of_one_object_of_lists_is_no_line(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    content = {"image_urls": [f"http://a/{number}.png" for number in range(4)], "captions": CAPTIONS[:4]}
    file = write(tmp_path / "sbu.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"as of SBU. Read it with data.source=sbu"):
        read_splits(config(source="table", path=str(file)))


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(write(tmp_path / "file", "")))
    pa.parquet.write_table(table_of_pictures(), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"unpacked into .*file/pictures, which failed \(.*\): name another folder by"):
        read_table(str(tmp_path / "a.parquet"), config())


def test_pictures_of_one_name_in_several_folders_are_several_pictures(tmp_path: Path) -> None:
    """Each folder of an imagefolder numbers its own pictures, and so may each of several lists."""
    for number in range(6):
        folder = tmp_path / ("train", "validation", "test")[number % 3]
        picture(folder / f"{number // 3}.png", number)
    for folder in ("train", "validation", "test"):
        names = sorted(file.name for file in (tmp_path / folder).glob("*.png"))
        lines(
            tmp_path / folder / "metadata.jsonl", [{"file_name": name, "text": f"a fox of {folder}"} for name in names]
        )
    settings = config(source="folder", path=str(tmp_path))
    parts = read_splits(settings)
    assert {record.image_id for listing in parts.values() for record in listing.records} == {
        f"{folder}/{name}.png" for folder in ("train", "validation", "test") for name in (0, 1)
    }
    assert not [error for error in validate(parts, settings).errors if "share" in error]
    one, two = (str(tmp_path / folder / "metadata.jsonl") for folder in ("train", "validation"))
    joined = read_splits(config(source="table", path=f"{one},{two}"))["train"]
    assert len({record.image_id for record in joined.records}) == 4
    apart = config(source="table", path=one, validation_path=two)
    assert not [error for error in validate(read_splits(apart), apart).errors if "share" in error]


def test_pictures_are_taken_from_the_folder_that_the_list_is_named_after(tmp_path: Path) -> None:
    for number, folder in enumerate(("train2017", "val2017")):
        picture(tmp_path / folder / "1.png", number)
    rows = "file,caption\n1.png,a fox\n"
    file = write(tmp_path / "annotations" / "captions_val2017.csv", rows)
    assert shown(read_table(str(file), config())) == {1: ("a fox",)}
    other = write(tmp_path / "annotations" / "list.csv", rows)
    with pytest.raises(ValueError, match=r"are in .*train2017 and in .*val2017: say by data.root"):
        read_table(str(other), config())


@pytest.mark.parametrize("form", ["csv", "coco"])
@pytest.mark.parametrize("own", [0, 5])
def test_pictures_of_a_folder_beside_take_the_place_of_no_own_ones(tmp_path: Path, own: int, form: str) -> None:
    """Folders that number their pictures have the same names for different ones."""
    for number in range(COUNT):
        picture(tmp_path / f"b/{number:02}.png", number + 100)
    for number in range(own):
        picture(tmp_path / f"a/{number:02}.png", number)
    if form == "csv":
        rows = "".join(f"{n:02}.png,{c}\n" for n, c in enumerate(CAPTIONS)).replace("fox, n", "fox n")
        file = write(tmp_path / "a/all.csv", "image,caption\n" + rows)
    else:
        images = [{"id": n, "file_name": f"{n:02}.png"} for n in range(COUNT)]
        content = {"images": images, "annotations": [{"image_id": n, "caption": c} for n, c in enumerate(CAPTIONS)]}
        file = write(tmp_path / "a/all.json", content)
    parts = read_splits(config(source="auto", path=str(file)))
    assert set(shown(parts["train"])) == set(range(own))
    assert len(parts["train"].skipped) == COUNT - own
    if not own:
        assert f"They are in {tmp_path / 'b'}: set data.root={tmp_path / 'b'}" in validate(parts, config()).text()


def test_a_few_own_pictures_and_most_in_a_folder_below_leave_a_choice(tmp_path: Path, pictures: Path) -> None:
    picture(tmp_path / "03.png", 100)
    file = write(
        tmp_path / "list.csv", "image;caption\n" + "".join(f"{n:02}.png;{c}\n" for n, c in enumerate(CAPTIONS))
    )
    with pytest.raises(ValueError, match=rf"such as 03.png, are in {tmp_path} and in {pictures}: say by data.root"):
        read_table(str(file), config())


def test_a_cell_without_a_value_is_no_caption(tmp_path: Path, pictures: Path) -> None:
    """pandas and databases write what is missing as a word, which would be trained on."""
    missing = dict(enumerate(["nan", "NaN", "NULL", "None", "<NA>", ""]))
    rows = [f"{n:02}.png;{missing.get(n, c)}\n" for n, c in enumerate(CAPTIONS)]
    listing = read_table(str(write(pictures / "list.csv", "file;text\n" + "".join(rows))), config())
    assert shown(listing) == {number: (caption,) for number, caption in enumerate(CAPTIONS) if number not in missing}
    assert {error.reason for error in listing.skipped} == {"caption empty"}
    assert len(listing.skipped) == len(missing)


@pytest.mark.parametrize("layout", ["auto", "table"])
def test_a_table_in_another_encoding_is_said_to_be_in_one(tmp_path: Path, pictures: Path, layout: str) -> None:
    content = "Datei;Text\n" + "".join(f"{n:02}.png;{c} – schön\n" for n, c in enumerate(CAPTIONS))
    (pictures / "list.csv").write_bytes(content.encode("cp1252"))
    with pytest.raises(ValueError, match=r"no row of .* can be read; the first: .*it looks like cp1252") as caught:
        read_splits(config(source=layout, path=str(pictures / "list.csv")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        (str.upper, "upper and lower case differ here"),
        ("C:\\Users\\me\\{}".format, "Files of these names are in .*photos. These paths are absolute"),
    ],
)
def test_names_of_another_system_are_said_to_be_such(
    tmp_path: Path, pictures: Path, spelling: Callable[[str], str], words: str
) -> None:
    rows = "".join(f"{spelling(f'{n:02}.png')};{c}\n" for n, c in enumerate(CAPTIONS))
    parts = read_splits(config(source="table", path=str(write(tmp_path / "list.csv", "file;text\n" + rows))))
    assert re.search(words, parts["train"].notes[0] + parts["train"].notes[-1])


def test_a_reason_is_said_once(tmp_path: Path, pictures: Path) -> None:
    file = write(
        pictures / "list.csv", "url;text\n" + "".join(f"http://a/{n}.png;{c}\n" for n, c in enumerate(CAPTIONS))
    )
    with pytest.raises(ValueError, match="Nearest are table") as caught:
        read_splits(config(source="table", path=str(file)))
    assert str(caught.value).count("holds web addresses") == 1


@pytest.mark.parametrize("header", ["image{}caption\n", ""])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "first", ["sep={}\n", "\ufeffsep={}\r\n", '"sep={}"\n', "# a comment\n", "# one\n\n#\n# two{}two\n"]
)
def test_lines_before_the_columns_are_none_of_their_rows(
    tmp_path: Path, pictures: Path, first: str, separator: str, header: str
) -> None:
    rows = "".join(f"{n:02}.png{separator}{c.replace(',', '')}\n" for n, c in enumerate(CAPTIONS))
    file = write(pictures / "list.csv", (first + header).replace("{}", separator) + rows)
    listing = read_table(str(file), config())
    assert shown(listing) == {n: (c.replace(",", ""),) for n, c in enumerate(CAPTIONS)}
    assert listing.skipped == []


@pytest.mark.parametrize("first", ["# image\tcaption\n", "#1 fox\t00.png\n"])
def test_a_row_that_begins_with_a_hash_may_be_none_of_a_comment(tmp_path: Path, pictures: Path, first: str) -> None:
    rows = "".join(f"{n:02}.png\t{c}\n" for n, c in enumerate(CAPTIONS))
    table = open_table(write(pictures / "list.tsv", first + rows))
    assert len(list(table.rows())) == COUNT + ("fox" in first)
    assert "comments" not in table.form


MARKED = [
    'a "fox"',
    "a fox\nand an owl",
    'a\tfox, "so"\tit is',
    '"a fox',
    '5" fox',
    '""',
    'owl"',
    'says "x"\nor "y"',
    "a\nb\n\nc",
]
"""Texts that csv and pandas put in quotation marks, and others."""


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "marks",
    [{}, {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL}],
    ids=["doubled", "behind backslashes"],
)
def test_texts_that_programs_put_in_quotation_marks_are_read_as_they_were(
    tmp_path: Path, separator: str, marks: dict[str, Any]
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, **marks)
    writer.writerows([["image", "caption", "by"], *([f"a\\{n}.png", text, "me"] for n, text in enumerate(MARKED))])
    table = open_table(write(tmp_path / "list.csv", stream.getvalue().replace("a\\\\", "a\\")))
    rows = [row if isinstance(row, BadRecord) else (row["image"], row["caption"]) for _, row in table.rows()]
    assert rows == [(f"a\\{n}.png", text) for n, text in enumerate(MARKED)]


def test_marks_between_tabs_that_enclose_no_cell_belong_to_the_text(tmp_path: Path) -> None:
    texts = ['a 5" fox', '"a fox', "a fox", 'fox"', '"owl', '"a" and "b"', 'so "it" is', '"', "a fox"]
    rows = "".join(f"{n}.png\t{text}\n" for n, text in enumerate(texts))
    table = open_table(write(tmp_path / "list.tsv", rows))
    assert [row if isinstance(row, BadRecord) else row["column 2"] for _, row in table.rows()] == texts


def test_texts_with_commas_that_no_marks_enclose_are_named(tmp_path: Path, pictures: Path) -> None:
    rows = "".join(f"{n:02}.png,{c}\n" for n, c in enumerate(CAPTIONS))
    with pytest.raises(ValueError, match="3 columns instead of 2: a text that holds commas needs quotation marks"):
        read_splits(config(source="auto", path=str(write(pictures / "list.csv", "image,caption\n" + rows))))
    rows = "".join(f"{n},{n:02}.png,{quoted(c)}\n" for n, c in enumerate(CAPTIONS))
    assert shown(read_table(str(write(pictures / "r.csv", "image,caption\n" + rows)), config())) == WHOLE
