"""Tests texts without pictures: reading from lines, JSONL and shards, streaming, splitting, loading and checks."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diptych.apps.report.samples import render
from diptych.catalog import open_source, read_splits
from diptych.cli.data import run as data_command
from diptych.data.cleanup import clean_caption
from diptych.data.convert import write_splits
from diptych.data.entries import from_entry, to_entry
from diptych.data.loader import PairLoader, evaluation_batches
from diptych.data.record import PlainText
from diptych.data.sources.texts import TextSource
from diptych.data.tokenizer import Tokenizer
from diptych.data.validate import validate
from diptych.schema import SPLITS, DataConfig, ScenesConfig, Split
from diptych.types import TextBatch
from tests.layouts import karpathy

NUMBERS = [f"text {one} of {two}." for one in range(12) for two in range(5)]
WORDS = Tokenizer.train([*NUMBERS, "Once, upon a time"], 100)


def config(path: Path | str, **changes: object) -> DataConfig:
    values: dict[str, object] = {"held_out": 0.1, "workers": 0, **changes}
    return DataConfig(source="texts", path=str(path), **values)  # type: ignore[arg-type]


def lines(file: Path, texts: list[str] = NUMBERS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return file


def shard(file: Path, members: dict[str, str | bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file


def opened(settings: DataConfig, split: Split = "train") -> TextSource:
    source = open_source(settings, split, PlainText)
    assert isinstance(source, TextSource)
    return source


def said(source: TextSource) -> list[str]:
    """Reads texts one by one, which must give the same as iteration."""
    one_by_one = [source.record(number) for number in range(len(source))]
    assert one_by_one == list(source)
    return [record.text for record in one_by_one]


def everything(settings: DataConfig) -> list[str]:
    return sorted(text for split in SPLITS for text in said(opened(settings, split)))


def test_a_line_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffFirst, one.\n\n  second\ttwo \r\n   \nçà et là\x85\u2028still here\nlast".encode())
    source = opened(config(file, held_out=0.0))
    assert said(source) == ["First, one.", "second\ttwo", "çà et là\x85\u2028still here".strip(), "last"]
    assert [record.id for record in source] == [f"{file}:{line}" for line in (1, 3, 5, 6)]
    assert source.skipped == ()


def test_lines_objects_members_and_folders_of_them_say_the_same(tmp_path: Path) -> None:
    objects = tmp_path / "more" / "texts.jsonl"
    lines(objects, [json.dumps({"id": text, "text": text}) for text in NUMBERS[20:40]])
    plain = lines(tmp_path / "more" / "a.txt", NUMBERS[:20])
    long = "a/" * 60 + "far.txt"  # longer than a header holds
    members: dict[str, str | bytes] = {f"{n:03}.txt": text for n, text in enumerate(NUMBERS[40:50])}
    members |= {f"{n:03}.json": json.dumps({"text": text}) for n, text in enumerate(NUMBERS[50:59], 50)}
    members |= {"note.json": json.dumps({"caption": "of no text"}), "picture.png": b"\xff\x00", long: NUMBERS[59]}
    packed = shard(tmp_path / "more" / "texts.tar", members)
    assert everything(config(tmp_path)) == sorted(NUMBERS)
    assert everything(config(f"{plain}, {objects},{packed}")) == sorted(NUMBERS)
    names = [record.id for record in opened(config(packed, held_out=0.0))]
    assert names[0] == f"{packed}/000.txt"
    assert f"{packed}/{long}" in names
    assert [record.id for record in opened(config(objects, held_out=0.0))] == NUMBERS[20:40]


def test_equal_texts_fall_into_one_split_and_no_order_changes_which(tmp_path: Path) -> None:
    once, shuffled = lines(tmp_path / "a.txt"), lines(tmp_path / "b.txt", [*reversed(NUMBERS), *NUMBERS[:30]])
    first, second = ({split: set(said(opened(config(file), split))) for split in SPLITS} for file in (once, shuffled))
    assert first == second
    assert {split: len(texts) for split, texts in first.items()} == {"train": 48, "validation": 6, "test": 6}
    assert not first["train"] & (first["validation"] | first["test"])
    as_lists = DataConfig(
        source="jsonl", path=str(lines(tmp_path / "c.jsonl", [json.dumps({"text": t}) for t in NUMBERS]))
    )
    in_memory = open_source(DataConfig(**vars(as_lists) | {"held_out": 0.1}), "test", PlainText)
    assert {in_memory.record(number).text for number in range(len(in_memory))} == first["test"]


def test_splits_with_files_of_their_own_are_whole(tmp_path: Path) -> None:
    settings = config(
        lines(tmp_path / "train.txt"),
        validation_path=str(lines(tmp_path / "validation.txt", ["one held out", "another"])),
        test_path=str(lines(tmp_path / "test.txt", ["a third"])),
    )
    assert said(opened(settings)) == NUMBERS
    assert said(opened(settings, "validation")) == ["one held out", "another"]
    assert said(opened(settings, "test")) == ["a third"]


BROKEN = [
    b'{"text": "good"}', b'{"text": ""}', b'{"text": 3}', b"{", b'["text"]', b'{"text": "\xff"}', b'{"words": "x"}',
    b'{"image": "a.png", "text": "x"}', b'{"image": "a.png", "caption": "of a picture"}',
]  # fmt: skip


def test_broken_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(b"\n".join(BROKEN))
    source = opened(config(file, held_out=0.0))
    assert said(source) == ["good"]
    assert {error.record: error.reason for error in source.skipped} == {
        f"{file}:2": "text empty", f"{file}:3": "wrong type", f"{file}:4": "line is not JSON",
        f"{file}:5": "not an object", f"{file}:6": "line is not UTF-8", f"{file}:7": "key missing",
        f"{file}:8": "another task", f"{file}:9": "another task",
    }  # fmt: skip
    with pytest.raises(ValueError, match="8 texts of the test split"):
        opened(config(lines(tmp_path / "t.txt"), test_path=str(file)), "test")


def test_a_broken_shard_is_named_and_what_came_before_is_kept(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {f"{n}.txt": text for n, text in enumerate(NUMBERS)}
    whole = shard(tmp_path / "texts.tar", members | {"empty.txt": " ", "bad.txt": b"\xff", "bad.json": "{"})
    source = opened(config(whole, held_out=0.0))
    assert said(source) == NUMBERS
    assert [error.reason for error in source.skipped] == ["text empty", "line is not UTF-8", "line is not JSON"]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: 1024 * 20 + 700])
    source = opened(config(cut, held_out=0.0))
    assert said(source) == NUMBERS[: len(source)]
    assert len(source) >= 20
    assert [error.reason for error in source.skipped] == ["shard broken"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place / "nowhere.txt", "no folder or file"),
        (lambda place: place, "no text files in"),
        (lambda place: lines(place / "texts.csv"), r"is none of \.txt, \.jsonl, \.tar"),
        (lambda place: lines(place / "texts.txt", [""]), "the train split is empty"),
    ],
)
def test_what_leads_to_no_text_is_an_error(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        opened(config(make(tmp_path)))


def test_a_text_too_long_to_be_one_is_named(tmp_path: Path) -> None:
    source = opened(config(lines(tmp_path / "texts.txt", ["a " * (1 << 19) + "b", "short"]), held_out=0.0))
    assert said(source) == ["short"]
    assert [error.reason for error in source.skipped] == ["text too long"]


def test_memory_holds_places_and_no_texts(tmp_path: Path) -> None:
    count = 20_000
    file = lines(tmp_path / "texts.txt", [f"{number} " + "word " * 50 for number in range(count)])
    settings = config(file)
    tracemalloc.start()
    source = opened(settings)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) + len(opened(settings, "validation")) + len(opened(settings, "test")) == count
    assert kept < 16 * count + 100_000
    assert most < 100 * count
    assert len(pickle.dumps(source)) < 16 * count + 10_000


def test_a_file_that_changes_while_it_is_read_costs_its_records_only(tmp_path: Path) -> None:
    file = lines(tmp_path / "texts.txt")
    source = opened(config(file, held_out=0.0))
    file.write_bytes(b"\xff" * file.stat().st_size)
    loader = PairLoader(source, WORDS, config(file), 16, 4, 0)
    with pytest.raises(ValueError, match="line is not UTF-8"):
        next(loader.batches(0))
    assert said(opened(config(lines(file, ["now this"]), held_out=0.0))) == ["now this"]


# --------------------------------------------------------------------------- to a batch


def batches(settings: DataConfig, count: int, start: int = 0) -> Iterator[TextBatch]:
    loader = PairLoader(opened(settings), WORDS, settings, 16, 8, 5)
    loaded = loader.batches(start)
    try:
        for first in itertools.islice(loaded, count):
            assert isinstance(first.batch, TextBatch)
            assert first.batch.records == tuple(record.id for record in first.records)
            yield first.batch
    finally:
        loaded.close()  # type: ignore[attr-defined]


def test_batches_are_the_same_from_any_step_and_with_any_workers(tmp_path: Path) -> None:
    lines(tmp_path / "a.txt", NUMBERS[:40])
    shard(tmp_path / "b.tar", {f"{number}.txt": text for number, text in enumerate(NUMBERS[40:])})
    alone = list(batches(config(tmp_path), 12))
    for other in (list(batches(config(tmp_path, workers=2), 12)), [*alone[:3], *batches(config(tmp_path), 9, start=3)]):
        for first, second in zip(alone, other, strict=True):
            assert torch.equal(first.texts.input_ids, second.texts.input_ids)
            assert first.records == second.records


def test_texts_keep_punctuation_and_all_words_and_are_cut_to_max_tokens(tmp_path: Path) -> None:
    text = "Once,  upon a time! " * 20
    settings = config(lines(tmp_path / "a.txt", [text, "short"]), held_out=0.0, max_tokens=60, max_tokens_evaluation=70)
    loaded = next(PairLoader(opened(settings), WORDS, settings, 16, 2, 0).batches(0))
    ids = WORDS.encode([" ".join(text.split())])[0]
    (row,) = (row for row in loaded.batch.texts.input_ids.tolist() if row[-1])
    assert row == ids[:60]
    (batch,) = evaluation_batches(opened(settings), WORDS, settings, 16, 2)
    assert isinstance(batch.batch, TextBatch)
    assert batch.batch.texts.input_ids[0].tolist() == ids[:70]
    assert batch.sizes == ((0, 0), (0, 0))


def test_captions_of_made_scenes_and_of_any_layout_can_be_had_alone(tmp_path: Path) -> None:
    scenes = DataConfig(scenes=ScenesConfig(count=20, evaluation_count=5), max_words=50)
    for split in SPLITS:
        texts, pairs = open_source(scenes, split, PlainText), open_source(scenes, split)
        assert len(texts) == len(pairs)
        assert texts.record(3).images == ()
        assert texts.record(3).text == clean_caption(pairs.record(3).captions[0], 50)
    layout = str(karpathy(tmp_path, coco=False))
    settings = DataConfig(source="karpathy", path=layout, root=str(tmp_path / "images"), workers=0)
    captions = open_source(settings, "train")
    texts = open_source(settings, "train", PlainText)
    assert [texts.record(n).text for n in range(len(texts))] == [
        text for n in range(len(captions)) for text in captions.record(n).captions
    ]


# --------------------------------------------------------------------------- looked at


def test_a_text_is_one_line_of_json() -> None:
    record = PlainText("a name", "what it says")
    assert to_entry(record) == {"id": "a name", "text": "what it says"}
    assert from_entry(to_entry(record), "elsewhere") == record
    assert from_entry({"text": "x"}, "file:3") == PlainText("file:3", "x")


def test_validation_says_what_is_broken_repeated_and_shared(tmp_path: Path) -> None:
    file, other = lines(tmp_path / "a.txt", [*NUMBERS, NUMBERS[0]]), lines(tmp_path / "b.txt", ["unseen", NUMBERS[7]])
    check = validate(read_splits(config(file)), config(file))
    assert check.ready
    assert f"train: {len(NUMBERS) - 11} records (texts without pictures), {len(NUMBERS) - 11} texts" in check.text()
    assert f"1 record saying what another one says: {file}:61" in check.text()
    check = validate(read_splits(config(file, test_path=str(other))), config(file))
    assert not check.ready
    assert f"train and test share 1 text: {other}:2" in check.text()
    broken = lines(tmp_path / "c.jsonl", ["{"] * 20 + [json.dumps({"text": text}) for text in NUMBERS])
    check = validate(read_splits(config(broken)), config(broken))
    assert "20 cannot be used: 20 × line is not JSON" in check.text()
    assert not check.ready


def test_the_commands_on_data_take_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "a.txt")
    data_command(["validate", "texts", str(file)])
    assert "training can start" in capsys.readouterr().out
    assert NUMBERS[0] in render(read_splits(config(file)), "texts", 60, 0)
    data_command(["convert", "texts", str(file), "--to", str(tmp_path / "out")])
    assert f"data.source=texts data.path={tmp_path / 'out' / 'train.jsonl'}" in capsys.readouterr().out
    assert everything(config(tmp_path / "out" / "train.jsonl")) == sorted(NUMBERS)


def test_splits_written_out_are_the_same_again(tmp_path: Path) -> None:
    settings = config(lines(tmp_path / "a.txt"), test_path=str(lines(tmp_path / "b.txt", ["unseen"])))
    write_splits(read_splits(settings), tmp_path / "out")
    again = config(tmp_path / "out" / "train.jsonl", test_path=str(tmp_path / "out" / "test.jsonl"))
    assert {split: sorted(said(opened(again, split))) for split in SPLITS} == {
        split: sorted(said(opened(settings, split))) for split in SPLITS
    }
