"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import checks

checks.install()
os.environ["DIPTYCH_PLACES"] = "trusted"  # tests write recipes with places; tests/contracts/test_places.py asks

GOLDEN = Path(__file__).parent / "golden"

TOGETHER = ("tests/app", "tests/serve")
"""Folders whose files share a server: one process runs them all."""
SLOW = (
    "tests/contracts/test_readme.py",
    "tests/distributed/test_training.py",
    "tests/distributed/test_faults.py",
    "tests/contracts/test_pages.py",
    "tests/app",
    "tests/contracts/test_earlier_version.py",
    "tests/contracts/test_ablate.py",
    "tests/contracts/test_plan.py",
    "tests/distributed/test_pretraining.py",
    "tests/properties/test_vqa.py",
    "tests/contracts/test_published.py",
    "tests/properties/test_scenes_tasks.py",
    "tests/properties/test_plan_count.py",
    "tests/smoke",
    "tests/parity",
    "tests/export",
    "tests/serve",
    "tests/contracts",
    "tests/index",
    "tests/distributed",
    "tests/properties",
)
"""What begins first, by the beginning of a file's name, so that two processes end at nearly the same time."""


class ByFile(LoadScopeScheduling):
    """Gives whole files to processes, so that what a file prepares for all of its tests is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return place_of(nodeid)


def place_of(nodeid: str) -> str:
    """Names the file of a test, or the folder whose files stay together.

    >>> place_of("tests/app/test_pages.py::test_a"), place_of("tests/smoke/test_tasks.py::test_b[c::d]")
    ('tests/app', 'tests/smoke/test_tasks.py')
    """
    file = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # the order of the files is that of the tests
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts slow files first where processes share the tests."""
    if not hasattr(config, "workerinput"):
        return

    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(SLOW) if item.nodeid.startswith(start)), len(SLOW))

    items.sort(key=rank)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-albef",
        type=Path,
        default=GOLDEN / "albef",
        help="folder with reference numbers of the released ALBEF",
    )
    parser.addoption(
        "--golden-vlmo",
        type=Path,
        default=GOLDEN / "vlmo",
        help="folder with reference numbers of the released VLMo",
    )
    parser.addoption(
        "--app-runs", type=Path, nargs="+", metavar="RUN", help="trained runs for the web app (default: tiny ones)"
    )
    parser.addoption("--screenshots", type=Path, metavar="DIR", help="where pictures of the web app's pages go")


@pytest.fixture(scope="session")
def golden_vlmo(request: pytest.FixtureRequest) -> Path:
    """Folder of VLMo's reference numbers; its layout is that of tests/golden/vlmo."""
    folder: Path = request.config.getoption("--golden-vlmo")
    return folder


@pytest.fixture(scope="session")
def golden_albef(request: pytest.FixtureRequest) -> Path:
    """Folder of ALBEF's reference numbers; its layout is that of tests/golden/albef."""
    folder: Path = request.config.getoption("--golden-albef")
    return folder
