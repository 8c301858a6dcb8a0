"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


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
