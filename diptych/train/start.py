"""Starting from what another run learnt (`init_from`), and what a run's folder keeps of how it began.

RUN/start.json   `from`: the checkpoint, null for none; by parts of the task, with how many tensors each holds:
                 `loaded`, `resized`, `copied`, `fresh`, `dropped`; `untrained` and `borrowed`, as below
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.serialize import from_dict
from diptych.task import Task

START = "start.json"
STUDENTS = {"teacher": "model", "teacher_head": "head"}
"""What each momentum copy is a copy of."""
TEXT = "text"
"""The part of a model whose weights belong to numbered words."""
OPTIONAL = ("teacher.", "head.", "teacher_head.")
"""What may be stored for nothing: a task may do without a teacher, or with less of one, and has heads of its own."""


@dataclass(frozen=True)
class Start:
    """What a run starts with, by names of weights."""

    folder: Path
    """The checkpoint."""
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    """Of the loaded ones, those that were made to fit."""
    copied: tuple[str, ...]
    """Of others of the student: a teacher that was not stored, and what the task begins as a copy."""
    fresh: tuple[str, ...]
    """As the task was built."""
    dropped: tuple[str, ...]
    """Stored, but of no use here."""
    untrained: tuple[str, ...] = ()
    """Parts of the stored student that are random, since no published file brought them (`diptych convert`)."""

    def by_parts(self) -> Iterator[tuple[str, dict[str, int]]]:
        """What became of the weights, by the longest parts of which all is meant, with the number of tensors."""
        own, stored = {*self.loaded, *self.copied, *self.fresh}, {*self.loaded, *self.dropped}
        for what in ("loaded", "resized", "copied", "fresh", "dropped"):
            yield what, parts(getattr(self, what), stored if what == "dropped" else own)

    def __str__(self) -> str:
        lines = [str(self.folder)]
        for what, found in self.by_parts():
            if found:
                name = "copied from the student" if what == "copied" else what
                lines.append(f"  {name}: {', '.join(f'{part} ({n})' for part, n in found.items())}")
        if self.untrained:
            lines.append(f"  random in the checkpoint already: {', '.join(self.untrained)}")
        return "\n".join(lines)


def start_from(task: Task, origin: Path | str, tokenizer: Tokenizer) -> Start:
    """Puts what `task` can use of a run or checkpoint into it: student, teacher, and the heads of such a task.

    A teacher that is not stored begins as a copy of the student: text assignment, for one, stores none. The
    queue is never taken over: its features are of the other run's pictures.

    Raises ValueError if there is no checkpoint, if it is damaged, if any weight of the student is missing or left over,
    if any weight is of another shape, or if its tokenizer is another: the same numbers would then mean other words.
    Of parts that the task begins afresh after such a run, words among them, none of this is asked.
    """
    checkpoint = store.load_from(origin)
    recipe = from_dict(checkpoint.recipe)
    untaught = task.fresh_from(recipe)
    if TEXT not in untaught and Tokenizer.load(checkpoint.tokenizer) != tokenizer:
        raise ValueError(
            f"{checkpoint.folder} was trained with another tokenizer: set tokenizer.vocabulary={checkpoint.tokenizer},"
            " and tokenizer.separator and tokenizer.lowercase as its tokenizer.json says"
        )
    stored, own = checkpoint.weights(), task.state_dict()
    left = [name for name in stored if _within(name, untaught)]
    found = task.adapt({name: value for name, value in stored.items() if name not in left}, recipe)
    loaded = {name: value for name, value in found.items() if name in own or not name.startswith(OPTIONAL)}
    apart = [name for name in stored if not name.startswith(("model.", "teacher."))]  # which `found` may lack
    twins = {name: _twin(name) for name in own if name not in loaded}
    copied = {name: loaded[twin] for name, twin in twins.items() if twin in loaded}
    copied |= {name: loaded.pop(name) for name in list(loaded) if _within(name, untaught)}
    fresh = {name: own[name] for name in twins if name not in copied and _may_lack(name, untaught)}
    store.load_into(task, loaded | copied | fresh, checkpoint.folder)
    borrowed = tuple(f"{part}." for part in task.borrowed())
    return Start(
        checkpoint.folder,
        loaded=tuple(loaded),
        resized=tuple(name for name, value in loaded.items() if name in stored and value.shape != stored[name].shape),
        copied=tuple(copied),
        fresh=tuple(name for name in fresh if not name.startswith(borrowed)),
        dropped=tuple(name for name in dict.fromkeys([*left, *found, *apart]) if name not in loaded),
        untrained=tuple(checkpoint.state.get("fresh", ())),
    )


def record_start(folder: Path, task: Task, start: Start | None, borrowed: str = "") -> None:
    """Keeps in a run's folder what it began with; without a `start` all of it is fresh."""
    if start is None:
        names = task.state_dict()
        content: dict[str, Any] = {"from": None, "fresh": parts(names, names), "untrained": []}
    else:
        content = {"from": str(start.folder), **dict(start.by_parts()), "untrained": list(start.untrained)}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"start.{os.getpid()}.unfinished"  # each of several processes writes the same
    unfinished.write_text(json.dumps({**content, "borrowed": borrowed.splitlines()}, indent=1))
    unfinished.replace(folder / START)


def borrow(task: Task) -> str:
    """Puts the networks of other runs into the parts that are said to be theirs. Returns what was taken, for people.

    Raises ValueError if there is no checkpoint, if it is damaged, or if any weight is missing, left over or of another
    shape.
    """
    lines = []
    for part, origin in task.borrowed().items():
        checkpoint = store.load_from(origin)
        student = {k.removeprefix("model."): v for k, v in checkpoint.weights().items() if k.startswith("model.")}
        store.load_into(task.get_submodule(part), student, checkpoint.folder)
        lines.append(f"{part} ({len(student)}) borrowed from {checkpoint.folder}")
    return "\n".join(lines)


def _may_lack(name: str, untaught: Iterable[str]) -> bool:
    """Whether a weight may be in no checkpoint."""
    return not name.startswith("model.") or _within(name, untaught)


def _within(name: str, untaught: Iterable[str]) -> bool:
    """Whether a weight of student or teacher lies in one of these parts of the model."""
    owner, _, part = name.partition(".")
    return owner in ("model", "teacher") and any(part == each or part.startswith(f"{each}.") for each in untaught)


def _twin(name: str) -> str:
    """The student's name of a teacher's weight."""
    owner, _, part = name.partition(".")
    return f"{STUDENTS.get(owner, '')}.{part}"


def parts(names: Iterable[str], among: Iterable[str]) -> dict[str, int]:
    """Names by the longest parts of which none of `among` is left out, with how many each holds.

    >>> parts(["a.b.x", "a.b.y", "c.z"], ["a.b.x", "a.b.y", "a.d", "c.z"])
    {'a.b': 2, 'c': 1}
    """
    names = list(names)
    partial = {part for name in set(among) - set(names) for part in _beginnings(name)}
    return dict(Counter(next((part for part in _beginnings(name) if part not in partial), name) for name in names))


def _beginnings(name: str) -> list[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`."""
    pieces = name.split(".")
    return [".".join(pieces[: end + 1]) for end in range(len(pieces))]
