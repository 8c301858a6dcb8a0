"""Tests that written shards give the original records back, whenever the writing was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych.catalog import open_source
from diptych.cli.data import run
from diptych.data.record import Entailment, PairStatement, Picture, PlainText, Question, Record, Referring
from diptych.data.shards.cache import locked
from diptych.data.shards.writing import SplitSource, write_shards
from diptych.data.sources.jsonl import read_jsonl
from diptych.schema import DataConfig
from tests.shards import jpeg


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path, count: int, **more: Any) -> Path:
    """Writes a list of pictures with two captions each."""
    folder.mkdir()
    lines = []
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(
            {"image": f"{number}.jpg", "captions": [f"number {number}", f"again {number}"], "id": f"n{number}"}
        )
    file = folder / "list.jsonl"
    file.write_text("\n".join(json.dumps(line | more) for line in lines))
    return file


def opened(folder: Path, split: str = "train", kind: type = Record) -> Any:
    settings = DataConfig(source="shards", path=f"{folder}/{split}-*.tar", held_out=0.0)
    return open_source(settings, "train", kind)


def test_records_and_their_pictures_come_back_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pictures(tmp_path / "data", 23)
    run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out"), "--samples", "5", "--jobs", "2"])
    said = capsys.readouterr().out
    assert "5 of 5 shards written" in said
    assert "train: 23 samples" in said
    pattern = f"{tmp_path}/out/train-{{00000..00004}}.tar"
    assert f"data.source=shards data.path='{pattern}'" in said
    ours = open_source(DataConfig(source="shards", path=pattern, held_out=0.0), "train")
    theirs = open_source(DataConfig(source="jsonl", path=str(file), held_out=0.0), "train")
    assert [(r.id, r.captions, r.image_id) for r in map(ours.record, range(23))] == [
        (r.id, r.captions, r.image_id) for r in map(theirs.record, range(23))
    ]
    for index in range(23):
        assert ours.picture(ours.record(index)).tobytes() == theirs.picture(theirs.record(index)).tobytes()


def test_other_readers_find_the_picture_and_its_caption(tmp_path: Path) -> None:
    file = pictures(tmp_path / "data", 3)
    run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out"), "--jobs", "1"])
    with tarfile.open(tmp_path / "out/train-00000.tar") as archive:
        assert archive.getnames() == [f"{n:09}.{suffix}" for n in range(3) for suffix in ("jpg", "txt", "json")]
        content = archive.extractfile("000000002.jpg")
        assert content is not None
        assert content.read() == jpeg(2)
        caption = archive.extractfile("000000002.txt")
        assert caption is not None
        assert caption.read() == b"number 2"


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("captions", Record),
        ("entailment", Entailment),
        ("questions", Question),
        ("statements", PairStatement),
        ("phrases", Referring),
        ("pictures", Picture),
    ],
)
def test_made_scenes_come_back_for_every_task(tmp_path: Path, task: str, kind: type) -> None:
    settings = ["data.scenes.count=6", "data.scenes.evaluation_count=3", "data.scenes.sprites=shapes"]
    out = tmp_path / "out"
    run(
        [
            "shard",
            "scenes",
            "--to",
            str(out),
            "--jobs",
            "1",
            "--task",
            task,
            *(f"--set={setting}" for setting in settings),
        ]
    )
    config = DataConfig()
    config = replace(config, scenes=replace(config.scenes, count=6, evaluation_count=3, sprites="shapes"))
    for split in ("train", "validation", "test"):
        ours, theirs = opened(out, split, kind), open_source(config, split, kind)  # type: ignore[call-overload]
        assert len(ours) == len(theirs)
        for index in range(len(theirs)):
            read, drawn = ours.record(index), theirs.record(index)
            empty = {"image": None} if kind is not PairStatement else {"images": (None, None)}
            assert replace(read, **empty) == replace(drawn, **empty)
            expected = theirs.pictures(drawn) if kind is not Record else (theirs.picture(drawn),)
            assert [picture.tobytes() for picture in ours.pictures(read)] == [picture.tobytes() for picture in expected]


def test_texts_come_back_too(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"text {number}" for number in range(7)))
    run(["shard", "texts", str(file), "--to", str(tmp_path / "out"), "--samples", "3", "--jobs", "1"])
    pattern = f"{tmp_path}/out/train-{{00000..00002}}.tar"
    source = open_source(DataConfig(source="texts", path=pattern, held_out=0.0), "train", PlainText)
    assert [source.record(index).text for index in range(7)] == [f"text {number}" for number in range(7)]


def test_the_manifest_says_what_was_left_out_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pictures(tmp_path / "data", 6)
    (tmp_path / "data/2.jpg").write_bytes(b"no picture")
    (tmp_path / "data/4.jpg").write_bytes(jpeg(4)[:-30])
    with file.open("a") as lines:
        lines.write('\n{"image": "absent.jpg", "caption": "gone"}\nno line of JSON')
    run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out"), "--samples", "4", "--jobs", "1"])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["samples"] == {"train": 4}
    assert sum(manifest["left_out"].values()) == 4
    assert manifest["left_out"].keys() >= {"not a picture", "picture missing", "line is not JSON"}
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 1]
    assert "4 left out" in capsys.readouterr().out
    assert [record.id for record in map(opened(tmp_path / "out").record, range(4))] == ["n0", "n1", "n3", "n5"]


WRITING = """
import sys, time
import diptych.data.shards.writing as writing
from pathlib import Path
from diptych.data.sources.jsonl import read_jsonl
from diptych.schema import DataConfig
members = writing._members
def slowly(*arguments):
    time.sleep(0.02)
    return members(*arguments)
