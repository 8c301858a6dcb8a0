"""Checks `diptych index` and `diptych embed` on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.predict import load
from tests.index.sources import CAPTIONS, save_lines, save_picture, save_pictures
from tests.runs import save_run


def run_command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_build_search_add_remove_info(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, place = save_pictures(tmp_path / "photos", 4), tmp_path / "photos.index"
    (photos / "bad.png").write_text("no picture")
    status, out, _ = run_command(capsys, "index", "build", photos, "--model", run, "--device", "cpu")
    assert status == 0
    assert out.splitlines()[:3] == [f"{place}: 4 added", "pictures  exact, 4 vectors", "1 could not be used:"]
    status, out, _ = run_command(
        capsys, "index", "search", place, "two dogs", "--top", 3, "--rerank", "--device", "cpu"
    )
    assert out.startswith('"two dogs" among 4 pictures (exact, 4 vectors)\n')
    ranked = load(run, "cpu").rank("two dogs", sorted(photos.glob("**/[0-9].png")), k=3, rerank=True)
    assert [Path(line.split()[-1]).name for line in out.splitlines()[3:]] == [Path(hit.name).name for hit in ranked]
    lines: list[object] = [{"text": text} for text in CAPTIONS]
    texts = save_lines(save_picture(tmp_path / "texts" / "x.png", 9).parent / "list.jsonl", lines)
    assert run_command(capsys, "index", "add", place, texts, "--device", "cpu")[0] == 0
    _, out, _ = run_command(
        capsys, "index", "search", place, "--image", photos / "0.png", "--of", "text", "--device", "cpu"
    )
    assert all(text in out for text in CAPTIONS)
    assert run_command(capsys, "index", "remove", place, "0.png")[1] == f"removed 1 from {place}, which holds 7 now\n"
    (photos / "1.png").unlink()
    _, out, _ = run_command(capsys, "index", "search", place, "a boat", "--device", "cpu")
    assert out.splitlines()[-1].startswith("1 of the hits are no longer there: 1.png (")
    assert "1 removed, which the source has no more" in run_command(capsys, "index", "add", place, photos, "--prune")[1]
    assert run_command(capsys, "index", "remove", place, "inner/*")[1] == f"removed 1 from {place}, which holds 6 now\n"
    _, out, _ = run_command(capsys, "index", "info", place)
    assert f"source    {photos}\n" in out
    assert "pictures  exact, 2 vectors\n" in out
    assert "texts     exact, 4 vectors\n" in out


def test_a_model_that_was_moved_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, photos = save_run(tmp_path / "run", "retrieval"), save_pictures(tmp_path / "photos", 2)
    place = tmp_path / "place"
    assert run_command(capsys, "index", "build", photos, "--model", run, "--at", place, "--device", "cpu")[0] == 0
    shutil.move(run, tmp_path / "moved")
    status, _, error = run_command(capsys, "index", "search", place, "a boat", "--device", "cpu")
    assert status == 2
    assert "which does not exist: name it with --model RUN" in error
    again = run_command(capsys, "index", "search", place, "a boat", "--model", tmp_path / "moved", "--device", "cpu")
    assert again[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["index", "search", "x"], "give a query: words, or a picture"),
        (["index", "search", "x", "a boat", "--image", "y"], "give a query: words, or a picture"),
        (["index", "info", "nowhere"], "no index in nowhere"),
        (["index", "remove", "nowhere", "a"], "no index in nowhere"),
        (["embed", "RUN", "DIR", "--to", "v.csv"], "v.csv names no known format"),
        (["embed", "RUN", "DIR", "--to", "v.npy", "--processes", "0"], "--processes is 0: it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = run_command(capsys, *words)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir()), "a mistake left something behind"
