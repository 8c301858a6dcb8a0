"""Checks that a file holds the model's vectors in the source's order, however many processes wrote it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from diptych.apps.index import embed_source, vectors
from diptych.cli.main import main
from diptych.predict import Predictor
from tests.index.sources import CAPTIONS, save_lines, save_picture, save_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Saves four pictures with a caption each, of which the second cannot be read."""
    save_pictures(tmp_path / "listed", 5)
    (tmp_path / "listed" / "1.png").write_text("no picture")
    lines: list[object] = [{"image": f"{n}.png", "caption": text} for n, text in enumerate(CAPTIONS)]
    return save_lines(tmp_path / "listed" / "list.jsonl", lines)


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_each_row_is_the_models_vector_of_its_item(listed: Path, tmp_path: Path, model: Predictor) -> None:
    done = embed_source(listed, tmp_path / "v.npy", model, part_size=3)
    assert (done.vectors, done.skipped, done.waiting) == (7, 1, 0)
    vectors, ids = np.load(tmp_path / "v.npy"), lines_of(tmp_path / "v.ids.jsonl")
    assert (vectors.dtype, vectors.shape) == (np.float32, (7, 8))
    assert [line["kind"] for line in ids] == ["picture", "text", "text", "picture", "text", "picture", "text"]
    for line, vector in zip(ids, vectors, strict=True):
        if line["kind"] == "picture":
            expected = model.embed_images(listed.parent / line["id"])[0]
        else:
            expected = model.embed_texts(line["text"])[0]
        assert np.allclose(vector, expected, atol=1e-5)
    assert [line["record"] for line in lines_of(tmp_path / "v.skipped.jsonl")] == ["1.png"]


def test_parquet_holds_the_same_with_its_texts(listed: Path, tmp_path: Path, model: Predictor) -> None:
    for suffix in ("npy", "parquet"):
        embed_source(listed, tmp_path / f"v.{suffix}", model, part_size=3)
        embed_source(listed, tmp_path / f"w.{suffix}", model, part_size=3)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["id", "kind", "vector", "text"]
    rows, ids = table.to_pylist(), lines_of(tmp_path / "w.ids.jsonl")
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), np.load(tmp_path / "w.npy"))
    assert [(row["id"], row["kind"], row["text"]) for row in rows] == [
        (line["id"], line["kind"], line.get("text")) for line in ids
    ]


def test_shares_of_any_number_of_processes_join_to_the_same_file(tmp_path: Path, model: Predictor) -> None:
    photos = save_pictures(tmp_path / "photos", 11)
    embed_source(photos, tmp_path / "one.npy", model, part_size=2)
    reports = [embed_source(photos, tmp_path / "v.npy", model, rank, 3, part_size=2).waiting for rank in (2, 0, 1)]
    assert reports == [4, 2, 0]
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert not (tmp_path / "v.parts").exists()


def test_finished_parts_are_kept_and_another_number_of_processes_can_continue(
    tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, seen = save_pictures(tmp_path / "photos", 6), []
    embed_source(photos, tmp_path / "v.npy", model, 0, 2, part_size=2)
    embed = Predictor.embed_readable
    monkeypatch.setattr(Predictor, "embed_readable", lambda self, files: (seen.extend(files), embed(self, files))[1])
    embed_source(photos, tmp_path / "v.npy", model, part_size=2)
    assert [file.name for file in seen] == ["2.png", "3.png"]
    again = embed_source(photos, tmp_path / "v.npy", model, part_size=2)
    assert (len(seen), again.vectors, again.notes) == (
        2,
        6,
        (f"{tmp_path / 'v.npy'} is of this source and model already",),
    )


def test_a_changed_source_and_another_model_begin_anew_and_say_so(
    tmp_path: Path, model: Predictor, vlmo: Predictor
) -> None:
    photos, to = save_pictures(tmp_path / "photos", 6), tmp_path / "v.npy"
    embed_source(photos, to, model, 0, 2, part_size=2)
    save_picture(photos / "1.png", seed=70)
    begun = embed_source(photos, to, model, part_size=2)
    assert "beginning anew" in begun.notes[0]
    assert np.allclose(np.load(to)[1], model.embed_images(photos / "1.png")[0], atol=1e-5)
    assert "beginning anew" in embed_source(photos, to, vlmo).notes[0]
    assert np.load(to).shape == (6, vlmo.model.embed_dim)


def test_processes_that_torchrun_starts_take_their_shares(
    run: Path, tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, to = save_pictures(tmp_path / "photos", 5), tmp_path / "v.npy"
    monkeypatch.setattr(vectors, "embed_source", partial(embed_source, part_size=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    reports = []
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        assert main(["embed", str(run), str(photos), "--to", str(to), "--device", "cpu"]) == 0
        reports.append(capsys.readouterr().out)
    assert reports == ["process 1 has done its share; 2 of 3 parts are with others\n", f"5 vectors in {to}\n"]
    assert np.allclose(np.load(to), model.embed_images(sorted(photos.rglob("*.png"))), atol=1e-5)


def test_processes_of_its_own_share_the_work(
    run: Path, tmp_path: Path, model: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    photos, to = save_pictures(tmp_path / "photos", 5), tmp_path / "v.npy"
    words = ["embed", str(run), str(photos), "--to", str(to), "--device", "cpu", "--processes", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"5 vectors in {to}\n"
    assert np.allclose(np.load(to), model.embed_images(sorted(photos.rglob("*.png"))), atol=1e-5)


def test_bad_file_names_are_errors_before_the_model_runs(tmp_path: Path, model: Predictor) -> None:
    photos = save_pictures(tmp_path / "photos", 1)
    with pytest.raises(ValueError, match=r"v\.csv names no known format: end it with \.npy or \.parquet"):
        embed_source(photos, tmp_path / "v.csv", model)
    with pytest.raises(ValueError, match="no folder"):
        embed_source(photos, tmp_path / "nowhere" / "v.npy", model)