writing._members = slowly
splits = {"train": writing.SplitSource(read_jsonl(sys.argv[1], DataConfig()))}
writing.write_shards(splits, Path(sys.argv[2]), {}, 6, 2)
"""


def test_writing_that_is_killed_goes_on_with_what_is_not_finished(tmp_path: Path) -> None:
    file, out = pictures(tmp_path / "data", 60), tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", WRITING, str(file), str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("unfinished/[!.]*.tar.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / "manifest.json").exists()
    deadline = time.monotonic() + 30
    while (
        time.monotonic() < deadline
    ):  # its processes end with it, once each has written what it has begun, and leave the lock
        try:
            with locked(out / "unfinished/lock", "still there"):
                break
        except ValueError:
            time.sleep(0.1)
    done = {note.name.removesuffix(".json") for note in out.glob("unfinished/[!.]*.tar.json")}
    assert 2 <= len(done) < 10
    before = {name: (out / name).stat().st_mtime_ns for name in done}
    listing = read_jsonl(str(file), DataConfig())
    assert f"{10 - len(done)} of 10 shards written" in write_shards({"train": SplitSource(listing)}, out, {}, 6, 1)
    assert {name: (out / name).stat().st_mtime_ns for name in done} == before
    assert not list(out.glob("*.part"))
    assert not (out / "unfinished").exists()
    source = opened(out)
    assert [source.record(index).id for index in range(60)] == [f"n{number}" for number in range(60)]


def test_a_second_call_writes_nothing_and_another_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = pictures(tmp_path / "data", 6), tmp_path / "out"
    order = ["shard", "jsonl", str(file), "--to", str(out), "--samples", "3", "--jobs", "1"]
    run(order)
    written = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.tar")}
    run(order)
    assert "0 of 2 shards written" in capsys.readouterr().out
    assert {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.tar")} == written
    os.truncate(out / "train-00001.tar", 1000)
    run(order)
    assert "1 of 2 shards written" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds shards of something else, .*\(samples_per_shard\)"):
        run([*order[:-3], "4", "--jobs", "1"])
    with locked(out / "unfinished/lock"), pytest.raises(ValueError, match="another process writes to"):
        run(order)


def test_nothing_to_write_is_an_error_that_says_why(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    file.write_text('{"image": "absent.jpg", "caption": "gone"}')
    with pytest.raises(ValueError, match=r"no record to write\n.*picture missing"):
        run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="--task questions is for scenes"):
        run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out"), "--task", "questions"])
    with pytest.raises(ValueError, match="both must be at least 1"):
        run(["shard", "jsonl", str(file), "--to", str(tmp_path / "out"), "--samples", "0"])
