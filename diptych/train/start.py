"""Starts a run from another run's weights (`init_from`), and records in its folder what it began with.

RUN/start.json   `from`: the checkpoint, or null; `loaded`, `resized`, `copied`, `fresh`, `dropped`: parts of the task,
                 each with its number of tensors; `untrained` and `borrowed`: as below
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.serialize import from_dict, leaves
from diptych.task import Task
from diptych.writing import write_text

START = "start.json"
STUDENTS = {"momentum_encoder": "model", "momentum_head": "head"}
"""The student of each momentum copy, by the first part of their names."""
TEXT = "text"
"""The part of a model whose weights depend on the tokenizer."""
OPTIONAL = ("momentum_encoder.", "head.", "momentum_head.")
"""What a checkpoint may hold and a task may not need: a task may have no momentum encoder, or a smaller one, and has a
head of its own."""


@dataclass(frozen=True)
class Start:
    """The weights that a run starts with, by their names and by where they came from."""

    folder: Path
    """The checkpoint."""
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    """Those of the loaded weights that were resized to fit."""
    copied: tuple[str, ...]
    """Copies of other loaded weights: a momentum encoder that was not stored, and parts that the task begins so."""
    fresh: tuple[str, ...]
    """Weights that are as the task was built."""
    dropped: tuple[str, ...]
    """Stored weights that the task does not use."""
    untrained: tuple[str, ...] = ()
    """Parts of the stored student that are random, because no published file had them (`diptych convert`)."""

    def by_parts(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Groups the weights of each kind by the largest parts that are wholly of this kind, and counts the tensors."""
        own, stored = {*self.loaded, *self.copied, *self.fresh}, {*self.loaded, *self.dropped}
        for kind in ("loaded", "resized", "copied", "fresh", "dropped"):
            yield kind, parts(getattr(self, kind), stored if kind == "dropped" else own)

    def __str__(self) -> str:
        lines = [str(self.folder)]
        for kind, counts in self.by_parts():
            if counts:
                title = "copied from the student" if kind == "copied" else kind
                lines.append(f"  {title}: {', '.join(f'{part} ({count})' for part, count in counts.items())}")
        if self.untrained:
            lines.append(f"  random in the checkpoint already: {', '.join(self.untrained)}")
        return "\n".join(lines)


def start_from(task: Task, origin: Path | str, tokenizer: Tokenizer) -> Start:
    """Loads what `task` can use of a run or checkpoint: student, momentum encoder, and the head if it is of this task.

    A momentum encoder that is not stored begins as a copy of the student; text assignment, for one, stores none. The
    queue always starts empty, because its features are of the other run's images.

    Raises ValueError if there is no checkpoint, if it is damaged, if a weight of the student is missing, left over or
    of another shape, or if its tokenizer is another one: the same ids would then mean other words. None of this is
    required of parts that the task trains anew after such a run (`Task.fresh_from`), which may include the words.
    """
    checkpoint = store.load_from(origin)
    recipe = from_dict(checkpoint.recipe)
    fresh_parts = task.fresh_from(recipe)
    if TEXT not in fresh_parts and Tokenizer.load(checkpoint.tokenizer) != tokenizer:
        raise ValueError(
            f"{checkpoint.folder} was trained with another tokenizer: set tokenizer.vocabulary={checkpoint.tokenizer},"
            " and tokenizer.separator and tokenizer.lowercase as its tokenizer.json says"
        )
    stored, own = checkpoint.weights(), task.state_dict()
    random_parts = tuple(checkpoint.state.get("fresh", ()))
    untrained = [name for name in stored if _within(name, fresh_parts)]
    adapted = task.adapt({name: value for name, value in stored.items() if name not in untrained}, recipe)
    # Random weights of the checkpoint need not be kept where the recipe wants them in another size.
    unfit = {
        name
        for name, value in adapted.items()
        if _within(name, random_parts) and name in own and own[name].shape != value.shape
    }
    loaded = {
        name: value
        for name, value in adapted.items()
        if name not in unfit and (name in own or not name.startswith(OPTIONAL))
    }
    others = [
        name for name in stored if not name.startswith(("model.", "momentum_encoder."))
    ]  # `adapt` may leave them out

    students = {name: _student_name(name) for name in own if name not in loaded}
    copied = {name: loaded[student] for name, student in students.items() if student in loaded}
    # `adapt` may have filled parts that begin afresh with copies of trained ones.
    copied |= {name: loaded.pop(name) for name in list(loaded) if _within(name, fresh_parts)}
    fresh = {
        name: own[name]
        for name in students
        if name not in copied and (name in unfit or _is_optional(name, fresh_parts))
    }
    try:
        store.load_into(task, loaded | copied | fresh, checkpoint.folder)
    except store.CheckpointError as error:
        raise store.CheckpointError(f"{error}{_differences(recipe.model, task.model)}") from None
    borrowed = tuple(f"{part}." for part in task.borrowed())
    return Start(
        checkpoint.folder,
        loaded=tuple(loaded),
        resized=tuple(name for name, value in loaded.items() if name in stored and value.shape != stored[name].shape),
        copied=tuple(copied),
        fresh=tuple(name for name in fresh if not name.startswith(borrowed)),
        dropped=tuple(name for name in dict.fromkeys([*untrained, *adapted, *others]) if name not in loaded),
        untrained=random_parts,
    )


