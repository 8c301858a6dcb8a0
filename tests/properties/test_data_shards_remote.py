"""Tests remote shards with a local server that cuts off, stalls, denies and changes its files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from diptych.catalog import open_source
from diptych.data.loader import PairLoader
from diptych.data.record import BadRecord
from diptych.data.shards import cache, remote
from diptych.data.shards.cache import ShardCache
from diptych.data.shards.index import Stamp
from diptych.schema import DataConfig
from tests.shards import TOKENIZER, Server, number_of, serving, shard, shards


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACKOFF", 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    shards(tmp_path / "served", [10, 10, 10])
    with serving(tmp_path / "served") as running:
        yield running


def config(server: Server, **fields: Any) -> DataConfig:
    values: dict[str, Any] = {"workers": 0, "held_out": 0.0, "lanes": 1, "window": 1, "timeout": 10.0, "retries": 2}
    return DataConfig(source="shards", path=f"{server.address}/{{00000..00002}}.tar", **values | fields)


def numbers(source: Any) -> list[int]:
    return [number_of(source.record(index)) for index in range(len(source))]


ALL = [*range(10), *range(100, 110), *range(200, 210)]


def test_shards_are_fetched_once_whole_and_read_from_the_cache(tmp_path: Path, server: Server) -> None:
    source = open_source(config(server), "train")
    assert numbers(source) == ALL
    assert source.picture(source.record(25)).getpixel((0, 0)) == (205,) * 3
    assert {name: count for name, count in server.gets.items() if name.endswith("tar")} == dict.fromkeys(
        ["00000.tar", "00001.tar", "00002.tar"], 1
    )
    assert {file.suffix for file in (tmp_path / "cache/shards").iterdir()} == {".tar", ".lock"}
    again = open_source(config(server), "train")
    assert numbers(again) == ALL
    assert server.gets["00000.tar"] == 1


def test_an_index_that_lies_beside_a_shard_spares_fetching_it_to_build_one(tmp_path: Path, server: Server) -> None:
    local = open_source(DataConfig(source="shards", path=str(tmp_path / "served"), held_out=0.0), "train")
    server.files |= {file.name: file.read_bytes() for file in (tmp_path / "served").glob("*.index")}
    source = open_source(config(server), "train")
    assert len(source) == len(local) == 30
    assert server.gets["00001.tar"] == server.gets["00002.tar"] == 0
    assert numbers(source) == ALL


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["truncated", "none"], "cut off after"),
        (["503", "503", "none"], "503"),
        (["slow", "none"], "timed out"),
    ],
)
def test_a_fault_that_passes_is_tried_again_and_named(
    server: Server, faults: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults = {"00001.tar": faults}
    assert numbers(open_source(config(server, timeout=1.0), "train")) == ALL
    messages = capfd.readouterr().err
    assert f"{server.address}/00001.tar: " in messages
    assert said in messages
    assert f"try {len(faults)} of 3" in messages


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("404", "shard missing", 1),
        ("503", "unreachable", 3),
        ("truncated", "unreachable", 3),
        ("slow", "unreachable", 3),
    ],
)
def test_a_shard_that_stays_away_costs_its_own_samples_only(
    server: Server, fault: str, reason: str, tries: int
) -> None:
    server.faults = {"00001.tar": [fault]}
    source = open_source(config(server, timeout=1.0), "train")
    assert numbers(source) == [number for number in ALL if not 100 <= number < 200]
    (error,) = source.skipped
    assert error.record == f"{server.address}/00001.tar"
    assert reason in error.reason
    assert error.count == 10
    assert server.gets["00001.tar"] == tries
    pairs = PairLoader(source, TOKENIZER, config(server, bad_share=0.1), 16, 5, 0)
    with pytest.raises(ValueError, match=r"10 of 30 records could not be used.*\n.*00001\.tar"):
        next(pairs.batches())


def test_a_fetch_that_trickles_is_given_up(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=50)  # pass from one piece to the next
    monkeypatch.setattr(remote, "CHUNK", 512)
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    file = tmp_path / "00000.tar"
    with file.open("wb") as target, pytest.raises(TimeoutError, match=r"too slow: [\d,]+ bytes in 100 s"):
        remote.fetch(f"{server.address}/00000.tar", target, 90.0)
    assert file.stat().st_size < len(server.files["00000.tar"])


def test_a_shard_that_changes_at_its_address_is_never_read_by_the_old_index(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_source(config(server), "train")
    for file in (tmp_path / "cache/shards").glob("*.tar"):
        file.unlink()
    server.files["00001.tar"] = shard(tmp_path / "other.tar", range(150, 160)).read_bytes()
    assert len(server.files["00001.tar"]) == len(server.files["00000.tar"]), "only the tag tells them apart"
    reasons = []
    for index in range(10, 20):
        with pytest.raises(BadRecord) as caught:
            source.record(index)
        reasons.append(caught.value.reason)
    assert set(reasons) == {"shard changed under its index"}
    assert number_of(source.record(20)) == 200
    capfd.readouterr()
    assert numbers(open_source(config(server), "train")) == [*range(10), *range(150, 160), *range(200, 210)]
    assert "00001.tar has changed: its index is built anew" in capfd.readouterr().err


def test_a_server_that_is_gone_leaves_what_was_fetched_readable(tmp_path: Path, server: Server) -> None:
    assert open_source(config(server), "train").skipped == ()
    server.files.clear()
    source = open_source(config(server), "train")
    assert numbers(source) == ALL
    assert source.skipped == ()


# --------------------------------------------------------------------------- the cache


def held(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_the_cache_stays_within_its_bound_and_forgets_the_longest_unused(tmp_path: Path, server: Server) -> None:
    size = len(server.files["00000.tar"])
    folder = ShardCache(tmp_path / "kept", 2 * size, 10.0, 0)
    stamps = {name: remote.stamp_of(f"{server.address}/{name}", 10.0) for name in sorted(server.files)}
    for turn in ("00000.tar", "00001.tar", "00000.tar", "00002.tar", "00000.tar", "00001.tar"):
        os.close(folder.open(f"{server.address}/{turn}", stamps[turn]))
        assert held(tmp_path / "kept") <= 2 * size
    assert server.gets == {"00000.tar": 1, "00001.tar": 2, "00002.tar": 1}


def test_a_shard_that_is_being_read_is_not_removed(tmp_path: Path, server: Server) -> None:
    size = len(server.files["00000.tar"])
    folder = ShardCache(tmp_path / "kept", 2 * size, 0.2, 0)
    addresses = [f"{server.address}/{name}" for name in sorted(server.files)]
    stamps = [remote.stamp_of(address, 10.0) for address in addresses]
    first, second = (folder.open(address, stamp) for address, stamp in zip(addresses[:2], stamps, strict=False))
    with pytest.raises(ValueError, match=r"no room for .*00002\.tar .*Raise data\.cache_bytes"):
        folder.open(addresses[2], stamps[2])
    os.close(first)
    os.close(folder.open(addresses[2], stamps[2]))
    assert not folder.file(addresses[0], stamps[0]).exists()
    assert folder.file(addresses[1], stamps[1]).exists()
    os.close(second)


def test_a_cache_that_cannot_hold_what_is_open_at_once_is_refused_before_training(
    tmp_path: Path, server: Server
) -> None:
    size = len(server.files["00000.tar"])
    for window, cache_bytes, message in (
        (2, 2 * size - 1, r"cannot hold the 2 shards of up to [\d,]+ bytes that a process has open at once"),
        (1, size - 1, r"cannot hold the 1 shards"),
    ):
        settings = config(server, window=window, cache_bytes=cache_bytes)
        with pytest.raises(ValueError, match=message):
            PairLoader(open_source(settings, "train"), TOKENIZER, settings, 16, 5, 0)

    with pytest.raises(ValueError, match=r"more than data\.cache_bytes"):  # nor can a shard be indexed
        open_source(config(server, cache=str(tmp_path / "other"), cache_bytes=size - 1), "train")


def test_what_a_killed_fetch_left_is_fetched_anew(tmp_path: Path, server: Server) -> None:
    folder = ShardCache(tmp_path / "kept", 1 << 20, 10.0, 0)
    address = f"{server.address}/00000.tar"
    stamp = remote.stamp_of(address, 10.0)
    part = folder.file(address, stamp).with_suffix(".part")
    part.parent.mkdir()
    part.write_bytes(b"x" * 2 * stamp.size)
    shard = folder.open(address, stamp)
    assert os.pread(shard, 1 << 20, 0) == server.files["00000.tar"]
    os.close(shard)
    assert not part.exists()


def test_readers_that_want_the_same_shard_fetch_it_once(tmp_path: Path, server: Server) -> None:
    folder = ShardCache(tmp_path / "kept", 1 << 20, 10.0, 0)
    address = f"{server.address}/00000.tar"
    stamp = remote.stamp_of(address, 10.0)
    with ThreadPoolExecutor(8) as readers:
        for shard in readers.map(lambda _: folder.open(address, stamp), range(8)):
            os.close(shard)
    assert server.gets["00000.tar"] == 1


def test_many_processes_keep_to_the_bound_together(tmp_path: Path, server: Server) -> None:
    size = len(server.files["00000.tar"])
    folder = ShardCache(tmp_path / "kept", 2 * size, 10.0, 0)
    addresses = [f"{server.address}/{name}" for name in sorted(server.files)]
    stamps = {address: remote.stamp_of(address, 10.0) for address in addresses}

    def read(turn: int) -> bool:
        address = addresses[turn % 3]
        shard = folder.open(address, stamps[address])
        content = os.pread(shard, 1 << 20, 0)
        within = sum(1 for _ in folder.folder.glob("*.tar")) <= 2  # all are of one size
        os.close(shard)
        return within and content == server.files[address.rpartition("/")[2]]

    with ThreadPoolExecutor(2) as readers:
        assert all(readers.map(read, range(60)))


def test_no_wrong_state_is_kept(tmp_path: Path, server: Server) -> None:
    folder = ShardCache(tmp_path / "kept", 1 << 20, 10.0, 0)
    with pytest.raises(BadRecord, match=cache.CHANGED):
        folder.open(f"{server.address}/00000.tar", Stamp(len(server.files["00000.tar"]), "another"))
    assert {file.suffix for file in (tmp_path / "kept").iterdir()} == {".lock"}


# --------------------------------------------------------------------------- other addresses


def test_other_addresses_go_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in shards(tmp_path / "data", [4, 3]):
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    settings = DataConfig(source="shards", path="memory://bucket/*.tar", held_out=0.0, retries=0)
    source = open_source(settings, "train")
    assert numbers(source) == [0, 1, 2, 3, 100, 101, 102]
    missing = replace(settings, path="memory://bucket/{00000..00002}.tar")
    (error,) = open_source(missing, "train").skipped
    assert (error.record, error.reason, error.count) == ("memory://bucket/00002.tar", "shard missing", 4)


def test_an_address_that_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(ValueError, match=r"s3:// need another package: pip install s3fs"):
        open_source(DataConfig(source="shards", path="s3://bucket/00000.tar"), "train")


def test_settings_that_cannot_be_are_refused(server: Server) -> None:
    for fields, message in (
        ({"cache_bytes": 0}, r"data\.cache_bytes is 0"),
        ({"timeout": -1.0}, r"data\.timeout is -1\.0"),
        ({"retries": -1}, r"data\.retries is -1"),
        ({"window": 0}, r"data\.window is 0"),
        ({"path": f"{server.address}/*.tar"}, "a web server does not say what it has"),
        ({"root": "pictures"}, r"data\.root says nothing here"),
    ):
        with pytest.raises(ValueError, match=message):
            PairLoader(open_source(replace(config(server), **fields), "train"), TOKENIZER, config(server), 16, 5, 0)
