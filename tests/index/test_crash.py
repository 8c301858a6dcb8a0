"""Kills processes at any moment: an index is the old or the new one, and the same call again completes the work."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.apps.index import build_index, embed_source, open_index, remove_from_index
from diptych.apps.index.folder import FolderStore
from diptych.predict import Predictor
from tests.disk import full_disk
from tests.index.sources import save_pictures

ROOT = Path(__file__).parents[2]
KILLED = -9
KILLS = 10
"""Kills of each call: half of them anywhere, half in the last tenth, where the index is written."""


class Worker:
    """A process of tests/index/killable.py."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "tests.index.killable", str(run)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, what: str, *arguments: Any, kill_at: int | None = None) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"do": what, "arguments": arguments, "kill_at": kill_at}
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def worker(run: Path) -> Iterator[Worker]:
    worker = Worker(run)
    yield worker
    worker.process.communicate()


def kills(moments: int) -> list[int]:
    draw = random.Random(0)
    late = [draw.randrange(moments * 9 // 10, moments) for _ in range(KILLS // 2)]
    return [draw.randrange(1, moments) for _ in range(KILLS // 2)] + late


def content(place: Path) -> dict[str, np.ndarray]:
    """Returns the vectors by id. Opening an index checks every file."""
    store = FolderStore(place)
    tables = [table for table in store.tables.values() if table.items]
    return {item.id: vector for table in tables for item, vector in zip(table.items, table.vectors, strict=True)}


def same(vectors: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Compares vectors up to the rounding that depends on the division into batches."""
    return vectors.keys() == other.keys() and all(np.allclose(vectors[id], other[id], atol=1e-5) for id in vectors)


def leftovers(place: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in place.iterdir()} - {
        ".lock", "index.json", "generation", "skipped.jsonl",
    }  # fmt: skip


def test_a_build_killed_anywhere_leaves_no_index_or_the_whole_one_and_can_be_continued(
    worker: Worker, tmp_path: Path, model: Predictor
) -> None:
    photos = save_pictures(tmp_path / "photos", 11)
    (photos / "bad.png").write_text("no picture")
    whole = worker.do("build", tmp_path / "whole", photos)
    assert whole["status"] == 0
    expected = content(tmp_path / "whole")
    states = set()
    for number, kill_at in enumerate(kills(whole["moments"])):
        place = tmp_path / str(number)
        assert worker.do("build", place, photos, kill_at=kill_at)["status"] == KILLED
        try:
            vectors = content(place)
        except ValueError as error:
            assert "not finished" in str(error) or "no index" in str(error)  # noqa: PT017 — either, and nothing else
            states.add("not there")
        else:
            assert same(vectors, expected)
            states.add("whole")
        staged = len(list((place / "staged").glob("*.npz")))
        again = worker.do("build", place, photos)
        assert again["status"] == 0
        assert staged == 0 or again["moments"] < whole["moments"], "what was embedded was embedded again"
        assert same(content(place), expected), f"killed at {kill_at}"
        assert not leftovers(place)
        assert len(list(place.glob("generation-*"))) == 1
    assert states == {"not there", "whole"}
    assert len(open_index(place, model).search("a boat", k=20).hits) == 11


@pytest.mark.parametrize("what", ["add", "remove"])
def test_a_change_killed_anywhere_leaves_the_old_or_the_new_index(what: str, worker: Worker, tmp_path: Path) -> None:
    photos = save_pictures(tmp_path / "photos", 8)
    assert worker.do("build", tmp_path / "before", photos)["status"] == 0
    before = content(tmp_path / "before")
    second: Any = save_pictures(tmp_path / "second", 5, seed=40) if what == "add" else ["0.png", "3.png"]
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    whole = worker.do(what, tmp_path / "after", second)
    after = content(tmp_path / "after")
    assert len(after) == (13 if what == "add" else 6)
    states = set()
    for number, kill_at in enumerate(kills(whole["moments"])):
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", place)
        assert worker.do(what, place, second, kill_at=kill_at)["status"] == KILLED
        vectors = content(place)
        assert same(vectors, before) or same(vectors, after), f"killed at {kill_at}"
        states.add(len(vectors))
        if what == "add":
            assert worker.do(what, place, second)["status"] == 0
        elif len(vectors) == len(before):
            remove_from_index(place, second)
        assert same(content(place), after)
    assert states == {len(before), len(after)}


def test_an_embedding_killed_anywhere_and_continued_gives_the_same_bytes(worker: Worker, tmp_path: Path) -> None:
    photos = save_pictures(tmp_path / "photos", 11)
    (photos / "bad.png").write_text("no picture")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = worker.do("embed", photos, tmp_path / "whole" / "v.npy")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {"v.npy", "v.ids.jsonl", "v.skipped.jsonl", "v.done.json"} < expected.keys()
    for kill_at in kills(whole["moments"]):
        folder = tmp_path / "killed"
        shutil.rmtree(folder)
        folder.mkdir()
        assert worker.do("embed", photos, folder / "v.npy", kill_at=kill_at)["status"] == KILLED
        assert worker.do("embed", photos, folder / "v.npy")["status"] == 0
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert {name: files.get(name) for name in expected} == expected, f"killed at {kill_at}"


@pytest.mark.parametrize("at", [100, 1500])
def test_a_full_disk_is_named_and_a_second_try_works(at: int, tmp_path: Path, model: Predictor) -> None:
    photos = save_pictures(tmp_path / "photos", 30)
    with full_disk(at), pytest.raises(OSError, match=r"/index/.* could not be written \(File too large\)"):
        build_index(tmp_path / "index", photos, model)
    assert not (tmp_path / "index/index.json").exists()
    build_index(tmp_path / "index", photos, model)
    assert len(open_index(tmp_path / "index", model)) == 30


def test_a_full_disk_is_named_where_vectors_are_written(tmp_path: Path, model: Predictor) -> None:
    photos = save_pictures(tmp_path / "photos", 3)
    with full_disk(100), pytest.raises(OSError, match=r"v\.parts.* could not be written \(File too large\)"):
        embed_source(photos, tmp_path / "v.npy", model)
    embed_source(photos, tmp_path / "v.npy", model)
    assert np.load(tmp_path / "v.npy").shape[0] == 3
