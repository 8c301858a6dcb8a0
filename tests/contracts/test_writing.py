"""What is written is whole under its name, or not there, and the message names it."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from diptych.data.tar import add_member, whole_shard
from diptych.writing import UNFINISHED, WriteError, is_free, whole_file, whole_folder, write_text
from tests.disk import full_disk


def test_a_file_keeps_what_it_held_where_the_disk_refuses(tmp_path: Path) -> None:
    file = write_text(tmp_path / "place" / "a.txt", "old")
    with full_disk(at=10), pytest.raises(WriteError) as error:
        write_text(file, "new" * 10)
    assert str(error.value) == f"{file} could not be written (File too large)"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
    write_text(file, "newer")
    assert file.read_text() == "newer"


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/a\.txt could not be written \((Not a directory|File exists)\)"):
        write_text(tmp_path / "file" / "a.txt", "")


def _fill(folder: Path, second: str) -> None:
    with whole_folder(folder) as place:
        write_text(place / "inner" / "first", "short")
        assert not (folder / "inner").exists()
        write_text(place / "second", second)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
    with full_disk(at=10), pytest.raises(WriteError, match="out could not be written"):
        _fill(folder, "long" * 10)
    assert is_free(folder)
    (folder / f"{UNFINISHED}out").mkdir(parents=True)  # as a kill leaves it
    assert is_free(folder)
    _fill(folder, "short")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "inner", "inner/first", "second",
    ]  # fmt: skip
    assert not is_free(folder)


def test_errors_of_files_that_are_read_meanwhile_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out"):
        (tmp_path / "missing").read_text()
    with pytest.raises(ConnectionError), whole_file(tmp_path / "out"):
        raise ConnectionError(errno.ECONNRESET, "reset")
    assert not list(tmp_path.iterdir())


def test_a_shard_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    refused = pytest.raises(WriteError, match=r"a\.tar could not be written")
    with full_disk(at=20_000), refused, whole_shard(file) as archive:
        add_member(archive, "a.txt", bytes(50_000))
    assert not list(tmp_path.iterdir())
