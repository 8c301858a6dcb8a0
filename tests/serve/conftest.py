"""Provides a family of tiny models and one server for the tests of HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.apps.index import build_index
from diptych.predict import ModelPool
from tests.runs import save_family
from tests.serve.server_state import Running, picture, running


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ModelPool:
    return ModelPool.load([save_family(tmp_path_factory.mktemp("served") / "run")], device="cpu")


@pytest.fixture(scope="session")
def photos(pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds an index of five pictures."""
    place = tmp_path_factory.mktemp("photos")
    (place / "pictures").mkdir()
    for seed in range(5):
        picture(seed).save(place / "pictures" / f"{seed}.png")
    build_index(place / "index", place / "pictures", pool.find("embed").predictor)
    return place / "index"


@pytest.fixture(scope="session")
def served(pool: ModelPool, photos: Path) -> Iterator[Running]:
    with running(pool, index=str(photos)) as server:
        yield server
