"""Builds the site: `make docs`, without a network.

1. Writes the pages that follow from the code: the papers' equations, the recipes, the reference.
2. Checks that every relative link of a Markdown page leads to a file, and every #anchor to a heading of it.
3. Runs the doctests.
4. Builds `docs/_site` with Sphinx; a warning is a failure.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from diptych.catalog import RECIPES
from diptych.cli import where

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diptych"
DOCS = ROOT / "docs"
SITE = DOCS / "_site"
MADE = "generated"
"""The folder of docs for the pages that this script writes."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|\b(?:src|srcset)=\"([^\"\s]+)\"")


def pages() -> list[Path]:
    """Returns the Markdown pages that are written by hand."""
    written = [page for page in DOCS.rglob("*.md") if not {MADE, SITE.name} & {*page.relative_to(DOCS).parts}]
    return sorted([*ROOT.glob("*.md"), *written, *(ROOT / "examples").glob("**/*.md")])


def broken_links(page: Path) -> Iterator[str]:
    """Yields a page's broken relative links. Links to other sites are not checked: docs build without a network."""
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
    """Returns the anchors of a page's headings, formed as on GitHub."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --------------------------------------------------------------------------- generated pages


def generate() -> None:
    """Writes the pages that follow from the code."""
    made = DOCS / MADE
    shutil.rmtree(made, ignore_errors=True)
    (made / "api").mkdir(parents=True)
    (made / "papers.md").write_text(papers(), encoding="utf-8")
    (made / "recipes.md").write_text(recipes(), encoding="utf-8")
    packages: dict[str, list[str]] = {}
    for name in modules():
        packages.setdefault(package(name), []).append(name)
    for name, names in packages.items():
        text = f"# {name}\n\n" + "\n".join(map(reference, names))
        (made / "api" / f"{name}.md").write_text(text, encoding="utf-8")
    tree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"api/{name}" for name in packages), "```"])
    (made / "reference.md").write_text(
        f"# Reference\n\nEvery package of the library, read from its source.\n\n{tree}\n", encoding="utf-8"
    )


def papers() -> str:
    """Returns a table of each equation and section with the lines that compute it, as `diptych where` finds them."""
    lines = [
        "# Equations and sections, by line",
        "",
        "This table is generated from the comments that `diptych where` reads. A test fails if an equation is missing "
        "or occurs twice. [The papers in the code](../paper_map.md) says what each of them is.",
        "",
        "| paper | function or class | line |",
        "|---|---|---|",
    ]
    tags = sorted(where.tags(PACKAGE), key=lambda tag: (where.natural(tag.name), tag.file, tag.line))
    rows = [f"| {tag.name} | `{tag.scope}` | `{tag.file.relative_to(ROOT)}:{tag.line}` |" for tag in tags]
    return "\n".join([*lines, *rows, ""])


def recipes() -> str:
    """Returns what the docstring of each recipe says: command, cost, expected result."""
    lines = [
        "# Recipes",
        "",
        "`diptych recipes NAME` lists every field of a recipe. Add a field to a command to change it: `run.steps=500`.",
        "",
    ]
    for name, recipe in RECIPES.items():
        text = inspect.getdoc(recipe) or ""
        facts = re.sub(r"^(Command|Cost|Expected):", r"- **\1**:", text, flags=re.MULTILINE)
        lines += [f"## {name}", "", re.sub(r"\n(?=- \*\*Command)", "\n\n", facts), ""]
    return "\n".join(lines)


def modules() -> list[str]:
    """Returns the names of all modules of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return [name for name in names if not name.endswith("__main__")]


def package(module: str) -> str:
    """Returns the page that a module belongs to: its package below `diptych`, or the app below `diptych.apps`."""
    _, *names = module.split(".")
    return ".".join(names[:2] if names[:1] == ["apps"] else names[:1]) or "diptych"


def reference(module: str) -> str:
    """Describes a module's public classes, their public methods and its public functions, from its source."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lines = [f"## `{module}`", "", *prose(tree), ""]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            lines += [f"### `{node.name}`", "", *described(node)]
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    lines += described(inner)
    return "\n".join([*lines, ""])


def described(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Returns the signature and the docstring of a class or function."""
    bases = ", ".join(map(ast.unparse, node.bases)) if isinstance(node, ast.ClassDef) else ""
    signature = (
        f"class {node.name}({bases})" if isinstance(node, ast.ClassDef) else f"{node.name}({ast.unparse(node.args)})"
    )
    gives = f" -> {ast.unparse(node.returns)}" if isinstance(node, ast.FunctionDef) and node.returns else ""
    return ["```text", f"{signature}{gives}", "```", "", *prose(node), ""]


def prose(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Returns a docstring as Markdown, with examples and indented paragraphs as blocks of code."""
    lines: list[str] = []
    for part in (ast.get_docstring(node) or "").split("\n\n"):
        code = part.startswith((">>>", " ", "{", "diptych ", "model ="))
        lines += ["```text", part, "```", ""] if code else [part.replace("<", "\\<").replace("|", "\\|"), ""]
    return lines


def doctests() -> tuple[int, int]:
    """Runs all doctests. Returns how many failed, and how many there are."""
    results = [doctest.testmod(import_module(name)) for name in modules()]
    return sum(result.failed for result in results), sum(result.attempted for result in results)


def site() -> int:
    """Builds the site and returns Sphinx's exit status. Warnings count as errors."""
    from sphinx.cmd.build import main as sphinx

    return sphinx(["-q", "-W", "--keep-going", "-E", "-b", "html", str(DOCS), str(SITE)])


def main() -> int:
    generate()
    broken = [problem for page in pages() for problem in broken_links(page)]
    print(*broken, sep="\n", end="\n" if broken else "")
    failed, tried = doctests()
    built = site()
    print(f"{len(pages())} pages, {len(broken)} broken links; {tried} doctests, {failed} failed; site in {SITE}")
    return 1 if broken or failed or built else 0


if __name__ == "__main__":
    sys.exit(main())
