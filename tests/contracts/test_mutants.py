"""Damaged files are read or refused in one sentence. `python -m tests.mutants` makes five thousand of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutants

COUNT = 240


def test_damaged_files_are_read_or_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_PLACES", "")
    outcome = mutants.run(COUNT)
    assert not outcome.wrong, str(outcome)
    assert sum(outcome.counts.values()) == COUNT
    for kind in mutants.KINDS:
        assert outcome.counts[kind, "refused"] or kind in ("shards", "list", "kept")  # these leave out what is broken


@pytest.mark.parametrize(
    "error",
    [TypeError("unhashable type"), KeyError("step"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), ValueError("1")],
)
def test_what_python_says_of_its_own_affairs_is_no_sentence(error: Exception) -> None:
    def read(folder: Path) -> None:
        raise error

    assert mutants.judge(read, Path())[0] == "wrong"
