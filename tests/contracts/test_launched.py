"""Tests what is read from the environment of a process that torchrun started, or that somebody set by hand."""

from __future__ import annotations

import pytest

from diptych import launched
from diptych.cli.main import main


def test_numbers_are_read_and_what_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "")
    assert (launched.processes(), launched.rank(), launched.local_rank(), launched.restarted()) == (4, 0, 0, False)
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert main(["train", "albef_tiny", "--folder", "somewhere"]) == 2
    assert "WORLD_SIZE='abc' in the environment is no whole number" in capsys.readouterr().err
