"""Strict, typed changes to a recipe, and its way to JSON and back.

`override(recipe, {"data.path": "photos", "optim.lr": "1e-3"})` takes dotted names; values are Python values or
what a user typed, and become the type that the field declares. Nothing unknown passes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse

from diptych.schema import Recipe

Config = TypeVar("Config")


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields replaced. A name that leads to a group takes a mapping (or JSON) of its fields.

    Raises ValueError for an unknown name (listing the known ones at that level) or a value of another type.
    """
    for name, value in changes.items():
        recipe = _replaced(recipe, name.split("."), value, ())
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain JSON values, every field written out."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote. A missing, unknown or ill-typed field is a ValueError that names it."""
    return _built(Recipe, plain, ())


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
    hints = _hints(type(config))
    head, *rest = path
    place = (*above, head)
    if head not in hints:
        raise ValueError(_unknown(type(config), head, above))
    current = getattr(config, head)
    if not is_dataclass(current):
        if rest:
            raise ValueError(f"{'.'.join(place)} is a value ({_spelled(hints[head])}) and has no field '{rest[0]}'")
        return replace(config, **{head: typed(hints[head], value, ".".join(place))})  # type: ignore[type-var]
    changes = {".".join(rest): value} if rest else _mapping(value, ".".join(place))
    for key, content in changes.items():
        current = _replaced(current, key.split("."), content, place)
    return replace(config, **{head: current})  # type: ignore[type-var]  # every caller passes a dataclass


def _built(cls: type[Config], plain: Any, path: tuple[str, ...]) -> Config:
    hints, where = _hints(cls), ".".join(path) or "recipe"
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: expected the fields {', '.join(hints)}, got {plain!r}")
    for key in plain:
        if key not in hints:
            raise ValueError(_unknown(cls, key, path))
    if missing := [key for key in hints if key not in plain]:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    values = {}
    for key, hint in hints.items():
        name = (*path, key)
        values[key] = _built(hint, plain[key], name) if is_dataclass(hint) else typed(hint, plain[key], ".".join(name))
    return cls(**values)


def typed(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`; text is read as a user would write it (`none`, `true`, `1e-3`, `0.5,1`)."""
    given = value
    if isinstance(value, str):
        if type(None) in get_args(hint) and value.lower() in ("none", "null"):
            return None
        if get_origin(hint) is tuple:
            value = f"[{value.strip().strip('()[]')}]"
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, str):
            return parser.parse_args([f"--value={value}"]).value
        return parser.parse_object({"value": value}).value
    except jsonargparse.ArgumentError:
        raise ValueError(f"{name}: expected {_spelled(hint)}, got {given!r}") from None


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a group of fields: name one of them, as in {name}.FIELD=VALUE")
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def _unknown(cls: type, key: str, above: tuple[str, ...]) -> str:
    known = _hints(cls)
    nearest = [name for name in _leaves(cls) if name.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=1)
    suggestion = f" Did you mean {' or '.join('.'.join((*above, name)) for name in nearest)}?" if nearest else ""
    level = f" in '{'.'.join(above)}'" if above else ""
    return f"unknown name '{key}'{level}.{suggestion} Known there: {', '.join(sorted(known))}"


def _leaves(cls: type) -> list[str]:
    """Dotted names of all values below `cls`."""
    names = []
    for key, hint in _hints(cls).items():
        names += [f"{key}.{inner}" for inner in _leaves(hint)] if is_dataclass(hint) else [key]
    return names


def _spelled(hint: Any) -> str:
    """A type as a user would say it: 'int or none', 'one of fp32, bf16'."""
    arguments = get_args(hint)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join("none" if part is type(None) else _spelled(part) for part in arguments)
    if origin is tuple:
        return f"{len(arguments)} values ({', '.join(_spelled(part) for part in arguments)})"
    if arguments:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    return {"bool": "true or false", "str": "text"}.get(hint.__name__, hint.__name__)
