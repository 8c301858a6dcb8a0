"""What the README, the pages on training and results, and the map of the papers show is so.

Their commands run in the order in which a reader meets them, the README's Python runs, and the map names the files that
compute the equations."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.apps.compare import compute, speed
from diptych.apps.demo import pretraining, tasks
from diptych.apps.demo.systems import ALBEF, Demonstration
from diptych.catalog import find_recipe
from diptych.cli import where
from diptych.cli.main import VERBS, main
from diptych.data.sources.folder import read_folder
from diptych.data.sources.scenes import open_scenes
from diptych.recipes.override import override, parse_assignments
from diptych.run import training
from diptych.schema import AlbefConfig, DataConfig, GroundingTrainingConfig, Recipe, VlmoConfig, VqaDecoderConfig
from tests.contracts.test_demo import blind_afterwards

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALKED = ("README.md", "docs/training.md", "docs/results.md")
"""Pages whose commands a reader runs one after the other, in this order."""
PAPER_MAP = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
PAGES = [
    *WALKED,
    "CONTRIBUTING.md",
    "docs/paper_map.md",
    *(f"diptych/recipes/{file.name}" for file in (ROOT / "diptych/recipes").glob("*.py")),
]
SHRUNK = {
    "data.scenes.sprites": "shapes",
    "data.scenes.count": 256,
    "data.scenes.evaluation_count": 24,
    "data.workers": 0,
    "run.steps": 4,
    "run.device": "cpu",
}
"""What makes a training of the README one of seconds; nothing that it shows depends on it."""
SHALLOW: dict[type, dict[str, int]] = {
    AlbefConfig: {"model.vision.depth": 1, "model.text.layers": 2, "model.text.fusion_start": 1},
    VlmoConfig: {"model.depth": 2, "model.fusion_start": 1},
    GroundingTrainingConfig: {"task.boxes.layer": 0},
    VqaDecoderConfig: {"task.decoder.layers": 1},
}
"""Few layers, by the type of a recipe's model and task."""
BATCH = 16
"""Pairs of a batch, where a page does not give another number than the recipe."""
BASE = "albef_base"
"""Recipes of this size are parsed, not run."""
ABLATE = "ablate"
"""Trains in processes of its own, which no test can shrink from here: parsed, and run in test_ablate.py."""
DOCTOR = "doctor"
"""Wants the log of more steps than a shrunk training has: parsed, and run in test_doctor.py."""
PUBLISHED = ("inspect", "convert")
"""Need published files: parsed, and run in test_convert.py, test_published.py and test_published_vlmo.py."""
ELSEWHERE = (ABLATE, DOCTOR, *PUBLISHED, "serve", "app", "export")
"""The last three serve without end or trace a whole model: tests/serve, tests/app and tests/export run them."""
BROKEN = 5
"""More than a held-out split holds, so that training meets one."""
COLOURS = ("red", "green", "blue", "black", "white", "yellow")


def commands(text: str) -> list[list[str]]:
    """The `diptych …` lines of a page's code, without their comments, as arguments."""
    lines = re.findall(r"(?:^|`)\$? ?diptych ((?!VERB)[a-z][^`\n]*)", text, flags=re.MULTILINE)
    return [
        [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', re.split(r"\s+#", line, maxsplit=1)[0])]
        for line in lines
    ]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_pages_show_can_be_parsed(page: str) -> None:
    for verb, *rest in commands((ROOT / page).read_text(encoding="utf-8")):
        assert verb in VERBS, f"{page} shows diptych {verb}"
        import_module(VERBS[verb][0])
        if verb == "train":
            override(find_recipe(rest[0]), parse_assignments([word for word in rest[1:] if "=" in word]))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_that_pages_show_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert shown
    assert shown <= targets


# --------------------------------------------------------------------------- a walk through the page


def save_photos(folder: Path) -> None:
    """Forty pictures with texts, some broken, and one without a text."""
    folder.mkdir()
    for number in range(40):
        colour = COLOURS[number % len(COLOURS)]
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} car\n")
    for number in range(BROKEN):
        (folder / f"broken{number}.jpg").write_bytes(b"no picture")
        (folder / f"broken{number}.txt").write_text("a red car")
    Image.new("RGB", (8, 8)).save(folder / "silent.png")


