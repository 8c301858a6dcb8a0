"""Turns recipes into JSON values and back. An unknown, missing or ill-typed field is an error. No torch here."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from diptych.places import StoredPlace
from diptych.printable import brief
from diptych.schema import (
    WARMUP_UNIT,
    AddedTaskConfig,
    AlbefConfig,
    AlbefPretrainConfig,
    DataConfig,
    EntailmentConfig,
    GroundingConfig,
    LanguageStageConfig,
    MixConfig,
    Nlvr2Config,
    OptimConfig,
    Recipe,
    RetrievalConfig,
    ScheduleConfig,
    TextAssignmentConfig,
    TokenizerConfig,
    VisionStageConfig,
    VlmoConfig,
    VlmoPretrainConfig,
    VqaClosedSetConfig,
    VqaDecoderConfig,
)

Config = TypeVar("Config")
ADDED: dict[str, type[AddedTaskConfig]] = {}
"""Configs of tasks that are not the library's, by their names. A stored recipe with such a task can be read once
`diptych.catalog.add_task` has entered its config here (examples/captioning.py)."""
KIND = "kind"
"""If a field may be one of several configs, this entry of its JSON names it. Without the entry it is the first one."""
PLACES: dict[type, tuple[str, ...]] = {
    Recipe: ("init_from",),
    DataConfig: ("path", "root", "validation_path", "test_path", "cache"),
    MixConfig: ("path", "root"),
    TokenizerConfig: ("vocabulary",),
    VisionStageConfig: ("tokenizer",),
}
"""Fields that name files, folders or addresses. Those of a stored recipe are marked (diptych/places.py)."""
LARGEST_NUMBER = 1 << 63
"""No whole number of a recipe is as large; larger ones would only fail later, and in odd places."""
DEEPEST = 20
"""Levels of a stored recipe. The deepest ones of this library have five."""


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Writes every field of a recipe as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    for key, hint in field_types(type(recipe)).items():
        if len(configs(hint)) > 1 and type(getattr(recipe, key)) is not configs(hint)[0]:
            plain[key][KIND] = type(getattr(recipe, key)).__name__
    return plain


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """Reads the recipe that `to_dict` wrote. An unknown or ill-typed field is a ValueError that names it.

    A missing field takes its default, so a recipe from before the field existed still means the same; one without a
    default is a ValueError. Names of earlier versions are read as `EARLIER` says. Files and addresses that it names are
    marked, because somebody else may have written it (`diptych.places`).
    """
    _check_plain(plain)
    released: dict[str, Any] = {}
    recipe = _marked(_built(Recipe, plain, (), released))
    return replace(recipe, released=replace(recipe.released, **released))


def _check_plain(value: Any, name: str = "recipe", depth: int = 0) -> None:
    """Raises ValueError for values that no recipe holds, whatever the field: too deep, too large, or no JSON."""
    if depth > DEEPEST:
        raise ValueError(f"{name}: nested too deeply for a recipe")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, brief(key).strip("'"), depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner, name, depth + 1)
    elif isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise ValueError(f"{name}: {brief(value)} is too large a number")


def _built(cls: type[Config], plain: Any, path: tuple[str, ...], released: dict[str, Any]) -> Config:
    """Builds the config at `path` from JSON, and adds to `released` what names of earlier versions say of it."""
    hints, where = field_types(cls), ".".join(path) or "recipe"
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: expected the fields {', '.join(hints)}, got {brief(plain)}")
    plain, moved = modern(cls, plain, path)
    released |= moved
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
            values[key] = _built(kind, rest, name, released)
        else:
            values[key] = typed(hint, plain[key], ".".join(name))
    return cls(**values)


def _marked(config: Any) -> Any:
    """Marks the places that a config and those in it name. An empty text names none."""
    values = {}
    for key in field_types(type(config)):
        value = getattr(config, key)
        if is_dataclass(value):
            values[key] = _marked(value)
        elif isinstance(value, tuple):
            values[key] = tuple(_marked(entry) if is_dataclass(entry) else entry for entry in value)
        elif value and isinstance(value, str) and key in PLACES.get(type(config), ()):
            values[key] = StoredPlace(value)
    return replace(config, **values)


def places_of(config: Any, name: str = "") -> dict[str, str]:
    """Returns the files, folders and addresses that a config names, by their dotted fields below `name`."""
    places: dict[str, str] = {}
    for key in field_types(type(config)):
        value, inner = getattr(config, key), f"{name}.{key}".lstrip(".")
        if value and key in PLACES.get(type(config), ()):
            places[inner] = value
        elif is_dataclass(value):
            places |= places_of(value, inner)
        elif isinstance(value, tuple):
            for number, entry in enumerate(value):
                places |= places_of(entry, f"{inner}.{number}") if is_dataclass(entry) else {}
    return places


def _has_default(cls: type, key: str) -> bool:
    known = next(item for item in fields(cls) if item.name == key)
    return known.default is not MISSING or known.default_factory is not MISSING


def _kind(options: Sequence[type[Any]], plain: Any, name: str) -> tuple[type[Any], Any]:
    """Returns which of several configs `plain` describes, and its fields without `kind`."""
    if not isinstance(plain, Mapping) or KIND not in plain or len(options) == 1:
        return options[0], plain
    known = {option.__name__: option for option in options}
    hint = ""
    if AddedTaskConfig in options:
        known |= ADDED
        hint = " (where it is a task of your own: import the file that calls diptych.catalog.add_task)"
    if not isinstance(plain[KIND], str) or plain[KIND] not in known:
        raise ValueError(f"{name}.{KIND}: expected one of {', '.join(known)}, got {brief(plain[KIND])}{hint}")
    return known[plain[KIND]], {key: value for key, value in plain.items() if key != KIND}


# --------------------------------------------------------------------------- names of earlier versions


@dataclass(frozen=True)
class Moved:
    """Says where a field of an earlier version went."""

    owners: tuple[type, ...]
    """Configs that had the field; so had those that derive from them."""
    to: tuple[str, ...]
    """Fields of `Recipe.released` that it sets now."""
    values: Mapping[Any, Any]
    """What each of its values sets them to."""
    instead: Any = None
    """If the field still exists, but without these values: the value that it takes in their place."""


@dataclass(frozen=True)
class Renamed:
    """Says what a field of an earlier version, or one of its values, is called now."""

    owners: tuple[type, ...]
    to: str
    values: Mapping[str, str] = field(default_factory=dict)


SWITCH = {False: False, True: True}
PAIRS = (AlbefPretrainConfig, VlmoPretrainConfig)
DISTILLED = (
    AlbefPretrainConfig, RetrievalConfig, EntailmentConfig, Nlvr2Config, VqaDecoderConfig, VqaClosedSetConfig,
)  # fmt: skip
EARLIER: dict[str, Moved | Renamed] = {
    "adam": Moved((OptimConfig,), ("adam_decays_after_update",), {"torch": False, "released_vlmo": True}),
    "augmentation": Moved(
        (DataConfig,), ("autocontrast_overflow", "sharpness_overflow"), {"repaired": False, "released": True}
    ),
    "average": Moved((GroundingConfig,), ("heat_map_averages_padding",), {"text": False, "batch": True}),
    "decay": Moved(
        (OptimConfig,), ("decay",), {"repaired": "repaired", "released": "albef", "released_vlmo": "vlmo"}
    ),
    "false_negatives": Moved((*PAIRS, TextAssignmentConfig), ("keep_false_negatives",), {"mask": False, "keep": True}),
    "flip_directional": Moved((DataConfig,), ("flip_directional_texts",), SWITCH),
    "gather": Moved((VlmoPretrainConfig,), ("gather_without_gradient",), {"gradient": False, "released": True}),
    "iou": Moved((GroundingConfig,), ("iou_in_whole_pixels",), {"continuous": False, "released": True}),
    "keep_padding": Moved((AlbefConfig, VlmoConfig), ("keep_padding",), SWITCH),
    "keys": Renamed((RetrievalConfig,), "keys", {"teacher": "momentum"}),
    "kind": Moved((ScheduleConfig,), ("schedule_by_epoch",), {"released": True}, instead="cosine"),
    "mask_special_tokens": Moved((AlbefPretrainConfig,), ("mask_special_tokens",), SWITCH),
    "masking": Moved(
        (LanguageStageConfig, VlmoPretrainConfig), ("masking_of_padding",), {"repaired": False, "released": True}
    ),
    "negatives_mask": Moved(
        (*PAIRS, RetrievalConfig), ("negatives_mask_after_softmax",), {"before": False, "after": True}
    ),
    "score": Moved((VqaDecoderConfig,), ("count_first_answer_token_twice",), {"released": True}, instead="likelihood"),
    "teacher_dropout": Moved(DISTILLED, ("momentum_encoder_dropout",), SWITCH),
    "teacher_start": Renamed((AlbefPretrainConfig,), "momentum_start"),
    "temperature_bounds": Moved(
        (VlmoPretrainConfig,), ("unbounded_temperature",), {None: True, "none": True, "null": True},
        instead=(0.001, 0.5),
    ),
}  # fmt: skip
"""Fields of earlier versions by their names then. Stored recipes and overrides may use them for ever."""


def earlier(cls: type, key: str) -> Moved | Renamed | None:
    """Returns what became of a config's field `key`, or None if nothing did."""
    change = EARLIER.get(key)
    return change if change and issubclass(cls, change.owners) else None


