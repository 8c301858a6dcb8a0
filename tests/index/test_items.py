"""Checks what is read from a source: pictures at any depth, lines of any task, and what cannot be used."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from diptych.apps.index.items import read_items
from tests.index.sources import save_lines, save_picture, save_pictures


def test_a_folder_gives_its_pictures_in_any_depth_by_their_paths(tmp_path: Path) -> None:
    save_pictures(tmp_path / "photos", 3)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / ".hidden.png").write_text("nor this")
    items = read_items(tmp_path / "photos")
    assert [(item.id, item.kind) for item in items.items] == [(f"{n}.png", "picture") for n in ("0", "1", "inner/2")]
    assert all(items.file(item).is_file() for item in items.items)


def test_lines_of_every_task_give_their_pictures_once_and_their_texts(tmp_path: Path) -> None:
    for name in "abc":
        save_picture(tmp_path / f"{name}.png", ord(name))
    file = save_lines(
        tmp_path / "list.jsonl",
        [
            {"image": "a.png", "captions": ["a boat", "two dogs"]},
            {"id": "q1", "image": "./a.png", "question": "what is there"},
            {"image": "b.png", "image_id": "bee"},
            {"id": 7, "text": "a red fox"},
            {"id": "p", "images": ["a.png", "c.png"], "statement": "two dogs", "label": True},
        ],
    )
    items = read_items(file)
    assert [(item.id, item.kind) for item in items.items] == [
        ("a.png", "picture"), ("list.jsonl:1#1", "text"), ("list.jsonl:1#2", "text"), ("q1#1", "text"),
        ("bee", "picture"), ("7", "text"), ("c.png", "picture"), ("p#1", "text"),
    ]  # fmt: skip
    assert [item.content for item in items.items if item.kind == "text"][:2] == ["a boat", "two dogs"]
    assert items.skipped == []


def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", 0)
    save_picture(tmp_path / "b.png", 1)
    file = save_lines(
        tmp_path / "list.jsonl",
        [
            {"image": "a.png", "caption": "?!"},
            {"image": "gone.png", "caption": "a boat"},
            [1],
            {"id": "x", "text": "a boat"},
            {"id": "x", "text": "two dogs"},
            {"image": "b.png", "image_id": "a.png"},
            {"text": "zero \0 byte"},
            {"text": "half \ud800 character"},
        ],
    )
    with file.open("a") as stream:
        stream.write("{broken\n")
    items = read_items(file)
    assert {(error.record.partition(",")[0], error.reason) for error in items.skipped} == {
        ("list.jsonl:1", "text without words"), ("list.jsonl:2", "picture missing"), ("list.jsonl:3", "not an object"),
        ("list.jsonl:5", "id repeated"), ("list.jsonl:6", "id repeated"), ("list.jsonl:7", "a zero byte in it"),
        ("list.jsonl:8", "not Unicode"), ("list.jsonl:9", "line is not JSON"),
    }  # fmt: skip
    assert [item.id for item in items.items] == ["a.png", "list.jsonl:2#1", "x"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("metadata.jsonl", ("file_name", "text")),
        ("list.jsonl", ("image", "text")),
        ("list.jsonl", ("image", "prompt")),
        ("list.jsonl", ("img", "caption")),
        ("metadata.csv", ("file_name", "text")),
        ("list.json", ("image", "caption")),
    ],
)
def test_lists_are_read_by_the_rules_of_data(tmp_path: Path, name: str, keys: tuple[str, str]) -> None:
    """Each picture and its caption is told by the values, whatever the keys are called and the form of the file."""
    save_pictures(tmp_path, 3)
    rows = [(f"{number}.png" if number < 2 else "inner/2.png", f"a red fox {number}") for number in range(3)]
    lines = [{keys[0]: image, keys[1]: text} for image, text in rows]
    if name.endswith(".jsonl"):
        save_lines(tmp_path / name, lines)
    else:
        separated = "\n".join([",".join(keys), *(",".join(row) for row in rows)])
        (tmp_path / name).write_text(separated if name.endswith(".csv") else json.dumps(lines, indent=1))
    items = read_items(tmp_path / name, prefix="p/")
    assert [(item.id, item.content) for item in items.items if item.kind == "picture"] == [
        (f"p/{image}", image) for image, _ in rows
    ]
    assert [item.content for item in items.items if item.kind == "text"] == [text for _, text in rows]
    assert all(item.id.startswith(f"p/{name}") for item in items.items if item.kind == "text")
    assert all(items.file(item).is_file() for item in items.items if item.kind == "picture")
    assert items.skipped == []
    assert f"pictures from `{keys[0]}`, captions from `{keys[1]}`" in items.notes[0]


def test_paths_in_lines_lead_where_those_of_data_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "photos"))
    decomposed = unicodedata.normalize("NFD", "café.png")
    for number, name in enumerate(("0.png", "1.png", decomposed)):
        save_picture(tmp_path / "photos" / name, number)
    images = ["photos\\0.png", "~/1.png", f"photos/{unicodedata.normalize('NFC', decomposed)}"]
    file = save_lines(tmp_path / "list.jsonl", [{"image": image, "caption": "a fox"} for image in images])
    items = read_items(file, prefix="p/")
    assert items.skipped == []
    pictures = [item for item in items.items if item.kind == "picture"]
    assert [item.content for item in pictures] == ["photos/0.png", "photos/1.png", f"photos/{decomposed}"]
    assert [item.id for item in pictures] == ["p/photos/0.png", "p/~/1.png", f"p/{images[2]}"]


def test_a_list_that_leaves_a_choice_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "a.csv").write_text("first,second\n" + "\n".join(f"a fox {n},two red dogs {n}" for n in range(3)))
    with pytest.raises(ValueError, match=r"no column holds pictures(.|\n)*diptych data convert table"):
        read_items(tmp_path / "a.csv")


def test_a_source_without_anything_to_embed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"nothing to embed in .*empty: looked for .*\.png"):
        read_items(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no folder or file .*nowhere"):
        read_items(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the first that cannot be used: list\.jsonl:1"):
        read_items(save_lines(tmp_path / "list.jsonl", [{"image": "gone.png"}]))


def test_a_link_to_nothing_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    save_picture(tmp_path / "b.png", 0)
    (error,) = read_items(tmp_path).skipped
    assert str(error) == f"a.png: picture missing ({tmp_path / 'a.png'} is a link to a file that is not there)"
