"""The pages' links lead somewhere, and the check that says so sees it when they do not."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
from sphinx.cmd.build import main as sphinx

from diptych.catalog import RECIPES

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return script("build")


@pytest.fixture(scope="module")
def made(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of docs with the pages that the code writes."""
    place = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "docs", place / "docs", ignore=shutil.ignore_patterns("_site", "generated"))
    for name in ("diptych", "examples"):  # pages link to their files
        (place / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "DOCS", place / "docs")
        build.generate()
    return place / "docs"


def test_no_page_has_a_broken_link(build: ModuleType, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROOT / "README.md" in build.pages()
    assert [
        problem for page in build.pages() for problem in build.broken_links(page) if "generated/" not in problem
    ] == []
    for page in made.glob("*.md"):
        for link in re.findall(r"\]\((generated/[^)#]*)", page.read_text(encoding="utf-8")):
            assert (made / link).is_file(), link


def test_the_site_builds_without_a_warning(made: Path) -> None:
    assert sphinx(["-q", "-W", "--keep-going", "-b", "html", str(made), str(made / "_site")]) == 0
    pages = list((made / "_site").rglob("*.html"))
    assert {"index.html", "pictures.html", "tasks/vqa.html", "generated/api/models.html"} <= {
        page.relative_to(made / "_site").as_posix() for page in pages
    }
    for page in pages:
        asked = re.findall(
            r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", page.read_text("utf-8")
        )
        assert not asked, page


def test_a_broken_link_and_a_missing_heading_are_found(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A heading, `with code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[good](other.md#a-heading-with-code) [web](https://example.org/x) ![no](picture.png)\n"
        '<img alt="x" src="drawing.svg">\n'
        "[bad](nowhere.md) [worse](other.md#nothing)\n```\n[in code](absent.md)\n```\n"
    )
    assert list(build.broken_links(page)) == [
        "page.md: no file picture.png",
        "page.md: no file drawing.svg",
        "page.md: no file nowhere.md",
        "page.md: no heading #nothing in other.md",
    ]


def test_the_reference_shows_what_is_public_with_all_that_it_says(build: ModuleType) -> None:
    text = build.reference("diptych.train.optim")
    assert "build_optimizer(module: nn.Module, config: OptimConfig, parts: " in text
    assert "Builds AdamW as one fused kernel" in text
    assert "_released" not in text
    assert "```text\n>>> top_k(torch.tensor" in build.reference("diptych.search.index")


def test_the_map_of_the_papers_and_the_recipes_are_complete(made: Path) -> None:
    papers = (made / "generated/papers.md").read_text("utf-8")
    assert all(f"| ALBEF Eq. {number} | `" in papers for number in range(1, 11))
    recipes = (made / "generated/recipes.md").read_text("utf-8")
    for name in RECIPES:
        entry = recipes.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert all(f"- **{fact}**:" in entry for fact in ("Cost", "Expected")), name


def test_the_committed_pictures_are_what_the_script_draws() -> None:
    picture = script("picture")
    for name, palette in picture.PALETTES.items():
        drawn = picture.draw(palette)
        assert (ROOT / "docs" / f"diptych-{name}.svg").read_text(encoding="utf-8") == drawn
        ids = {element.get("id") for element in ElementTree.fromstring(drawn).iter()}
        assert set(re.findall(r"url\(#(\w+)\)", drawn)) <= ids


def test_decisions_are_short_and_numbered_in_order() -> None:
    entries = re.split(r"^## ", (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    titles = [entry.partition("\n")[0] for entry in entries]
    assert [title.partition(".")[0] for title in titles] == [str(number) for number in range(1, len(titles) + 1)]
    long = [entry.partition("\n")[0] for entry in entries if len(entry.strip().splitlines()[1:]) > 5]
    assert not long
