"""One family of tiny models and one server for the tests of HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.index import build_index
from diptych.predict import Shelf
from tests.runs import save_family
from tests.serve.house import Running, picture, running


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf.load([save_family(tmp_path_factory.mktemp("served") / "run")], device="cpu")


@pytest.fixture(scope="session")
def photos(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of five pictures."""
    place = tmp_path_factory.mktemp("photos")
    (place / "pictures").mkdir()
    for seed in range(5):
        picture(seed).save(place / "pictures" / f"{seed}.png")
    build_index(place / "index", place / "pictures", shelf.find("embed").predictor)
    return place / "index"


@pytest.fixture(scope="session")
def served(shelf: Shelf, photos: Path) -> Iterator[Running]:
    with running(shelf, index=str(photos)) as one:
        yield one
