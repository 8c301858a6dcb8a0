"""Tests mixes of several sources: the share of each, the order, and the source that is named when one fails."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.catalog import find_recipe, open_source
from diptych.data.loader import Loaded, PairLoader
from diptych.data.order import MixedLanes
from diptych.data.record import Question
from diptych.recipes.override import from_dict, override, to_dict
from diptych.schema import DataConfig, MixConfig
from tests.shards import TOKENIZER, jpeg, shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def folder(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number}.jpg").write_bytes(jpeg(number))
        (path / f"{number}.txt").write_text(f"number {number}")
    return path


def mixed(tmp_path: Path, **fields: Any) -> DataConfig:
    """Mixes thirty samples in shards and sixteen in a folder, by three to one."""
    shards(tmp_path / "shards", [12, 18])
    parts = (
        MixConfig("shards", str(tmp_path / "shards"), weight=3.0),
        MixConfig("folder", str(folder(tmp_path / "folder", 16))),
    )
    values: dict[str, Any] = {"mix": parts, "workers": 0, "held_out": 0.0, "lanes": 4, "window": 2, "bad_share": 0.0}
    return DataConfig(source="mix", **values | fields)


def loader(settings: DataConfig, batch: int = 16, rank: int = 0, size: int = 1) -> PairLoader:
    return PairLoader(open_source(settings, "train"), TOKENIZER, settings, 16, batch, 3, rank=rank, size=size)


def take(pairs: PairLoader, count: int, start: int = 0) -> list[Loaded]:
    batches = pairs.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()  # type: ignore[attr-defined]


def ids(batches: list[Loaded]) -> list[str]:
    return [record.id for loaded in batches for record in loaded.records]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (7.0, 2.0, 1.0), (1000.0, 1.0), (0.3, 0.3, 0.4)])
def test_at_any_time_each_source_has_given_its_share(weights: tuple[float, ...]) -> None:
    order = MixedLanes(tuple(1000 for _ in weights), weights, 8, 64, 5)
    counts: Counter[int] = Counter()
    for step in range(200):
        counts.update(index // 1000 for _, index in order.keys(step, 0))
        for number, weight in enumerate(weights):
            assert abs(counts[number] - 64 * (step + 1) * weight / sum(weights)) <= 8 * len(weights)


def test_every_source_goes_through_its_own_epochs() -> None:
    order = MixedLanes((40, 400), (1.0, 1.0), 4, 8, 1)
    keys = [key for step in range(60) for key in order.keys(step, 0)]
    for number, (low, high) in enumerate(((0, 40), (40, 440))):
        epochs: dict[int, list[int]] = {}
        for epoch, index in keys:
            if low <= index < high:
                epochs.setdefault(epoch, []).append(index)
        whole = [sorted(indices) for epoch, indices in epochs.items() if epoch < max(epochs)]
        assert len(whole) >= 1 - number
        assert all(len(set(indices)) == len(indices) for indices in epochs.values())
        assert whole[:4] == [list(range(40))] * len(whole[:4])


def test_batches_of_a_mix_are_the_same_from_any_step_and_for_any_number_of_processes(tmp_path: Path) -> None:
    settings = mixed(tmp_path)
    whole = take(loader(settings), 9)
    assert Counter(record_id.split(" ")[1] for record_id in ids(whole)) == pytest.approx(
        {"(shards):": 108, "(folder):": 36}, abs=4
    )
    late = take(loader(replace(settings, workers=2)), 4, 5)
    for resumed, original in zip(late, whole[5:], strict=True):
        assert resumed.records == original.records
        assert torch.equal(resumed.batch.pixels, original.batch.pixels)
    halves = [take(loader(settings, rank=rank, size=2), 9) for rank in (0, 1)]
    for step, loaded in enumerate(whole):
        assert ids([loaded]) == ids([halves[0][step]]) + ids([halves[1][step]])


def test_a_picture_of_a_mix_is_the_one_of_its_source(tmp_path: Path) -> None:
    source = open_source(mixed(tmp_path), "train")
    assert len(source) == 46
    for index in range(46):
        record = source.record(index)
        number = int(record.captions[0].split()[-1])
        assert source.picture(record).getpixel((1, 1)) == (number,) * 3
        assert record.image_id.startswith(record.id.partition(": ")[0])


def test_the_first_source_alone_gives_validation(tmp_path: Path) -> None:
    settings = mixed(tmp_path, held_out=0.2)
    alone = replace(settings, source="shards", path=str(tmp_path / "shards"), mix=())
    first, lone = open_source(settings, "validation"), open_source(alone, "validation")
    assert [first.record(index).id for index in range(len(first))] == [
        lone.record(index).id for index in range(len(lone))
    ]
    assert len(open_source(settings, "train")) == len(open_source(alone, "train")) + 16


def test_the_source_that_fails_is_named(tmp_path: Path) -> None:
    settings = mixed(tmp_path, bad_share=0.5)
    with pytest.raises(ValueError, match=r"^data\.mix\.1 \(folder\): no folder"):
        open_source(replace(settings, mix=(settings.mix[0], replace(settings.mix[1], path="absent"))), "train")
    pairs = loader(settings)
    (tmp_path / "folder/3.jpg").write_bytes(b"no picture")
    for file in (tmp_path / "shards").glob("*.tar"):
        file.unlink()
    named = {
        error.record.split(": ")[0]
        for step in range(9)
        for error in pairs.dataset.__getitems__(pairs.order.keys(step, 0)).skipped
    }
    assert named == {"data.mix.0 (shards)", "data.mix.1 (folder)"}


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    settings = mixed(tmp_path)
    first, second = settings.mix
    for changed, message in (
        (replace(settings, mix=()), r"data\.source=mix needs data\.mix"),
        (replace(settings, path="here"), r"data\.path and data\.root say nothing here"),
        (replace(settings, mix=(first, replace(second, weight=0.0))), r"data\.mix\.1 \(folder\): weight is 0\.0"),
        (replace(settings, mix=(first, MixConfig("mix"))), r"data\.mix\.1 \(mix\): a mix holds no mix"),
        (replace(settings, mix=(first, MixConfig("foldr"))), r"data\.mix\.1 \(foldr\): no data\.source 'foldr'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(changed, "train")
    with pytest.raises(
        ValueError, match=r"data\.mix\.0 \(shards\): data\.source=shards holds captions; this task needs"
    ):
        open_source(settings, "train", Question)
    with pytest.raises(ValueError, match=r"\(folder\) has 16 records: a mix needs one a lane, data\.lanes=32"):
        loader(replace(settings, lanes=32, mix=(second, second)), 32)


def test_a_mix_is_written_on_the_command_line_as_json_and_survives_a_checkpoint(tmp_path: Path) -> None:
    recipe = find_recipe("albef_tiny")
    entries = [{"source": "shards", "path": "cc/{0..9}.tar", "weight": 3}, {"source": "folder", "path": "a,b"}]
    changed = override(recipe, {"data.source": "mix", "data.mix": json.dumps(entries)})
    assert changed.data.mix == (MixConfig("shards", "cc/{0..9}.tar", weight=3.0), MixConfig("folder", "a,b"))
    assert from_dict(to_dict(changed)) == changed
    file = tmp_path / "mix.json"
    file.write_text(json.dumps(entries))
    assert override(recipe, {"data.mix": f"@{file}"}).data.mix == changed.data.mix
    for wrong, message in (
        ('[{"sorce": "folder"}]', r"unknown name 'sorce' in 'data\.mix\.0'"),
        ('[{"source": "folder", "weight": "much"}]', r"data\.mix\.0\.weight: expected float"),
        ("[{}]", r"data\.mix\.0: missing source"),
        ("folder", r"data\.mix: expected a list of groups of fields as JSON"),
        ("3", r"data\.mix: expected a list of groups of fields, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            override(recipe, {"data.mix": wrong})
