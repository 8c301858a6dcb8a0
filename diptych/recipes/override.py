"""Strict, typed changes to a recipe. (Its way to JSON and back: diptych/serialize.py.)

`override(recipe, {"data.path": "photos", "optim.lr": "1e-3"})` takes dotted names; values are Python values or
what a user typed, and become the type that the field declares; `@FILE` reads a JSON file. Nothing unknown passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from diptych.schema import Recipe
from diptych.serialize import field_types, from_dict, spelled, to_dict, typed, unknown_name

__all__ = ["from_dict", "override", "parse_assignments", "to_dict"]

Config = TypeVar("Config")


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields replaced. A name that leads to a group takes a mapping (or JSON) of its fields.

    Raises ValueError for an unknown name (listing the known ones at that level) or a value of another type.
    """
    for name, value in changes.items():
        recipe = _replaced(recipe, name.split("."), value, ())
    return recipe


def parse_assignments(arguments: Sequence[str]) -> dict[str, str]:
    """`data.path=DIR`, `--data.path=DIR` and `--data.path DIR` → {"data.path": "DIR"}."""
    changes: dict[str, str] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, sign, value = argument.removeprefix("--").partition("=")
        if not sign:
            if not argument.startswith("--"):
                raise ValueError(f"'{argument}' is no override: write name=value, as in data.path=photos")
            if not remaining:
                raise ValueError(f"--{name} needs a value: --{name} VALUE")
            value = remaining.pop(0)
        if name in changes:
            raise ValueError(f"{name} is given twice")
        changes[name] = value
    return changes


def _replaced(config: Config, path: Sequence[str], value: Any, above: tuple[str, ...]) -> Config:
    """`config`, which stands at `above`, with the field at `path` replaced."""
    hints = field_types(type(config))
    head, *rest = path
    place = (*above, head)
    if head not in hints:
        raise ValueError(unknown_name(config, head, above))
    current = getattr(config, head)
    if not is_dataclass(current):
        if rest:
            raise ValueError(f"{'.'.join(place)} is a value ({spelled(hints[head])}) and has no field '{rest[0]}'")
        return replace(config, **{head: typed(hints[head], _read(value, ".".join(place)), ".".join(place))})  # type: ignore[type-var]
    changes = {".".join(rest): value} if rest else _mapping(value, ".".join(place))
    for key, content in changes.items():
        current = _replaced(current, key.split("."), content, place)
    return replace(config, **{head: current})  # type: ignore[type-var]  # every caller passes a dataclass


def _read(value: Any, name: str) -> Any:
    """The list that `@FILE` names, a JSON file such as the published list of answers; any other value as it is."""
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    try:
        return json.loads(Path(value[1:]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {value[1:]} could not be read as JSON ({error})") from None


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a group of fields: name one of them, as in {name}.FIELD=VALUE")
    return value
