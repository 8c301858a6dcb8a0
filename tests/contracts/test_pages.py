"""Runs every block of code in docs in the order of each page: Python as it stands, commands with small trainings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.catalog import find_recipe
from diptych.cli.main import VERBS, main
from diptych.recipes.override import override, parse_assignments
from diptych.run import training
from diptych.schema import Recipe
from tests.contracts.test_readme import WALKED, save_photos, small
from tests.runs import save_family

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if not {"_site", "generated"} & {*page.parts})
TASKS = [page for page in PAGES if page.parent.name == "tasks" or page.name in ("index.md", "searching.md")]
"""Pages whose commands train and use a model of the demonstration."""
SERVER = "://"
"""An index in a server: tests/index starts real ones."""
ELSEWHERE = {
    "data.md", "scaling.md", "doctor.md", "serve.md", "app.md", "export.md", "sixth_task.md", "adapters.md",
    "docker.md", "weights.md", "ideas.md",
}  # fmt: skip
"""Pages whose commands want published data, a server, cards, other tools, hours or a long log: they are parsed here,
and run in the tests of their own parts."""
READ_ON = {Path(page).name for page in WALKED if page.startswith("docs/")}
"""Pages that go on from the README: test_readme.py runs their commands after the README's."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
PROCESSES = "--processes"
"""Starts that many processes: two show as much as more, and tests/index/test_vectors.py says what they do."""
LINES: dict[str, Callable[[int], dict[str, Any]]] = {
    "claims": lambda n: {"image": f"photos/{n}.png", "hypothesis": "a red car", "label": "neutral"},
    "questions": lambda n: {"image": f"photos/{n}.png", "question": "what is it?", "answers": ["car", "car", "boat"]},
    "statements": lambda n: {
        "images": [f"photos/{n}.png", f"photos/{n + 20}.png"], "statement": "both show a car", "label": n % 2 == 0,
    },
    "phrases": lambda n: {
        "image": f"photos/{n}.png", "phrase": "the car", "box": [2, 2, 9, 9], "proposals": [[1, 1, 9, 9]],
    },
}  # fmt: skip
"""A line of each task's file; no picture is in two."""


def of_two(command: list[str]) -> list[str]:
    """Lets two processes do what a page gives to more."""
    before = [None, *command]
    return ["2" if before[place] == PROCESSES else word for place, word in enumerate(command)]


def commands(text: str) -> list[list[str]]:
    """Lists the `diptych …` lines of a text's blocks as a shell reads them."""
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^diptych .*$", text, flags=re.MULTILINE)]


def test_each_page_with_code_is_run_or_named_as_run_elsewhere() -> None:
    with_code = {page.name for page in PAGES if BLOCK.search(page.read_text("utf-8"))}
    assert with_code == {page.name for page in TASKS} | ELSEWHERE | READ_ON


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_parsed(page: Path) -> None:
    for verb, *rest in commands(page.read_text(encoding="utf-8")):
        assert verb in VERBS, f"{page} shows diptych {verb}"
        if verb in ("train", "plan") and rest and not rest[0].isupper():
            assignments = [word for word in rest[1:] if re.match(r"[a-z_.]+=", word)]
            override(find_recipe(rest[0]), parse_assignments(assignments))


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.name)
def test_fields_that_a_page_explains_are_fields_of_a_recipe_that_it_trains(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    recipes = [find_recipe(name) for name in re.findall(r"\b(?:albef|vlmo)_(?:tiny|base)_\w+", text)]
    for field in re.findall(r"`((?:task|data|model|evaluation)(?:\.\w+)+)`(?= \||,)", text):
        known = [recipe for recipe in recipes if _has(recipe, field)]
        assert known, f"{page.name} explains {field}"


def _has(recipe: Recipe, field: str) -> bool:
    at: Any = recipe
    for name in field.split("."):
        if not hasattr(at, name):
            return False
        at = getattr(at, name)
    return True


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Builds a folder as after `diptych demo --all-tasks`, with untrained models and a file for each task."""
    save_photos(tmp_path / "photos")
    save_photos(tmp_path / "holiday")
    for number in range(4):
        (tmp_path / f"photos/000{number}.png").write_bytes((tmp_path / f"photos/{number}.png").read_bytes())
    (tmp_path / "holiday/0007.png").write_bytes((tmp_path / "holiday/7.png").read_bytes())
    (tmp_path / "list.jsonl").write_text('{"image": "photos/1.png", "caption": "a green car"}\n{"text": "a car"}\n')
    save_family(tmp_path / "runs/demo")
    (tmp_path / "runs/demo/pictures").mkdir()
    for number in range(3):
        scene = Image.open(tmp_path / f"photos/{number}.png").resize((64, 64))  # the demo's scenes are of 64 pixels
        scene.save(tmp_path / f"runs/demo/pictures/000{number}.png")
    for name, line in LINES.items():
        lines = [json.dumps(line(number)) for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    train = training._train

    def train_small(recipe: Recipe, *arguments: Any, **named: Any) -> Path:
        return train(override(small(recipe), {"init_from": None}), *arguments, **named)

    monkeypatch.setattr(training, "_train", train_small)
    return tmp_path


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.name)
def test_every_block_runs_in_its_order(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for language, code in blocks:
        assert language in ("", "python", "{image}", "{toctree}"), language
        if language == "python":
            exec(compile(code, page.name, "exec"), {})
        for command in commands(code) if not language else ():
            if any(SERVER in word for word in command):
                continue
            assert main(of_two(command)) == 0, f"{command}: {capsys.readouterr().err}"
