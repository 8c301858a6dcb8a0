"""The notebook runs from start to end and is stored without outputs; the Dockerfile names what exists."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from diptych.cli.main import VERBS

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())


def test_the_notebook_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    for name, value in {"PICTURES": "60", "STEPS": "4", "FOLDER": str(tmp_path / "run")}.items():
        monkeypatch.setenv(f"NOTEBOOK_{name}", value)
    shown: dict[str, object] = {"__name__": "__main__"}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), shown)
    printed = capsys.readouterr().out
    assert "training can start" in printed
    assert "Retrieval among" in printed
    assert "near" in printed or "similarity" in printed
    assert "Linear probe" in printed
    assert len(shown["found"].hits) == 4  # type: ignore[attr-defined]
    assert (tmp_path / "run" / "run" / "eval-classes.json").is_file()


def test_the_notebook_is_stored_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    text = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(\.\./([^)#]+)", text):
        assert (ROOT / link).is_file(), link


def test_the_dockerfile_names_extras_that_exist_and_ends_as_an_ordinary_user() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    names = [name for name, _ in instructions]
    extras = next(rest for name, rest in instructions if name == "ARG" and rest.startswith("EXTRAS="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(project["optional-dependencies"])
    image = next(rest for name, rest in instructions if name == "FROM")
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, re.findall(r"\d+", image)[:2])) >= least
    assert names.count("USER") == 1
    assert [rest for name, rest in instructions if name == "USER"] == ["diptych"]
    assert "RUN" not in names[names.index("USER") :], "something is installed or changed by the ordinary user"
    assert json.loads(next(rest for name, rest in instructions if name == "ENTRYPOINT")) == ["diptych"]
    for verb in re.findall(r"diptych (\w+)", (ROOT / "docs" / "docker.md").read_text()):
        assert verb in VERBS