def save_claims(file: Path) -> None:
    """A line of JSON for each whole picture, by its colour."""
    labels = ("entailment", "contradiction", "neutral")
    entries = [
        {"image": f"photos/{number}.png", "hypothesis": f"a {COLOURS[number % 6]} car", "label": labels[number % 3]}
        for number in range(40)
    ]
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def small(recipe: Recipe) -> Recipe:
    """Shrinks a training that a page shows."""
    fewer = [SHALLOW.get(type(part), {}) for part in (recipe.model, recipe.task)]
    given = recipe.run.batch_size != find_recipe(recipe.name).run.batch_size
    batch = {} if given else {"run.batch_size": BATCH}
    return override(recipe, SHRUNK | batch | fewer[0] | fewer[1])


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a reader did `make demo`, with small trainings."""
    place = tmp_path_factory.mktemp("reader")
    save_photos(place / "photos")
    save_claims(place / "claims.jsonl")
    train = training._train

    def train_small(recipe: Recipe, *arguments: Any, **named: Any) -> Path:
        return train(small(recipe), *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(training, "_train", train_small)
        patch.setattr(tasks, "_blind_beside", blind_afterwards)
        patch.setattr(speed, "SECONDS", 0.01)
        patch.setattr(compute, "COUNTED", 1)
        pretraining.demo(Demonstration(ALBEF, ALBEF.folder))
        yield place


def test_every_command_runs_in_the_order_of_the_pages(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in WALKED)
    every = dict.fromkeys(map(tuple, commands(pages)))  # a command that a second page repeats runs once
    shown = [list(command) for command in every if BASE not in command and command[0] not in ELSEWHERE]
    assert {verb for verb, *_ in shown} >= {
        "train",
        "resume",
        "evaluate",
        "report",
        "search",
        "recipes",
        "where",
        "compare",
    }
    said = {}
    for command in shown:
        status = main(command)
        printed = capsys.readouterr()
        assert status == 0, f"{command}: {printed.err}"
        said[" ".join(command)] = printed.out + printed.err
    training = next(text for command, text in said.items() if "data.source=folder" in command)
    assert "silent.png: picture without text" in training
    assert re.search(r"records skipped: .*\d × not a picture", training)
    assert "albef_tiny in runs/albef_tiny" in training
    for file in ("recipe.json", "metrics.jsonl", "eval.json", "report.html"):
        assert (walked / "runs/albef_tiny" / file).is_file()
    assert "Not compared" not in said["demo --model vlmo"]
    assert (walked / "runs/demo-vlmo/comparison.html").is_file()
    page = (walked / "runs/demo-vlmo-stages/report.html").read_text(encoding="utf-8")
    stages = re.search(r"<section id=\"stages\">.*?</section>", page, flags=re.DOTALL)
    assert stages is not None
    for measure in (
        "Visual-token accuracy",
        "Always the commonest",
        "Perplexity of the codes",
        "Perplexity of a masked",
    ):
        assert measure in stages[0], measure


def test_the_demo_s_pictures_are_a_folder_of_pairs(walked: Path) -> None:
    found = read_folder("runs/demo/pictures", DataConfig())
    assert not found.skipped
    captions = {Path(record.images[0]).name: record.captions for record in found.records}
    assert sorted(captions) == sorted(file.name for file in Path("runs/demo/pictures").glob("*.png"))
    scenes = open_scenes(override(find_recipe("albef_tiny"), SHRUNK).data, "test")
    assert captions["0003.png"] == scenes.record(3).captions


def test_the_python_example_runs(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("% ")[1] for line in lines) == [
        "runs/demo/pictures/0000.png",
        "runs/demo/pictures/0001.png",
    ]


def test_the_example_script_searches_photographs(
    walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for calibration in Path("runs/demo").rglob("calibration.json"):
        calibration.unlink()  # so that a model that has learnt nothing leaves nothing out
    monkeypatch.setattr(sys, "argv", ["search_photos.py", "runs/demo", "photos", "a red car", "a blue car"])
    runpy.run_path(str(ROOT / "examples" / "search_photos.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("among 41 pictures in photos") == 2
    assert printed.count(".png") == 2 * 5


def test_the_figures_of_the_pages_are_drawn_from_both_demonstrations(
    walked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demo", "--model", "vlmo"]) == 0
    monkeypatch.setattr(sys, "argv", ["walk.py", "runs/demo", "runs/demo-vlmo", "--to", "figures"])
    runpy.run_path(str(ROOT / "docs" / "walk.py"), run_name="__main__")
    shown = re.findall(r"!\[[^\]]+\]\(pictures/(walk-[^)]*)\)", (ROOT / "docs/pictures.md").read_text(encoding="utf-8"))
    assert sorted(file.name for file in Path("figures").iterdir()) == sorted(shown)
    assert all(Image.open(Path("figures") / name).width > 300 for name in shown)


def test_load_is_there_and_nothing_else_by_chance() -> None:
    assert diptych.load is import_module("diptych.pretrained").load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        diptych.laod  # noqa: B018


# --------------------------------------------------------------------------- the map of the papers


def map_rows(paper: str) -> list[tuple[str, set[str]]]:
    """The first cell of each row of a paper's table, and the files that the row links to."""
    (section,) = re.findall(rf"^## {paper}$(.*?)(?=^## |\Z)", PAPER_MAP, flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (§[^|]*) \|[^|]*\|([^|]*)\|$", section, flags=re.MULTILINE)
    return [(place, set(re.findall(r"\]\(\.\./(diptych/[^)]*)\)", files))) for place, files in rows]


def tagged(start: str) -> list[tuple[str, str]]:
    """Each tag of a paper, without the paper's name, and the file that it stands in."""
    tags = [tag for tag in where.tags(ROOT / "diptych") if tag.name.startswith(start)]
    return [(tag.name.split(" ", 1)[1], tag.file.relative_to(ROOT).as_posix()) for tag in tags]


def test_the_map_of_the_paper_is_that_of_the_code() -> None:
    rows = [(place.partition(", ")[2], files) for place, files in map_rows("ALBEF") if "Eq." in place]
    equations = dict(tagged("ALBEF Eq."))
    assert dict(rows) == {equation: {file} for equation, file in equations.items()}
    assert len(rows) == len(equations)


def test_the_map_names_the_file_of_each_section_of_vlmo() -> None:
    rows, sections = map_rows("VLMo"), tagged("VLMo §")
    assert sections
    for section, file in sections:
        assert any(place == section and file in files for place, files in rows), f"VLMo {section} is in {file}"
