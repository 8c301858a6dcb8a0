"""Changes recipes by dotted names, strictly and with types. (JSON: diptych/serialize.py.)

`override(recipe, {"data.path": "photos", "optim.lr": "1e-3"})` takes Python values or what a user typed, and turns them
into the type that the field declares. `@FILE` reads a JSON file. An unknown name is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from diptych.reading import expand_home
from diptych.schema import Recipe, Released, as_released
from diptych.serialize import Moved, earlier, field_types, from_dict, modern, spelled, to_dict, typed, unknown_name

__all__ = ["from_dict", "override", "parse_assignments", "to_dict"]

Config = TypeVar("Config")


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Replaces fields of a recipe by their dotted names. The name of a group takes a mapping (or JSON) of its fields.

    `released` also takes `none` or `all`. A name of an earlier version still works, with a note on standard error that
    says what it is called now. Raises ValueError for an unknown name (listing the known ones at that level) or a value
    of another type.
    """
    for name, value in _modern(recipe, _single(recipe, changes)).items():
        if name == "released" and value in ("none", "all"):
            recipe = replace(recipe, released=Released() if value == "none" else as_released(recipe.model))
        else:
            recipe = _replaced(recipe, name.split("."), value, ())
    return recipe


def _single(recipe: Recipe, changes: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Takes groups of fields (a mapping, or JSON) apart, so that each change is of one field."""
    single: dict[str, Any] = {}
    for key, value in changes.items():
        name = f"{above}{key}"
        if is_dataclass(_at(recipe, name)) and (inner := _mapping(value)) is not None:
            single |= _single(recipe, inner, f"{name}.")
        else:
            single[name] = value
    return single


def _modern(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces names of earlier versions by today's (`serialize.EARLIER`), with a note on standard error.

    A field that once took `released` as a value and still exists, such as `schedule.kind`, takes that behaviour back
    when it is set to another value, unless the changes set fields of `released` themselves.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        above, _, key = name.rpartition(".")
        groups.setdefault(above, {})[key] = value
    sets_released = any(name.partition(".")[0] == "released" for name in changes)
    modernised: dict[str, Any] = {}
    for above, fields in groups.items():
        config, path = type(_at(recipe, above)), tuple(above.split(".")) if above else ()
        now, released = modern(config, fields, path, recipe.released.schedule_by_epoch)
        today = {".".join((*path, key)): value for key, value in now.items()}
        today |= {f"released.{key}": value for key, value in released.items()}
        if old := [key for key, value in fields.items() if key not in now or now[key] != value]:
            written = " ".join(f"{above}.{key}={_shown(fields[key])}" for key in old)
            new = (name for name, value in today.items() if name not in changes or changes[name] != value)
            replaced = " ".join(f"{name}={_shown(today[name])}" for name in new)
            print(f"note: {written} is now written {replaced or 'no more'}", file=sys.stderr)
        if not (sets_released or released):
            flags = (flag for key in now if isinstance(moved := earlier(config, key), Moved) for flag in moved.to)
            today |= {f"released.{flag}": False for flag in flags if getattr(recipe.released, flag)}
        modernised |= today
    return modernised


def _at(recipe: Recipe, name: str) -> Any:
    """Returns what stands at a dotted name, or None."""
    place: Any = recipe
    for part in name.split(".") if name else ():
        place = getattr(place, part, None)
    return place


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def parse_assignments(arguments: Sequence[str]) -> dict[str, str]:
    """Turns `data.path=DIR`, `--data.path=DIR` and `--data.path DIR` into {"data.path": "DIR"}."""
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
    """Replaces the field at `path` of a config, which stands at `above`."""
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
    if not rest:
        name = ".".join(place)
        raise ValueError(f"{name} is a group of fields: name one of them, as in {name}.FIELD=VALUE")
    current = _replaced(current, rest, value, place)
    return replace(config, **{head: current})  # type: ignore[type-var]  # every caller passes a dataclass


def _read(value: Any, name: str) -> Any:
    """Reads the JSON file that `@FILE` names, such as the published list of answers. Returns other values unchanged."""
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    try:
        return json.loads(expand_home(value[1:]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {value[1:]} could not be read as JSON ({error})") from None


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Returns a group's fields if `value` is a mapping, or a mapping in JSON, and None otherwise."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, Mapping) else None
