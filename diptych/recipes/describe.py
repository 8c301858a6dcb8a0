"""Describes the fields of a recipe by the docstrings that stand below them in the source (diptych/schema.py)."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from diptych.schema import Recipe
from diptych.serialize import unknown_name


def describe(recipe: Recipe, name: str) -> Iterator[tuple[str, str]]:
    """Yields the dotted name and the description of a field, or of all fields of a group.

    Raises ValueError for a name that the recipe does not have, with the nearest ones.
    """
    value: Any = recipe
    above: tuple[str, ...] = ()
    text = ""
    for key in name.split("."):
        if not is_dataclass(value):
            raise ValueError(f"'{'.'.join(above)}' is a single value, so it has no field '{key}'")
        if not any(field.name == key for field in fields(value)):
            raise ValueError(unknown_name(value, key, above))
        group: Any = type(value)
        text, value, above = docs(group).get(key, ""), getattr(value, key), (*above, key)
    yield from _all(name, text, value)


def _all(name: str, text: str, value: Any) -> Iterator[tuple[str, str]]:
    if not is_dataclass(value):
        yield name, text
        return
    group: Any = type(value)
    for field in fields(value):
        yield from _all(f"{name}.{field.name}", docs(group).get(field.name, ""), getattr(value, field.name))


@cache
def docs(kind: type) -> dict[str, str]:
    """Reads the docstrings below the fields of a dataclass and of its base classes, by the names of the fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(node, ast.ClassDef)
            for field, text in pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                    found[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
