"""Tests which records are read from shards, in which order, and how little memory holds of them."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from diptych.catalog import open_source, read_splits
from diptych.data.loader import Loaded, PairLoader, evaluation_items
from diptych.data.record import BadRecord, Picture, Question
from diptych.data.shards.index import BYTES_A_SAMPLE, Stamp, build_index, read_index
from diptych.data.shards.mixing import ShardOrder
from diptych.data.validate import validate
from diptych.schema import DataConfig
from tests.shards import TOKENIZER, jpeg, noise, number_of, pair, shard, shards, tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(path: Path | str, **fields: Any) -> DataConfig:
    values: dict[str, Any] = {"workers": 0, "held_out": 0.0, "lanes": 4, "window": 2, "bad_share": 0.0}
    return DataConfig(source="shards", path=str(path), **values | fields)


def loader(settings: DataConfig, batch: int = 8, rank: int = 0, size: int = 1, seed: int = 3) -> PairLoader:
    return PairLoader(open_source(settings, "train"), TOKENIZER, settings, 16, batch, seed, rank=rank, size=size)


def take(pairs: PairLoader, count: int, start: int = 0) -> list[Loaded]:
    batches = pairs.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()  # type: ignore[attr-defined]


def numbers(batches: list[Loaded]) -> list[int]:
    return [number_of(record) for loaded in batches for record in loaded.records]


# --------------------------------------------------------------------------- what is read


def test_a_sample_is_its_own_picture_and_caption(tmp_path: Path) -> None:
    shards(tmp_path / "data", [5, 3])
    settings = config(tmp_path / "data")
    source = open_source(settings, "train")
    assert [number_of(source.record(index)) for index in range(len(source))] == [0, 1, 2, 3, 4, 100, 101, 102]
    for index in range(len(source)):
        record = source.record(index)
        assert source.picture(record).getpixel((3, 3)) == (number_of(record),) * 3
        assert record.image_id == f"http://pictures/{number_of(record)}"


def test_ways_to_name_shards_mean_the_same(tmp_path: Path) -> None:
    shards(tmp_path / "data", [2] * 12)
    folder = tmp_path / "data"
    ways = [
        str(folder),
        f"{folder}/*.tar",
        f"{folder}/{{00000..00011}}.tar",
        f"{folder}/0000?.tar,{folder}/0001{{0,1}}.tar",
    ]
    seen = []
    for way in ways:
        source = open_source(config(way), "train")
        seen.append([source.record(index).id for index in range(len(source))])
    assert len(seen[0]) == 24
    assert seen == [seen[0]] * 4


def test_entries_of_our_own_are_records_of_their_task(tmp_path: Path) -> None:
    entries = [
        {"question": "which?", "answers": ["this"]},
        {"image": "1.png", "question": "what?", "answers": ["that"]},
    ]
    members = []
    for number, entry in enumerate(entries):
        members += [(f"{number}.png", jpeg(number)), (f"{number}.json", json.dumps(entry).encode())]
    tar(tmp_path / "00000.tar", members)
    source = open_source(config(tmp_path / "00000.tar"), "train", Question)
    assert [source.record(index).question for index in range(2)] == ["which?", "what?"]
    assert [source.pictures(source.record(index))[0].getpixel((0, 0)) for index in range(2)] == [(0,) * 3, (1,) * 3]
    with pytest.raises(ValueError, match=r"data\.source=shards holds questions; this task needs captions"):
        open_source(config(tmp_path / "00000.tar"), "train")


def test_a_task_on_pictures_alone_needs_no_captions(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", [(f"{number}.jpg", jpeg(number)) for number in range(6)])
    source = open_source(config(tmp_path / "00000.tar"), "train", Picture)
    assert [source.pictures(source.record(index))[0].getpixel((0, 0))[0] for index in range(6)] == list(range(6))


noise(90, 1).save(stream := io.BytesIO(), "JPEG")
noisy = stream.getvalue()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("7.txt", b"a fox")], "picture missing"),
        ([("7.jpg", jpeg(7))], "caption missing"),
        ([("7.jpg", jpeg(7)), ("7.txt", b"\xff")], "text is not UTF-8"),
        ([("7.jpg", jpeg(7)), ("7.json", b"[")], "metadata is not JSON"),
        ([("7.jpg", jpeg(7)), ("7.json", b'{"image": "8.jpg", "caption": "a fox"}')], "picture missing"),
        ([("7.jpg", b""), ("7.txt", b"a fox")], "picture empty"),
        ([("7.jpg", noisy[:-400]), ("7.txt", b"a fox")], "picture truncated"),
        ([("7.jpg", b"no picture"), ("7.txt", b"a fox")], "not a picture"),
        ([("7.jpg", jpeg(7)), ("7.json", b'{"hypothesis": "a fox", "label": "neutral"}')], "another task"),
    ],
)
def test_what_is_wrong_with_a_sample_is_named_and_the_others_are_read(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    tar(tmp_path / "00000.tar", [*pair(1), *members, *(member for number in range(2, 9) for member in pair(number))])
    pairs = loader(config(tmp_path / "00000.tar", bad_share=0.2, lanes=1), batch=1)
    seen = []
    for step in range(pairs.steps_per_epoch):
        seen += pairs.dataset.__getitems__(pairs.order.keys(step, 0)).records
    assert sorted(map(number_of, seen)) == list(range(1, 9))
    errors = [
        error
        for step in range(pairs.steps_per_epoch)
        for error in pairs.dataset.__getitems__(pairs.order.keys(step, 0)).skipped
    ]
    (error,) = [*errors, *pairs.dataset.source.skipped]
    assert error.reason == reason
    assert error.record == f"{tmp_path}/00000.tar/7"


def test_an_image_bomb_in_a_shard_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = 60_000  # 3.6 billion pixels in a few kilobytes
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    tar(tmp_path / "00000.tar", [*pair(1), ("2.png", bomb), ("2.txt", b"number 2"), *pair(3), *pair(4)])
    pairs = loader(config(tmp_path / "00000.tar", bad_share=0.5, lanes=1), batch=4)
    tracemalloc.start()
    (loaded,) = take(pairs, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(numbers([loaded])) == [1, 3, 4]
    assert [(error.reason, error.record) for error in loaded.skipped] == [
        ("picture too large", f"{tmp_path}/00000.tar/2")
    ]
    assert peak < 100e6


def test_validation_finds_what_is_wrong_in_shards(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", [*pair(1), ("2.jpg", b"no picture"), ("2.txt", b"a fox"), *pair(3), ("4.jpg", jpeg(4))])
    check = validate(read_splits(config(tmp_path)), config(tmp_path))
    assert [error.reason for error in check.splits[0].bad] == ["caption missing", "not a picture"]
    assert check.splits[0].records == 2


# --------------------------------------------------------------------------- order


def test_captions_without_a_word_are_no_captions_in_shards_either(tmp_path: Path) -> None:
    """The first sample has an empty text, the second an empty `caption`, the third one caption of two."""
    texts: list[list[tuple[str, bytes]]] = [
        [("0.txt", b" \n")],
        [("1.json", b'{"caption": ""}')],
        [("2.json", b'{"captions": ["", "a fox"]}')],
        [("3.txt", b"a boat")],
    ]
    members = [member for number, text in enumerate(texts) for member in [(f"{number}.jpg", jpeg(number)), *text]]
    config = DataConfig("shards", str(tar(tmp_path / "0.tar", members)), held_out=0.0)
    listing = read_splits(config)["train"]
    assert [record.captions for record in listing.records] == [("a fox",), ("a boat",)]
    assert [error.reason for error in listing.skipped] == ["caption empty"] * 2
    checked = validate(read_splits(config), config)
    assert checked.splits[0].records == 2
    assert "train: 2 records cannot be used; data.bad_share allows 1" in checked.errors


@pytest.mark.parametrize("sizes", [[30, 1, 0, 25, 18, 40, 22], [64], [3] * 40])
def test_an_epoch_shows_each_sample_once_but_for_what_fills_no_batch(tmp_path: Path, sizes: list[int]) -> None:
    shards(tmp_path / "data", sizes)
    pairs = loader(config(tmp_path / "data"))
    assert pairs.steps_per_epoch == sum(sizes) // 4 // 2
    orders = []
    for epoch in (0, 1):
        keys = [
            key
            for step in range(pairs.steps_per_epoch)
            for key in pairs.order.keys(epoch * pairs.steps_per_epoch + step, 0)
        ]
        assert {which for which, _ in keys} == {epoch}
        assert len({index for _, index in keys}) == len(keys) == 8 * pairs.steps_per_epoch
        assert max(index for _, index in keys) < sum(sizes)
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1]
    assert orders[0] != [
        index
        for step in range(pairs.steps_per_epoch)
        for _, index in loader(config(tmp_path / "data"), seed=4).order.keys(step, 0)
    ]


@pytest.mark.parametrize("size", [2, 4])
def test_batches_are_the_same_however_many_processes_share_them(tmp_path: Path, size: int) -> None:
    shards(tmp_path / "data", [30, 25, 18, 40])
    settings = config(tmp_path / "data")
    whole = take(loader(settings), 16)
    parts = [take(loader(settings, rank=rank, size=size), 16) for rank in range(size)]
    for step, loaded in enumerate(whole):
        assert numbers([loaded]) == [number for part in parts for number in numbers([part[step]])]
        assert torch.equal(loaded.batch.pixels, torch.cat([part[step].batch.pixels for part in parts]))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_goes_on_exactly_with_any_number_of_workers_and_processes(tmp_path: Path, workers: int) -> None:
    shards(tmp_path / "data", [30, 25, 18, 40])
    whole = take(loader(config(tmp_path / "data")), 20)  # an epoch has 14 steps
    settings = config(tmp_path / "data", workers=workers)
    for start in (5, 13):
        for late, early in zip(take(loader(settings), 4, start), whole[start:], strict=False):
            assert late.records == early.records
            assert torch.equal(late.batch.pixels, early.batch.pixels)
    half = take(loader(settings, rank=1, size=2), 4, 12)
    assert [number for loaded in half for number in numbers([loaded])] == [
        number for loaded in whole[12:16] for number in numbers([loaded])[4:]
    ]


def test_a_process_reads_its_own_shards_only_and_a_few_at_a_time() -> None:
    mixing = ShardOrder(np.full(64, 1000), window=3)
    shards_of = [{int(index) // 1000 for index in mixing.rows(0, 0, lane, 8, 0, 8000)} for lane in range(8)]
    assert Counter(number for each in shards_of for number in each) == Counter(range(64))  # 64 shards fall to 8 lanes
    seen: list[int] = []
    for start in range(0, 8000, 100):
        rows = mixing.rows(0, 0, 2, 8, start, start + 100)
        seen += [number for number in dict.fromkeys((rows // 1000).tolist()) if number not in seen]
        assert len(set((rows // 1000).tolist())) <= 3 + 3  # the windows before and behind a border
        assert len(seen) <= 3 * (start // 3000 + 1) + 3
    assert len(seen) == 8


def test_reading_moves_forward_in_each_shard_within_a_tenth_of_it() -> None:
    mixing = ShardOrder(np.full(16, 20_000), window=4)
    rows = mixing.rows(5, 2, 1, 2, 0, 80_000)
    for number in set((rows // 20_000).tolist()):
        within = rows[rows // 20_000 == number] % 20_000
        within = (within - within[0]) % 20_000
        behind = np.maximum.accumulate(np.where(within > 15_000, 0, within)[:10_000]) - within[:10_000]
        assert behind.max() <= 0.11 * 20_000
        assert np.count_nonzero(np.diff(within) < 0) > 1_000  # and yet it is shuffled


def test_neighbours_in_a_batch_come_from_all_open_shards() -> None:
    mixing = ShardOrder(np.full(16, 5_000), window=4)
    for start in range(0, 19_000, 1_000):
        counts = Counter((mixing.rows(0, 0, 0, 4, start, start + 400) // 5_000).tolist())
        assert len(counts) == 4
        assert min(counts.values()) > 40


@pytest.mark.parametrize(
    ("batch", "size", "lanes", "message"),
    [
        (10, 4, 4, r"run\.batch_size is 10: it must be a multiple of the number of processes, which is 4"),
        (10, 1, 4, r"run\.batch_size is 10: it must be a multiple of data\.lanes=4"),
        (12, 3, 4, r"data\.lanes is 4: it must be a multiple of the number of processes, which is 3"),
        (8, 1, 0, r"data\.lanes is 0"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path: Path, batch: int, size: int, lanes: int, message: str) -> None:
    shards(tmp_path / "data", [50])
    with pytest.raises(ValueError, match=message):
        loader(config(tmp_path / "data", lanes=lanes), batch=batch, size=size)


# --------------------------------------------------------------------------- splits


def test_splits_share_no_picture_and_stay_when_shards_are_added_or_moved(tmp_path: Path) -> None:
    shards(tmp_path / "data", [60, 60])
    tar(
        tmp_path / "data/00002.tar", [member for n in range(60) for member in pair(300 + n, url=f"http://pictures/{n}")]
    )
    held = {
        split: identities(config(tmp_path / "data", held_out=0.2), split) for split in ("train", "validation", "test")
    }
    assert held["train"] | held["validation"] | held["test"] == {
        f"http://pictures/{n + 100 * s}" for s in (0, 1) for n in range(60)
    }
    for first, second in itertools.combinations(held.values(), 2):
        assert not first & second
    assert all(10 < len(held[split]) < 40 for split in ("validation", "test"))
    (tmp_path / "data").rename(tmp_path / "moved")
    shard(tmp_path / "moved/00003.tar", range(1000, 1040))
    for split, before in held.items():
        assert before <= identities(config(tmp_path / "moved", held_out=0.2), split)


def identities(settings: DataConfig, split: Any) -> set[str]:
    source = open_source(settings, split)
    return {source.record(index).image_id for index in range(len(source))}


def test_a_drawn_split_leaves_out_what_is_broken_and_a_named_one_tolerates_nothing(tmp_path: Path) -> None:
    broken = [
        (f"{n}.{suffix}", content) for n in range(40) for suffix, content in (("jpg", b"-"), ("txt", b"number 0"))
    ]
    tar(tmp_path / "00000.tar", [*broken, *(member for n in range(60) for member in pair(n))])
    source = open_source(config(tmp_path, held_out=0.3), "validation")
    assert {error.reason for error in source.skipped} == {"not a picture"}
    assert len(list(evaluation_items(source, config(tmp_path), 16))) == len(source) > 5
    named = config(tmp_path, validation_path=f"{tmp_path}/{{00000..00001}}.tar")
    with pytest.raises(ValueError, match=r"evaluation tolerates none:\n.*00001.tar: shard missing"):
        open_source(named, "validation")


# --------------------------------------------------------------------------- indices and memory


def test_an_index_takes_twenty_bytes_a_sample_and_is_read_from_its_file(tmp_path: Path) -> None:
    file = shard(tmp_path / "00000.tar", range(300))
    open_source(config(file), "train")
    index_file = Path(f"{file}.index")
    head = index_file.read_bytes().index(b"\n") + 1
    assert index_file.stat().st_size == head + 20 * 300 == head + BYTES_A_SAMPLE * 300
    index = read_index(index_file)
    assert index is not None
    assert all(isinstance(column, np.memmap) for column in index.columns)
    for place in (0, 150, 299):
        start, size = int(index.starts[place]), int(index.sizes[place])
        assert file.read_bytes()[start : start + size].startswith(f"{place:09}.jpg".encode())


def test_the_order_of_a_billion_pairs_fits_into_ten_megabytes() -> None:
    counts = np.full(100_000, 10_000)
    tracemalloc.start()
    mixing = ShardOrder(counts, window=4)
    for lane in range(8):
        for step in (0, 10_000):
            assert len(mixing.rows(0, 0, lane, 8, 64 * step, 64 * (step + 1))) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_what_a_source_keeps_does_not_grow_with_its_samples(tmp_path: Path) -> None:
    sizes = []
    for count in (20, 2_000):
        shard(tmp_path / f"{count}/00000.tar", range(count))
        source = open_source(config(tmp_path / str(count), held_out=0.1), "train")
        assert len(source) > 0.7 * count
        sizes.append(len(pickle.dumps(source)))
    assert sizes[1] - sizes[0] < 50


def test_no_more_shards_are_open_than_the_lanes_of_a_process_read(tmp_path: Path) -> None:
    shards(tmp_path / "data", [10] * 30)
    for size, most in ((1, 2 * (4 + 1)), (4, 2 * (1 + 1))):
        pairs = loader(config(tmp_path / "data"), size=size)
        before = len(os.listdir("/dev/fd"))  # noqa: PTH208
        take(pairs, pairs.steps_per_epoch)
        assert len(os.listdir("/dev/fd")) - before <= 2 * most  # noqa: PTH208 — shard and index


def test_an_index_is_built_once_and_anew_where_the_shard_has_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = shard(tmp_path / "00000.tar", range(10))
    open_source(config(file), "train")
    built = Path(f"{file}.index").stat().st_mtime_ns
    open_source(config(file), "train")
    assert Path(f"{file}.index").stat().st_mtime_ns == built
    assert capfd.readouterr().err == ""
    shard(file, range(5, 9))
    source = open_source(config(file), "train")
    assert [number_of(source.record(index)) for index in range(len(source))] == [5, 6, 7, 8]
    assert capfd.readouterr().err == f"{file} has changed: its index is built anew\n"


def test_an_index_that_cannot_lie_beside_its_shard_lies_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shard(tmp_path / "data/00000.tar", range(10))
    Path(f"{file}.index").mkdir()  # stands for a folder without leave to write: root may write anywhere
    assert len(open_source(config(file), "train")) == 10
    (index,) = (cache / "indices").iterdir()
    built = index.stat().st_mtime_ns
    assert len(open_source(config(file), "train")) == 10
    assert index.stat().st_mtime_ns == built
    other = tmp_path / "other"
    assert len(open_source(config(file, cache=str(other)), "train")) == 10
    assert list((other / "indices").iterdir())


# --------------------------------------------------------------------------- faults


@pytest.mark.parametrize("cut", ["in a picture", "between samples"])
def test_of_a_truncated_shard_the_sound_part_is_read_and_the_rest_named(tmp_path: Path, cut: str) -> None:
    shards(tmp_path / "data", [20, 20])
    file = tmp_path / "data/00000.tar"
    start = int(build_index(file, "", Stamp(0, "")).starts[12])
    os.truncate(file, start + (700 if cut == "in a picture" else 0))
    source = open_source(config(tmp_path / "data"), "train")
    assert [number_of(source.record(index)) for index in range(len(source))] == [*range(12), *range(100, 120)]
    (error,) = source.skipped
    assert (error.record, error.reason) == (str(file), "shard broken")


@pytest.mark.parametrize("change", ["other samples", "truncated", "replaced", "removed"])
def test_a_shard_that_changes_during_a_run_gives_bad_records_and_never_a_wrong_picture(
    tmp_path: Path, change: str
) -> None:
    files = shards(tmp_path / "data", [16] * 4)
    settings = config(tmp_path / "data", bad_share=0.9, lanes=1, window=1)
    pairs = loader(settings, batch=4)
    batches = pairs.batches()
    next(batches)
    size = files[0].stat().st_size
    for base, file in zip((0, 100, 200, 300), files, strict=True):
        if change == "other samples":
            content = shard(tmp_path / "other.tar", range(base + 50, base + 66)).read_bytes()
            file.write_bytes(content[:size])
        elif change == "truncated":
            os.truncate(file, size // 3)
        elif change == "replaced":
            shard(tmp_path / "other.tar", range(base + 50, base + 66)).replace(file)
        else:
            file.unlink()
    seen, skipped = [], []
    for step in range(1, 16):
        fetched = pairs.dataset.__getitems__(pairs.order.keys(step, 0))
        skipped += fetched.skipped
        for record, pixels in zip(fetched.records, fetched.batch.pixels if fetched.batch else (), strict=True):
            seen.append((number_of(record), pixels))
    reasons = {error.reason for error in skipped}
    assert reasons == ({"shard missing"} if change == "removed" else {"shard changed under its index"})
    assert len(seen) + len({error.record for error in skipped}) == 60
    assert all(number % 100 < 16 for number, _ in seen)
    if change in ("other samples", "truncated"):
        assert not seen


def test_a_missing_shard_is_named_and_counted_by_its_samples(tmp_path: Path) -> None:
    shards(tmp_path / "data", [30, 30, 30])
    (tmp_path / "data/00001.tar").unlink()
    pattern = f"{tmp_path}/data/{{00000..00002}}.tar"
    pairs = loader(config(pattern, bad_share=0.4))
    assert pairs.ledger.total == 90
    assert "30 of 90 records skipped: 30 × shard missing" in pairs.ledger.summary()
    assert len(numbers(take(pairs, 7))) == 56
    with pytest.raises(ValueError, match=r"30 of 90 records could not be used.*\n.*00001.tar: shard missing"):
        take(loader(config(pattern, bad_share=0.1)), 1)


def test_a_missing_shard_whose_index_is_there_leaves_the_order_of_the_others_as_it_was(tmp_path: Path) -> None:
    shards(tmp_path / "data", [30, 30, 30])
    pattern = f"{tmp_path}/data/{{00000..00002}}.tar"
    settings = config(pattern, bad_share=0.9)
    whole = numbers(take(loader(settings), 11))
    (tmp_path / "data/00001.tar").unlink()
    pairs = loader(settings)
    assert numbers(take(pairs, 11)) == [number for number in whole if not 100 <= number < 200]
    assert {error.reason for error in pairs.ledger.bad.values()} == {"shard missing"}
    assert pairs.ledger.count == sum(100 <= number < 200 for number in whole)


def test_no_shard_at_all_is_an_error(tmp_path: Path) -> None:
    for path, message in (("a.tar", "no shard .*a.tar"), ("*.tar", r"no shard in .*\*.tar")):
        with pytest.raises(ValueError, match=message):
            open_source(config(tmp_path / path), "train")
    with pytest.raises(
        ValueError, match=r"train split is empty: .* holds no sample with a picture for it\n.*picture missing"
    ):
        open_source(config(tar(tmp_path / "texts.tar", [("1.txt", b"a fox")])), "train")
    with pytest.raises(ValueError, match=r"data\.source=shards needs data\.path"):
        open_source(DataConfig(source="shards"), "train")


INDEXING = """
import sys, time
import diptych.data.shards.listing as listing
from diptych.data.sources.shards import open_shards
from diptych.schema import DataConfig
build = listing.build_index
def slowly(*arguments):
    time.sleep(0.1)
    return build(*arguments)