def _differences(origin: Any, model: Any) -> str:
    """Says in which settings the stored model differs from this one, for an error about its weights."""
    theirs, ours = (dict(leaves(asdict(config))) for config in (origin, model.config))
    differing = [
        f"model.{name}={value} (here {ours[name]})"
        for name, value in theirs.items()
        if ours.get(name, value) != value and not name.endswith("vocab_size")  # tokenizers were compared before
    ]
    return f"\n  The stored model has {', '.join(differing)}" if differing else ""


def record_start(folder: Path, task: Task, start: Start | None, borrowed: str = "") -> None:
    """Writes what a run began with into its folder. Without a `start`, every weight is fresh."""
    if start is None:
        names = task.state_dict()
        content: dict[str, Any] = {"from": None, "fresh": parts(names, names), "untrained": []}
    else:
        content = {"from": str(start.folder), **dict(start.by_parts()), "untrained": list(start.untrained)}
    write_text(folder / START, json.dumps({**content, "borrowed": borrowed.splitlines()}, indent=1))


def borrow(task: Task) -> str:
    """Loads the parts that the task takes from other runs (`Task.borrowed`). Returns a line for each of them.

    Raises ValueError if there is no checkpoint, if it is damaged, or if a weight is missing, left over or of another
    shape.
    """
    lines = []
    for part, origin in task.borrowed().items():
        checkpoint = store.load_from(origin)
        weights = checkpoint.weights()
        student = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        store.load_into(task.get_submodule(part), student, checkpoint.folder)
        lines.append(f"{part} ({len(student)}) borrowed from {checkpoint.folder}")
    return "\n".join(lines)


def _is_optional(name: str, fresh_parts: Iterable[str]) -> bool:
    """Whether no checkpoint needs to hold this weight."""
    return not name.startswith("model.") or _within(name, fresh_parts)


def _within(name: str, fresh_parts: Iterable[str]) -> bool:
    """Whether a weight of the student or the momentum encoder lies in one of these parts, in which `*` is a number."""
    owner, _, part = name.partition(".")
    return owner in ("model", "momentum_encoder") and any(
        fnmatchcase(part, fresh) or fnmatchcase(part, f"{fresh}.*") for fresh in fresh_parts
    )


def _student_name(name: str) -> str:
    """Returns the name of the student's weight that a momentum copy's weight follows."""
    owner, _, part = name.partition(".")
    return f"{STUDENTS.get(owner, '')}.{part}"


def parts(names: Iterable[str], among: Iterable[str]) -> dict[str, int]:
    """Groups names by the largest parts of which `names` holds everything that `among` holds, and counts them.

    >>> parts(["a.b.x", "a.b.y", "c.z"], ["a.b.x", "a.b.y", "a.d", "c.z"])
    {'a.b': 2, 'c': 1}
    """
    names = list(names)
    incomplete = {part for name in set(among) - set(names) for part in _prefixes(name)}
    return dict(Counter(next((part for part in _prefixes(name) if part not in incomplete), name) for name in names))


def _prefixes(name: str) -> list[str]:
    """Splits `a.b.c` into `a`, `a.b`, `a.b.c`."""
    pieces = name.split(".")
    return [".".join(pieces[: end + 1]) for end in range(len(pieces))]