def modern(
    cls: type, plain: Mapping[str, Any], path: Sequence[str], by_epoch: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of a config under today's names, and the fields of `Recipe.released` that they set.

    `path` leads to the config. `by_epoch` says that the schedule is `released.schedule_by_epoch` already; only this
    schedule read `schedule.warmup_epochs`, which counted units of 100 iterations, 20 by default.
    """
    today: dict[str, Any] = {}
    released: dict[str, Any] = {}
    for key, value in plain.items():
        change = earlier(cls, key)
        if change is None:
            today[key] = value
        elif isinstance(change, Renamed):
            today[change.to] = change.values.get(value, value) if isinstance(value, str) else value
        elif change.instead is None:
            hint = bool if change.values is SWITCH else Literal[tuple(change.values)]
            chosen = change.values[typed(hint, value, ".".join((*path, key)))]
            released |= dict.fromkeys(change.to, chosen)
        elif value is None or (isinstance(value, str) and value.lower() in change.values):
            today[key] = change.instead
            released |= dict.fromkeys(change.to, True)
        else:
            today[key] = value
    if cls is ScheduleConfig:
        units = typed(int, today.pop("warmup_epochs", 20), ".".join((*path, "warmup_epochs")))
        if released or (by_epoch and "warmup_epochs" in plain):
            today["warmup_steps"] = WARMUP_UNIT * units
    return today, released


# --------------------------------------------------------------------------- values


def typed(hint: Any, value: Any, name: str) -> Any:
    """Converts a value to the type `hint`. Text is read as a user writes it: `none`, `true`, `1e-3`, `0.5,1`, or JSON
    for lists of configs. Raises ValueError with the field's `name` and what was expected."""
    if _is_exactly(hint, value):
        return value
    original = value
    if get_origin(hint) is tuple and is_config(get_args(hint)[0]):
        return _groups(get_args(hint)[0], value, name)
    if isinstance(value, str):
        if type(None) in get_args(hint) and value.lower() in ("none", "null"):
            return None
        if hint is str or {*get_args(hint)} == {str, type(None)}:
            return value  # YAML, which the parser below reads, would take `~` for nothing
        if get_origin(hint) is tuple:
            value = f"[{value.strip().strip('()[]')}]"
        if _YAML.search(value):
            raise ValueError(f"{name}: expected {spelled(hint)}, got {brief(original)}")
    import jsonargparse  # here, because values of the right type need no parser: recipes are usable without it

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, str):
            return parser.parse_args([f"--value={value}"]).value
        return parser.parse_object({"value": value}).value
    except (jsonargparse.ArgumentError, ArithmeticError, RecursionError):
        raise ValueError(f"{name}: expected {spelled(hint)}, got {brief(original)}") from None


