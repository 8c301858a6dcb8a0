"""The trainings of an ablation, as values: variants of a recipe, the stages before them and the tasks after them.

It imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

Changes = Mapping[str, Any]
"""New values of a recipe's fields by their dotted names."""
Against = Literal["first", "previous"]
"""What a variant is compared with: the first variant, or the one before it, where each adds one idea."""


@dataclass(frozen=True)
class Part:
    """A training, which runs once for each seed: a variant, a stage that variants start from, or a task after them."""

    name: str
    recipe: str
    set: Changes = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    """Stages (for a task: earlier tasks) whose runs fields of the recipe name, as in `{"init_from": "language"}`."""
    tasks: Mapping[str, Changes] = field(default_factory=dict)
    """For a variant: what it changes in the tasks that follow it, by their names."""

    @property
    def slug(self) -> str:
        """Its name as a folder's."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Grid:
    """Variants that are compared with one another. Raises ValueError for missing or doubled names."""

    name: str
    variants: tuple[Part, ...]
    stages: tuple[Part, ...] = ()
    """Stages in their order. Each may start from earlier ones, and is trained once for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[Part, ...] = ()
    """Trainings that follow each variant. They start from its run, or from the earlier task that `after` names."""
    against: Against = "first"

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not self.variants or not self.seeds:
            raise ValueError(f"{self.name}: an ablation needs at least one variant and one seed")
        if doubled := {str(name) for name in (*names, *self.seeds) if (*names, *self.seeds).count(name) > 1}:
            raise ValueError(f"{self.name}: given twice: {', '.join(sorted(doubled))}; each name and seed must differ")
        if wrong := [name for name in names if name != Path(name).name]:
            raise ValueError(f"{self.name}: '{wrong[0]}' names a folder too: it cannot be empty or hold a slash")
        slugs = [part.slug for part in self.parts]
        if alike := [part.name for part in self.parts if slugs.count(part.slug) > 1]:
            raise ValueError(
                f"{self.name}: {' and '.join(alike)} would share a folder: names differ in more than spaces"
            )
        known: list[str] = []
        for part in self.parts:
            if "run.seed" in part.set:
                raise ValueError(f"{self.name}: run.seed is not set in {part.name}, but by the seeds of the ablation")
        for part in self.stages:
            self._check(part, known)
            known.append(part.name)
        for part in (*self.stages, *self.tasks):
            if part.tasks:
                raise ValueError(f"{self.name}: only variants change tasks, and {part.name} is none")
        for part in self.variants:
            self._check(part, known)
            if unknown := [name for name in part.tasks if name not in [task.name for task in self.tasks]]:
                raise ValueError(f"{self.name}: {part.name} changes the task '{unknown[0]}', which is not in the grid")
        known.clear()
        for part in self.tasks:
            self._check(part, known, "task")
            known.append(part.name)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.stages, *self.variants, *self.tasks)

    def partner(self, variant: str) -> str | None:
        """Names the variant that another one is compared with; None for the first."""
        names = [part.name for part in self.variants]
        place = names.index(variant)
        return None if place == 0 else names[0 if self.against == "first" else place - 1]

    def chain(self, part: Part) -> tuple[Part, ...]:
        """Lists the stages that lead to a part, each once and in their order, itself last."""
        needed = {part.name}
        for stage in reversed(self.stages):
            if any(stage.name in other.after.values() for other in self.parts if other.name in needed):
                needed.add(stage.name)
        return tuple(part for part in (*self.stages, *self.variants) if part.name in needed)

    def task_chain(self, task: Part) -> tuple[str, ...]:
        """Names the tasks that lead to a task, itself last."""
        needed = {task.name}
        for part in reversed(self.tasks):
            if part.name in needed:
                needed.update(part.after.values())
        return tuple(part.name for part in self.tasks if part.name in needed)

    def replaced(self, names: Iterable[str], changes: Changes) -> Grid:
        """Sets more fields in the named parts."""
        chosen = set(names)

        def changed(parts: Sequence[Part]) -> tuple[Part, ...]:
            return tuple(replace(part, set={**part.set, **changes}) if part.name in chosen else part for part in parts)

        return replace(self, stages=changed(self.stages), variants=changed(self.variants), tasks=changed(self.tasks))

    def only(self, variants: Sequence[str] | None, tasks: Sequence[str] | None) -> Grid:
        """Keeps the named variants and tasks, and the tasks that these start from; None keeps all.

        Raises ValueError for an unknown name.
        """
        for kind, chosen, parts in (("variant", variants, self.variants), ("task", tasks, self.tasks)):
            known = [part.name for part in parts]
            if wrong := [name for name in chosen or () if name not in known]:
                raise ValueError(f"no {kind} '{wrong[0]}' in {self.name}. It has: {', '.join(known) or 'none'}")
        wanted = [part for part in self.tasks if tasks is None or part.name in tasks]
        needed = {name for part in wanted for name in self.task_chain(part)}
        kept = tuple(
            replace(part, tasks={task: changes for task, changes in part.tasks.items() if task in needed})
            for part in self.variants
            if variants is None or part.name in variants
        )
        return replace(self, variants=kept, tasks=tuple(task for task in self.tasks if task.name in needed))

    def _check(self, part: Part, stages: Sequence[str], kind: str = "stage") -> None:
        for name, stage in part.after.items():
            if stage not in stages:
                known = f"the {kind}s before it are {', '.join(stages)}" if stages else f"no {kind} stands before it"
                raise ValueError(f"{self.name}: {part.name} takes {name} from '{stage}', but {known}")


# --------------------------------------------------------------------------- from files and arguments

FIELDS = {"recipe", "set", "stages", "variants", "tasks", "seeds", "against"}
PART_FIELDS = {"recipe", "set", "after", "tasks"}


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
    against = fields.get("against", Grid.against)
    if against not in get_args(Against):
        raise ValueError(f"{path}: against is '{against}': it is {' or '.join(get_args(Against))}")
    stages, variants, tasks = (
        tuple(_parts(fields.get(group), fields.get("recipe"), f"{path}: {group}"))
        for group in ("stages", "variants", "tasks")
    )
    variants = tuple(replace(variant, set={**shared, **variant.set}) for variant in variants)
    return Grid(path.stem, variants, stages, tuple(seeds), tasks, against)


def _parts(plain: Any, recipe: Any, where: str) -> Iterator[Part]:
    for name, content in _fields(plain, None, where).items():
        fields = _fields(content, PART_FIELDS, f"{where}.{name}")
        if not (part_recipe := fields.get("recipe", recipe)):
            raise ValueError(f"{where}.{name} needs a recipe: name it there, or one for all at the top")
        if not isinstance(part_recipe, str):
            raise ValueError(f"{where}.{name}: recipe is the name of a recipe, got {json.dumps(part_recipe)}")
        groups = [_fields(fields.get(group), None, f"{where}.{name}.{group}") for group in ("set", "after", "tasks")]
        groups[2] = {
            task: _fields(changes, None, f"{where}.{name}.tasks.{task}") for task, changes in groups[2].items()
        }
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
        if "=" in name:
            raise ValueError(f"--variant '{text}' has no name: write NAME: name=value, as in 'no ITC: task.itc=0'")
        if wrong := [field for field, sign, _ in assignments if not sign]:
            raise ValueError(f"--variant '{text}': '{wrong[0]}' is no override: write name=value, as in task.itc=0")
        parts.append(Part(name.strip(), recipe, {field: value for field, _, value in assignments}))
    return Grid(recipe, tuple(parts))
