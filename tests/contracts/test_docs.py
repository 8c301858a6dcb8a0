"""The pages' links lead somewhere, and the check that says so sees it when they do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        "[bad](nowhere.md) [worse](other.md#nothing)\n```\n[in code](absent.md)\n```\n"
    )
    assert list(build.broken_links(page)) == [
        "page.md: no file picture.png",
        "page.md: no file nowhere.md",
        "page.md: no heading #nothing in other.md",
    ]


def test_the_index_lists_what_is_public_with_its_first_line(build: ModuleType) -> None:
    text = build.index("diptych.train.optim")
    assert "- `build_optimizer(module: nn.Module, config: OptimConfig)`: AdamW in one fused kernel" in text
    assert "_released" not in text
