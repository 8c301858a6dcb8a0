"""The trainings of an ablation, as values: variants of a recipe, and the stages before them. It imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

Changes = Mapping[str, Any]
"""New values of a recipe's fields by their dotted names."""


@dataclass(frozen=True)
class Part:
    """A training, which runs once for each seed: a variant, or a stage that variants start from."""

    name: str
    recipe: str
    set: Changes = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    """Stages whose runs fields of the recipe name, as in `{"init_from": "language"}`."""


@dataclass(frozen=True)
class Grid:
    """Variants that are compared with the first of them. Raises ValueError for missing or doubled names."""

    name: str
    variants: tuple[Part, ...]
    stages: tuple[Part, ...] = ()
    """Stages in their order. Each may start from earlier ones, and is trained once for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not self.variants or not self.seeds:
            raise ValueError(f"{self.name}: an ablation needs at least one variant and one seed")
        if doubled := {str(name) for name in (*names, *self.seeds) if (*names, *self.seeds).count(name) > 1}:
            raise ValueError(f"{self.name}: given twice: {', '.join(sorted(doubled))}; each name and seed must differ")
        if wrong := [name for name in names if name != Path(name).name]:
            raise ValueError(f"{self.name}: '{wrong[0]}' names a folder too, so it cannot hold a slash")
        known: list[str] = []
        for part in self.stages:
            self._check(part, known)
            known.append(part.name)
        for part in self.variants:
            self._check(part, known)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.stages, *self.variants)

    def chain(self, part: Part) -> tuple[Part, ...]:
        """Lists the stages that lead to a part, each once and in their order, itself last."""
        needed = {part.name}
        for stage in reversed(self.stages):
            if any(stage.name in other.after.values() for other in self.parts if other.name in needed):
                needed.add(stage.name)
        return tuple(part for part in self.parts if part.name in needed)

    def replaced(self, names: Iterable[str], changes: Changes) -> Grid:
        """Sets more fields in the named parts."""
        chosen = set(names)

        def changed(parts: Sequence[Part]) -> tuple[Part, ...]:
            return tuple(replace(part, set={**part.set, **changes}) if part.name in chosen else part for part in parts)

        return replace(self, stages=changed(self.stages), variants=changed(self.variants))

    def _check(self, part: Part, stages: Sequence[str]) -> None:
        for name, stage in part.after.items():
            if stage not in stages:
                known = f"the stages before it are {', '.join(stages)}" if stages else "no stage stands before it"
                raise ValueError(f"{self.name}: {part.name} takes {name} from '{stage}', but {known}")


# --------------------------------------------------------------------------- from files and arguments

FIELDS = {"recipe", "set", "stages", "variants", "seeds"}
PART_FIELDS = {"recipe", "set", "after"}


def read_grid(path: Path) -> Grid:
    """Reads a grid from a YAML or JSON file. Raises ValueError, also for unknown names."""
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} could not be read as YAML or JSON: {error}") from None
    fields = _fields(plain, FIELDS, str(path))
    seeds = fields.get("seeds", Grid.seeds)
    if not isinstance(seeds, list | tuple) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"{path}: seeds are whole numbers, as in seeds: [0, 1, 2]")
    shared = _fields(fields.get("set"), None, f"{path}: set")
    stages, variants = (
        tuple(_parts(fields.get(group), fields.get("recipe"), f"{path}: {group}")) for group in ("stages", "variants")
    )
    variants = tuple(replace(variant, set={**shared, **variant.set}) for variant in variants)
    return Grid(path.stem, variants, stages, tuple(seeds))


def _parts(plain: Any, recipe: str | None, where: str) -> Iterator[Part]:
    for name, content in _fields(plain, None, where).items():
        fields = _fields(content, PART_FIELDS, f"{where}.{name}")
        if not (part_recipe := fields.get("recipe", recipe)):
            raise ValueError(f"{where}.{name} needs a recipe: name it there, or one for all at the top")
        groups = (_fields(fields.get(group), None, f"{where}.{name}.{group}") for group in ("set", "after"))
        yield Part(name, part_recipe, *groups)


def _fields(plain: Any, known: set[str] | None, where: str) -> dict[str, Any]:
    """Checks that a value is a mapping of (known) names. None counts as an empty mapping."""
    if plain is None:
        return {}
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise ValueError(f"{where}: expected names with values, got {json.dumps(plain, default=str)}")
    if known is not None and (unknown := [key for key in plain if key not in known]):
        raise ValueError(f"{where}: unknown name '{unknown[0]}'. Known there: {', '.join(sorted(known))}")
    return plain


def given_grid(recipe: str, variants: Sequence[str]) -> Grid:
    """Reads variants from arguments such as `full` and `no ITC: task.itc=0 task.fuse_start=0`. Raises ValueError."""
    parts = []
    for text in variants:
        name, _, changes = text.partition(":")
        assignments = [word.partition("=") for word in changes.split()]
        if wrong := [field for field, sign, _ in assignments if not sign]:
            raise ValueError(f"--variant '{text}': '{wrong[0]}' is no override: write name=value, as in task.itc=0")
        parts.append(Part(name.strip(), recipe, {field: value for field, _, value in assignments}))
    return Grid(recipe, tuple(parts))