listing.build_index = slowly
listing.WORTH = 0
open_shards(DataConfig(source="shards", path=sys.argv[1], held_out=0.0), "train")
"""


def test_indexing_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    files = shards(tmp_path / "data", [5] * 24)
    killed = subprocess.Popen([sys.executable, "-c", INDEXING, str(tmp_path / "data")])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "data").glob("*.index"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    built = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").glob("*.index")}
    assert 2 <= len(built) < 24
    assert all(read_index(file) is not None for file in built)
    source = open_source(config(tmp_path / "data"), "train")
    assert len(source) == 5 * len(files)
    assert {file: file.stat().st_mtime_ns for file in built} == built


def test_a_shard_that_was_lost_gives_each_of_its_records_a_name_of_its_own(tmp_path: Path) -> None:
    (file,) = shards(tmp_path / "data", [6])
    source = open_source(config(file), "train")
    again = pickle.loads(pickle.dumps(source))  # another process opens the shard for itself
    file.unlink()
    names = set()
    for index in range(6):
        with pytest.raises(BadRecord, match="shard missing") as caught:
            again.record(index)
        names.add(caught.value.record)
    assert names == {f"{file}#{index}" for index in range(6)}


def test_shards_import_no_source() -> None:
    """Sources stand above shards, and what both need stands below both."""
    files = list((Path(diptych.__file__).parent / "data/shards").glob("*.py"))
    assert len(files) > 5
    assert not [file for file in files if "diptych.data.sources" in file.read_text(encoding="utf-8")]
