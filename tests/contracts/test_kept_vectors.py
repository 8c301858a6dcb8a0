"""A folder that was searched is not embedded again: vectors are kept by file and model, and only while they hold."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.cli.main import main
from diptych.predict import Predictor, SearchResult, kept_vectors, load, search_folder
from tests.disk import full_disk
from tests.runs import TEXTS, save_run

QUERY = TEXTS[0]
PICTURES = 7


def painted(seed: int, size: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def age(file: Path, seconds: float = 60) -> None:
    """Makes a file as old as one that nobody is writing any more."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(file, ns=(then, then))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), "retrieval")


@pytest.fixture(scope="module")
def model(run: Path) -> Predictor:
    return load(run, "cpu")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed in range(PICTURES):
        file = folder / ("more" if seed > 4 else "") / f"{seed}.bmp"  # all of one size in bytes
        painted(seed).save(file)
        age(file)
    return folder


def files(kept: Path) -> list[Path]:
    return sorted(kept.glob("*.npz"))


def same(result: SearchResult, model: Predictor, folder: Path) -> SearchResult:
    """Checks that a search found what one without kept vectors finds."""
    fresh = search_folder(model, result.query, folder, cache=False)
    found, wanted = ({hit.name: (hit.match, hit.similarity) for hit in one.hits} for one in (result, fresh))
    assert found.keys() == wanted.keys()
    for name, scores in found.items():
        assert scores == pytest.approx(wanted[name], abs=1e-5), name
    # A picture and its copy may change places: their scores differ by what a product of another size rounds.
    assert [hit.match for hit in result.hits] == pytest.approx([hit.match for hit in fresh.hits], abs=1e-5)
    assert result.searched == fresh.searched
    assert [*map(str, result.skipped)] == [*map(str, fresh.skipped)]
    return result


def test_a_second_search_embeds_nothing_and_finds_the_same(model: Predictor, photos: Path, kept: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    first = same(search_folder(model, QUERY, photos), model, photos)
    assert (first.embedded, first.notes) == (PICTURES, ())
    second = same(search_folder(model, "a boat", photos), model, photos)
    assert (second.embedded, second.notes) == (0, ())
    assert [Path(error.record).name for error in second.skipped] == ["broken.png"], "it is named each time"
    assert len(files(kept)) == 1
    assert kept.stat().st_mode & 0o077 == 0, "names of pictures are their owner's affair"


def test_only_what_is_new_or_has_changed_is_embedded(model: Predictor, photos: Path) -> None:
    search_folder(model, QUERY, photos)
    painted(20).save(photos / "new.bmp")
    painted(21).save(photos / "0.bmp")  # the same size, another time
    (photos / "1.bmp").unlink()
    (photos / "2.bmp").rename(photos / "more" / "renamed.bmp")
    shutil.copyfile(photos / "3.bmp", photos / "copied.bmp")
    (photos / "4.bmp").touch()
    result = same(search_folder(model, QUERY, photos), model, photos)
    assert (result.embedded, result.searched) == (2, PICTURES + 1)
    assert search_folder(model, QUERY, photos).embedded == 0
    (photos / "more" / "renamed.bmp").rename(photos / "2.bmp")
    assert search_folder(model, QUERY, photos).embedded == 0, "back again"


def test_a_change_that_its_time_does_not_show_is_seen(model: Predictor, photos: Path) -> None:
    """A file may be written twice within the steps in which its file system counts time."""
    file = photos / "0.bmp"
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    search_folder(model, QUERY, photos)
    painted(30).save(file)
    os.utime(file, ns=(now, now))
    result = same(search_folder(model, QUERY, photos), model, photos)
    assert result.embedded == 1


def test_a_picture_that_changes_while_it_is_embedded_is_not_kept(
    model: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Predictor.embed_readable

    def changing(self: Predictor, pictures: list[Path]) -> object:
        result = embed(self, pictures)
        painted(31).save(photos / "0.bmp")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "embed_readable", changing)
        assert search_folder(model, QUERY, photos).embedded == PICTURES
    assert same(search_folder(model, QUERY, photos), model, photos).embedded == 1


def test_another_model_and_another_limit_have_vectors_of_their_own(
    model: Predictor, run: Path, photos: Path, kept: Path, tmp_path: Path
) -> None:
    search_folder(model, QUERY, photos)
    other = load(save_run(tmp_path / "vlmo", "retrieval", "vlmo"), "cpu")
    assert same(search_folder(other, QUERY, photos), other, photos).embedded == PICTURES
    moved = shutil.copytree(run, tmp_path / "moved")
    assert search_folder(load(moved, "cpu"), QUERY, photos).embedded == 0, "a copied run is the same model"
    with pytest.raises(ValueError, match="too large"):
        search_folder(load(run, "cpu", largest_pixels=100), QUERY, photos)
    changed = load(run, "cpu")
    with torch.no_grad():
        next(iter(changed.model.parameters())).add_(0.1)
    assert same(search_folder(changed, QUERY, photos), changed, photos).embedded == PICTURES
    assert len(files(kept)) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "folder", "foreign", "rows", "bytes"])
