"""Provides a trained model of each system for all tests of the index."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.predict import Predictor, load
from tests.runs import save_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("albef"), "retrieval")


@pytest.fixture(scope="session")
def model(run: Path) -> Predictor:
    return load(run, "cpu")


@pytest.fixture(scope="session")
def vlmo(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(save_run(tmp_path_factory.mktemp("vlmo"), "retrieval", "vlmo"), "cpu")
