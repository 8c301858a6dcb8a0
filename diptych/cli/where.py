"""`diptych where "ALBEF Eq. 6"`: from a paper's equation or section to the line that computes it.

A tag is a comment that begins with `ALBEF Eq. N`, `ALBEF §N` or the like of VLMo; prose that mentions one is none.
"""

from __future__ import annotations

import argparse
import ast
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diptych

TAG = re.compile(r"#\s*((?:ALBEF|VLMo) (?:Eq\. \d+|§\d+(?:\.\d+)*))(?![\d.]*\d)")


@dataclass(frozen=True)
class Tag:
    name: str
    file: Path
    line: int
    scope: str
    """The function or class around it, with what that stands in; `module` outside of any."""


def tags(root: Path) -> Iterator[Tag]:
    """Every tag in the Python files below `root`, in the order of files and lines."""
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not TAG.search(text):
            continue
        tree = ast.parse(text)
        with file.open("rb") as stream:
            for token in tokenize.tokenize(stream.readline):
                if token.type == tokenize.COMMENT and (match := TAG.match(token.string)):
                    yield Tag(match[1], file, token.start[0], _scope(tree, token.start[0]))


def _scope(tree: ast.AST, line: int) -> str:
    """Dotted name of the classes and functions around a line."""
    scopes = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    around = [node for node in ast.walk(tree) if isinstance(node, scopes)]  # breadth first, so from outside in
    return ".".join(node.name for node in around if node.lineno <= line <= (node.end_lineno or 0)) or "module"


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diptych where", description="Find the code of a paper's equation or section.")
    parser.add_argument("tag", nargs="*", help='as in "ALBEF Eq. 6" or "VLMo §3.2"; all of them when left out')
    wanted = _folded(" ".join(parser.parse_args(arguments).tag))
    known = list(tags(Path(diptych.__file__).parent))
    found = [tag for tag in known if not wanted or _folded(tag.name) == wanted]
    if not found:
        raise ValueError(f"nothing is tagged so. Known: {', '.join(sorted({tag.name for tag in known}, key=natural))}")
    for tag in sorted(found, key=lambda tag: (natural(tag.name), tag.file, tag.line)):
        print(f"{tag.name}  {_shown(tag.file)}:{tag.line}  {tag.scope}")


def _folded(name: str) -> str:
    """Without what people leave out: case, blanks, the point of `Eq.`."""
    return re.sub(r"eq\.?", "eq", re.sub(r"\s+", "", name.lower()))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that puts Eq. 10 after Eq. 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _shown(file: Path) -> Path:
    """Relative where that is shorter to read, so that an editor can open it."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