_YAML = re.compile(r"(^|[\s\[{,])[&*!]")
"""YAML's anchors, aliases and tags, with which a short text stands for a value of any size. No value needs them."""


def _is_exactly(hint: Any, value: Any) -> bool:
    """Returns whether a value needs no conversion. Most stored ones do not, and building a parser for each is slow."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    return (type(value) is hint and hint in (bool, int, float)) or (value is None and type(None) in get_args(hint))


def _groups(cls: type[Config], value: Any, name: str) -> tuple[Config, ...]:
    """Converts a list of mappings, or one in JSON, to configs."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: expected a list of groups of fields as JSON ({error})") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list of groups of fields, got {brief(value)}")
    return tuple(
        entry if isinstance(entry, cls) else _built(cls, entry, (*name.split("."), str(number)), {})
        for number, entry in enumerate(value)
    )


def is_config(hint: Any) -> TypeGuard[type[Any]]:
    """Returns whether a declared type is a config."""
    return isinstance(hint, type) and is_dataclass(hint)


def configs(hint: Any) -> tuple[type[Any], ...]:
    """Returns the configs that a declared type allows: one, several, or none for a plain value."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(options) if all(map(is_config, options)) else ()


def field_types(cls: type) -> dict[str, Any]:
    """Returns the declared type of each field of a config."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def unknown_name(group: Any, key: str, above: tuple[str, ...]) -> str:
    """Words the error about the unknown field `key` of a config at `above`, with suggestions.

    `group` is the config, or its class. For a config, suggestions come from the model and task that it really has.
    """
    known = field_types(group if isinstance(group, type) else type(group))
    inner = [name for name in _leaves(group) if name.endswith(f".{key}")]
    nearest = inner or difflib.get_close_matches(key, known, n=1)
    suggestion = f" Did you mean {' or '.join('.'.join((*above, name)) for name in nearest)}?" if nearest else ""
    level = f" in '{'.'.join(above)}'" if above else ""
    return f"unknown name '{key}'{level}.{suggestion} Known there: {', '.join(sorted(known))}"


def leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the innermost fields of a plain recipe, or of a group of it, by their dotted names."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _leaves(group: Any) -> list[str]:
    """Returns the dotted names of all values below a config, or below a class with every config that it allows."""
    names: dict[str, None] = {}  # an ordered set
    is_value = not isinstance(group, type)
    for key, hint in field_types(type(group) if is_value else group).items():
        options = (getattr(group, key),) if is_value and configs(hint) else configs(hint)
        inner = [name for option in options for name in _leaves(option)]
        names |= dict.fromkeys([f"{key}.{name}" for name in inner] or [key])
    return list(names)


def spelled(hint: Any) -> str:
    """Spells a type for a user: 'int or none', 'one of fp32, bf16'."""
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