def test_a_damaged_file_is_made_anew_with_one_line(
    model: Predictor, photos: Path, kept: Path, tmp_path: Path, damage: str
) -> None:
    search_folder(model, QUERY, photos)
    (file,) = files(kept)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("not this")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "foreign":
        shutil.copytree(photos, tmp_path / "other")
        search_folder(model, QUERY, tmp_path / "other")
        next(other for other in files(kept) if other != file).replace(file)
    elif damage == "rows":
        heading, vectors = kept_vectors.unpacked(file)
        heading[1][0][1] = "large"
        file.write_bytes(kept_vectors.packed(heading, vectors))
    elif damage == "bytes":  # an archive whose vectors are no array
        heading, _ = kept_vectors.unpacked(file)
        with zipfile.ZipFile(file, "w") as archive:
            rows = io.BytesIO()
            np.save(rows, np.frombuffer(json.dumps(heading).encode(), np.uint8))
            archive.writestr("rows.npy", rows.getvalue())
            archive.writestr("vectors.npy", bytes(100))
    result = same(search_folder(model, QUERY, photos), model, photos)
    assert result.embedded == PICTURES
    assert "computed anew" in result.notes[0]
    assert "\n" not in result.notes[0]
    assert result.notes[0] in str(result)
    if damage == "folder":  # it stands in the way
        assert "could not be kept" in result.notes[1]
    else:
        assert len(result.notes) == 1
        again = search_folder(model, QUERY, photos)
        assert (again.embedded, again.notes) == (0, ())


def test_a_cache_that_cannot_be_written_is_said_and_the_search_goes_on(
    model: Predictor, photos: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk():
        result = search_folder(model, QUERY, photos)
    same(result, model, photos)
    assert len(result.notes) == 1
    assert "could not be kept" in result.notes[0]
    assert not files(kept)
    assert not list(kept.glob(".unfinished*"))
    monkeypatch.setattr(kept_vectors, "LARGEST", 100)
    assert "at most 100" in search_folder(model, QUERY, photos).notes[0]
    shutil.rmtree(kept)
    kept.write_text("a file in its place")
    assert "could not be kept" in search_folder(model, QUERY, photos).notes[-1]


def test_the_longest_unused_vectors_make_room(
    model: Predictor, photos: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [photos, *(shutil.copytree(photos, tmp_path / name) for name in ("second", "third"))]
    first, second = (set(files(kept)) for folder in folders[:2] if search_folder(model, QUERY, folder))
    for file, seconds in ((next(iter(first)), 300), (next(iter(second - first)), 200)):
        age(file, seconds)
    assert search_folder(model, QUERY, photos).embedded == 0, "this marks the first file as used"
    (kept / ".unfinished-1-killed.npz").write_bytes(b"what a killed process has left")
    size = next(iter(first)).stat().st_size
    monkeypatch.setattr(kept_vectors, "LARGEST", int(2.5 * size))
    search_folder(model, QUERY, folders[2])
    assert first < set(files(kept))
    assert len(files(kept)) == 2
    assert not list(kept.glob(".unfinished*"))
    used = [folders[0], folders[2], folders[1]]
    assert [search_folder(model, QUERY, folder).embedded for folder in used] == [0, 0, PICTURES]


def test_an_interrupted_search_keeps_what_it_has_embedded(
    model: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_vectors, "PORTION", 2)
    embed = Predictor.embed_readable
    calls = iter(range(9))

    def interrupted(self: Predictor, pictures: list[Path]) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return embed(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "embed_readable", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search_folder(model, QUERY, photos)
    assert same(search_folder(model, QUERY, photos), model, photos).embedded == PICTURES - 4


def test_a_killed_search_has_kept_what_came_before(
    model: Predictor, photos: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written while they grow, not only at the end."""
    monkeypatch.setattr(kept_vectors, "PORTION", 2)
    seen: list[int] = []
    embed = Predictor.embed_readable

    def noting(self: Predictor, pictures: list[Path]) -> object:
        seen.append(len(kept_vectors.unpacked(files(kept)[0])[1]) if files(kept) else 0)
        return embed(self, pictures)

    monkeypatch.setattr(Predictor, "embed_readable", noting)
    search_folder(model, QUERY, photos)
    assert seen == [0, 2, 4, 6]


def test_searches_at_the_same_time_leave_one_whole_file(model: Predictor, photos: Path, kept: Path) -> None:
    found: list[SearchResult] = []
    threads = [
        threading.Thread(target=lambda: found.append(search_folder(model, QUERY, photos, rerank=False)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(hit.name for hit in result.hits) for result in found}) == 1
    assert [result.notes for result in found] == [()] * 6
    assert search_folder(model, QUERY, photos).embedded == 0
    assert len(files(kept)) == 1


def test_a_search_that_ends_later_keeps_what_another_process_has_written(
    model: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Predictor.embed_readable

    def overtaken(self: Predictor, pictures: list[Path]) -> object:
        monkeypatch.setattr(Predictor, "embed_readable", embed)
        search_folder(model, QUERY, photos)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "embed_readable", overtaken)
    (photos / "0.bmp").rename(photos.parent / "0.bmp")
    with pytest.raises(KeyboardInterrupt):
        search_folder(model, QUERY, photos)
    assert search_folder(model, QUERY, photos).embedded == 0


@pytest.fixture
def command(run: Path, photos: Path) -> list[str]:
    return ["search", str(run), QUERY, "--images", str(photos), "--device", "cpu", "--json"]


def test_no_cache_reads_and_writes_nothing(
    command: list[str], photos: Path, model: Predictor, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--no-cache"]) == 0
    assert not kept.exists()
    without = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == without["hits"]
    (file,) = files(kept)
    file.write_text("damaged")
    assert main([*command, "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert search_folder(model, QUERY, photos, cache=False).embedded == PICTURES


@pytest.mark.parametrize("system", ["albef", "vlmo"])
def test_a_model_is_loaded_without_what_only_training_needs(system: str) -> None:
    """torch's compiler and its sharded tensors take longer to import than everything else of a search."""
    run = Path(__file__).parents[1] / "fixtures" / "runs" / system
    code = f"import sys, diptych; diptych.load({str(run)!r}, 'cpu'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"torch._dynamo", "torch.distributed.tensor", "sympy"} & {*loaded}
