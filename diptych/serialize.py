"""Recipes to JSON values and back, strictly: nothing unknown, missing or ill-typed passes. No torch here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse

from diptych.schema import AddedTaskConfig, Recipe

Config = TypeVar("Config")
ADDED: dict[str, type[AddedTaskConfig]] = {}
"""Configurations of tasks that are not the library's, by their names, where `diptych.catalog.add_task` puts them. Only
then can a stored recipe with one be read."""
KIND = "kind"
"""Where a field may be one of several configs, the entry of its JSON that names it; without it, it is the first."""


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain JSON values, every field written out."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    for key, hint in field_types(type(recipe)).items():
        if len(configs(hint)) > 1 and type(getattr(recipe, key)) is not configs(hint)[0]:
            plain[key][KIND] = type(getattr(recipe, key)).__name__
    return plain


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote. An unknown or ill-typed field is a ValueError that names it.

    A missing field has its default: what was stored before the field was there goes on as it did. One without a
    default is a ValueError too.
    """
    return _built(Recipe, plain, ())


def _built(cls: type[Config], plain: Any, path: tuple[str, ...]) -> Config:
    hints, where = field_types(cls), ".".join(path) or "recipe"
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: expected the fields {', '.join(hints)}, got {plain!r}")
    for key in plain:
        if key not in hints:
            raise ValueError(unknown_name(cls, key, path))
    if missing := [key for key in hints if key not in plain and not _has_default(cls, key)]:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    values = {}
    for key, hint in hints.items():
        if key not in plain:
            continue
        name = (*path, key)
        if options := configs(hint):
            kind, rest = _kind(options, plain[key], ".".join(name))
            values[key] = _built(kind, rest, name)
        else:
            values[key] = typed(hint, plain[key], ".".join(name))
    return cls(**values)


def _has_default(cls: type, key: str) -> bool:
    known = next(item for item in fields(cls) if item.name == key)
    return known.default is not MISSING or known.default_factory is not MISSING


def _kind(options: Sequence[type[Any]], plain: Any, name: str) -> tuple[type[Any], Any]:
    """Which of several groups of fields `plain` is, and its fields."""
    if not isinstance(plain, Mapping) or KIND not in plain or len(options) == 1:
        return options[0], plain
    known = {option.__name__: option for option in options}
    hint = ""
    if AddedTaskConfig in options:
        known |= ADDED
        hint = " (where it is a task of your own: import the file that calls diptych.catalog.add_task)"
    if plain[KIND] not in known:
        raise ValueError(f"{name}.{KIND}: expected one of {', '.join(known)}, got {plain[KIND]!r}{hint}")
    return known[plain[KIND]], {key: value for key, value in plain.items() if key != KIND}


def typed(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`; text is read as a user would write it (`none`, `true`, `1e-3`, `0.5,1`, or JSON where
    each value is a group of fields)."""
    if _is_exactly(hint, value):
        return value
    given = value
    if get_origin(hint) is tuple and is_config(get_args(hint)[0]):
        return _groups(get_args(hint)[0], value, name)
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
        raise ValueError(f"{name}: expected {spelled(hint)}, got {given!r}") from None


def _is_exactly(hint: Any, value: Any) -> bool:
    """Whether a stored value plainly is what is declared, as most are: building a parser for each takes its time."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    return (type(value) is hint and hint in (bool, int, float)) or (value is None and type(None) in get_args(hint))


def _groups(cls: type[Config], value: Any, name: str) -> tuple[Config, ...]:
    """Any number of groups of fields."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: expected a list of groups of fields as JSON ({error})") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list of groups of fields, got {value!r}")
    return tuple(
        entry if isinstance(entry, cls) else _built(cls, entry, (*name.split("."), str(number)))
        for number, entry in enumerate(value)
    )


def is_config(hint: Any) -> TypeGuard[type[Any]]:
    """Whether a declared type is itself a group of fields."""
    return isinstance(hint, type) and is_dataclass(hint)


def configs(hint: Any) -> tuple[type[Any], ...]:
    """The groups of fields that a declared type allows: one, one of several, or none."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(options) if all(map(is_config, options)) else ()


def field_types(cls: type) -> dict[str, Any]:
    """The declared type of each field of a config."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def unknown_name(group: Any, key: str, above: tuple[str, ...]) -> str:
    """The complaint about field `key` of `group`, which stands at `above`, with what may have been meant.

    `group`: a config, whose own groups are meant where others could stand too, or its class.
    """
    known = field_types(group if isinstance(group, type) else type(group))
    inner = [name for name in _leaves(group) if name.endswith(f".{key}")]
    nearest = inner or difflib.get_close_matches(key, known, n=1)
    suggestion = f" Did you mean {' or '.join('.'.join((*above, name)) for name in nearest)}?" if nearest else ""
    level = f" in '{'.'.join(above)}'" if above else ""
    return f"unknown name '{key}'{level}.{suggestion} Known there: {', '.join(sorted(known))}"


def _leaves(group: Any) -> list[str]:
    """Dotted names of all values below a config, or below its class with whatever its groups may be."""
    names: dict[str, None] = {}  # an ordered set
    one = not isinstance(group, type)
    for key, hint in field_types(type(group) if one else group).items():
        options = (getattr(group, key),) if one and configs(hint) else configs(hint)
        inner = [name for option in options for name in _leaves(option)]
        names |= dict.fromkeys([f"{key}.{name}" for name in inner] or [key])
    return list(names)


def spelled(hint: Any) -> str:
    """A type as a user would say it: 'int or none', 'one of fp32, bf16'."""
    arguments = get_args(hint)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join("none" if part is type(None) else spelled(part) for part in arguments)
    if origin is tuple and Ellipsis in arguments:
        return f"any number of values ({spelled(arguments[0])})"
    if origin is tuple:
        return f"{len(arguments)} values ({', '.join(spelled(part) for part in arguments)})"
    if arguments:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    return {"bool": "true or false", "str": "text"}.get(hint.__name__, hint.__name__)
