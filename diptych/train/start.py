"""Starting from what another run learnt (`init_from`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diptych.checkpoints import store
from diptych.data.tokenizer import Tokenizer
from diptych.task import Task

PARTS = ("model.", "teacher.")
"""What is taken over: student and teacher. Not the queue, whose features are of the other run's pictures."""


def start_from(task: Task, origin: Path | str, tokenizer: Tokenizer) -> Path:
    """Puts the student (and the teacher, where both tasks have one) of a run or checkpoint into `task`; returns which.

    Raises ValueError if there is no checkpoint, if it is damaged, if any weight is missing, left over or of another
    shape, or if its tokenizer is another: the same numbers would then mean other words.
    """
    checkpoint = store.load(store.find(origin))
    if Tokenizer.load(checkpoint.tokenizer) != tokenizer:
        raise ValueError(
            f"{checkpoint.folder} was trained with another tokenizer: set tokenizer.vocabulary={checkpoint.tokenizer},"
            " and tokenizer.separator and tokenizer.lowercase as its tokenizer.json says"
        )
    stored, own = checkpoint.weights(), task.state_dict()
    parts = tuple(part for part in PARTS if _has(own, part) and (_has(stored, part) or part == PARTS[0]))
    weights = {name: value for name, value in own.items() if not name.startswith(parts)}
    weights |= {name: value for name, value in stored.items() if name.startswith(parts)}
    store.load_into(task, weights, checkpoint.folder)
    return checkpoint.folder


def _has(names: Iterable[str], part: str) -> bool:
    return any(name.startswith(part) for name in names)
