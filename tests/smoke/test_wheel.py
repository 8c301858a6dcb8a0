"""The built wheel installs, and runs far from the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diptych import __version__

ROOT = Path(__file__).parents[2]
TINY = [
    "data.scenes.sprites=shapes",
    "data.scenes.count=32",
    "data.scenes.evaluation_count=8",
    "data.workers=0",
    "tokenizer.size=120",
    "model.vision.width=32",
    "model.text.width=32",
    "run.steps=2",
    "run.batch_size=8",
    "run.validation_items=8",
]


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site) if site else ""}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = {
        path.relative_to(ROOT).as_posix()
        for kind in ("*.py", "*.json", "*.j2", "*.css", "*.js", "*.svg")
        for path in (ROOT / "diptych").rglob(kind)
    }
    assert package <= set(names)
    assert {name.partition("/")[0] for name in names} == {"diptych", f"diptych-{__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_command_runs_outside_the_clone(site: Path, tmp_path: Path) -> None:
    command = site / "bin" / "diptych"
    where = run(sys.executable, "-c", "import diptych; print(diptych.__file__)", cwd=tmp_path, site=site)
    assert where.strip() == str(site / "diptych" / "__init__.py")
    assert "usage: diptych VERB" in run(command, "--help", cwd=tmp_path, site=site)
    assert run(command, "--version", cwd=tmp_path, site=site) == f"diptych {__version__}\n"
    output = run(command, "where", "ALBEF Eq. 6", cwd=tmp_path, site=site)
    assert output.startswith(f"ALBEF Eq. 6  {site / 'diptych'}/")


def test_the_installed_command_trains_outside_the_clone(site: Path, tmp_path: Path) -> None:
    run(site / "bin" / "diptych", "train", "albef_tiny", *TINY, cwd=tmp_path, site=site)
    assert (tmp_path / "runs" / "albef_tiny" / "checkpoints" / "step-00000002" / "weights.safetensors").is_file()
