"""Checks the pages and writes the index of the API: `make docs`.

1. Every relative link of a Markdown page leads to a file, and every #anchor to a heading of it.
2. Every example in a docstring gives what it says.
3. `docs/_site/api.md` lists what each module offers, with the first line of its docstring.
"""

from __future__ import annotations

import ast
import doctest
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diptych"
SITE = ROOT / "docs" / "_site"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|\b(?:src|srcset)=\"([^\"\s]+)\"")


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("**/*.md")])


def broken_links(page: Path) -> Iterator[str]:
    """Relative links of a page that lead nowhere. Other sites are not asked: docs build without a network."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(ROOT)}: no file {path}"
        elif anchor and anchor not in anchors(file):
            yield f"{page.relative_to(ROOT)}: no heading #{anchor} in {file.name}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, made as forges make them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def modules() -> list[str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def index(module: str) -> str:
    """A module's public classes and functions, from its source."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lines = [f"## [`{module}`](../../{file.relative_to(ROOT)})", "", first_line(tree), ""]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            arguments = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
            lines.append(f"- `{node.name}{arguments}`: {first_line(node)}")
    return "\n".join([*lines, ""])


def first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def main() -> int:
    broken = [problem for page in pages() for problem in broken_links(page)]
    results = [doctest.testmod(import_module(name)) for name in modules()]
    failed, tried = sum(result.failed for result in results), sum(result.attempted for result in results)
    SITE.mkdir(exist_ok=True)
    (SITE / "api.md").write_text("# API\n\n" + "\n".join(map(index, modules())), encoding="utf-8")
    print(*broken, sep="\n", end="\n" if broken else "")
    print(f"{len(pages())} pages, {len(broken)} broken links; {tried} examples, {failed} failed; API index in {SITE}")
    return 1 if broken or failed else 0


if __name__ == "__main__":
    sys.exit(main())
