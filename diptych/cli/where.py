"""`diptych where "ALBEF Eq. 6"`: finds the line that computes a paper's equation or section.

A tag is a comment that begins with `ALBEF Eq. N` or `ALBEF §N`, or the same for VLMo. A mention in prose is no tag.
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
    """A tag and its place."""

    name: str
    file: Path
    line: int
    scope: str
    """Dotted name of the function or class around it; `module` outside of all."""


def tags(root: Path) -> Iterator[Tag]:
    """Lists all tags in the Python files below `root`, in the order of files and lines."""
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
    """Gives the dotted name of the classes and functions around a line."""
    scopes = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    around = [node for node in ast.walk(tree) if isinstance(node, scopes)]  # breadth first, so outer ones come first
    return ".".join(node.name for node in around if node.lineno <= line <= (node.end_lineno or 0)) or "module"


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diptych where", description="Find the code of a paper's equation or section.")
    parser.add_argument("tag", nargs="*", help='as in "ALBEF Eq. 6", "VLMo §3.2" or "Eq. 6" (default: all tags)')
    wanted = _folded(" ".join(parser.parse_args(arguments).tag))
    known = list(tags(Path(diptych.__file__).parent))
    matching = [tag for tag in known if not wanted or wanted in (_folded(tag.name), _folded(_without_paper(tag.name)))]
    if not matching:
        raise ValueError(f"no such tag. Known: {', '.join(sorted({tag.name for tag in known}, key=natural))}")
    for tag in sorted(matching, key=lambda tag: (natural(tag.name), tag.file, tag.line)):
        print(f"{tag.name}  {_short(tag.file)}:{tag.line}  {tag.scope}")


def _without_paper(name: str) -> str:
    return name.partition(" ")[2]


def _folded(name: str) -> str:
    """Drops what people leave out: case, blanks, the point of `Eq.`."""
    return re.sub(r"eq\.?", "eq", re.sub(r"\s+", "", name.lower()))


def natural(name: str) -> list[tuple[int, str]]:
    """Gives a sort key that puts Eq. 10 after Eq. 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _short(file: Path) -> Path:
    """Makes a path relative to the working folder, if it is in it."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
