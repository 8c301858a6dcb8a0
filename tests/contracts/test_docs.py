"""The pages' links lead somewhere, and the check that says so sees it when they do not."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

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


def test_no_page_has_a_broken_link(build: ModuleType) -> None:
    assert ROOT / "README.md" in build.pages()
    assert [problem for page in build.pages() for problem in build.broken_links(page)] == []


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


def test_the_index_lists_what_is_public_with_its_first_line(build: ModuleType) -> None:
    text = build.index("diptych.train.optim")
    assert "- `build_optimizer(module: nn.Module, config: OptimConfig, parts: " in text
    assert ")`: AdamW in one fused kernel" in text
    assert "_released" not in text


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
