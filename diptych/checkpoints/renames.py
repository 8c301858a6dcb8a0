"""Names of parameters that earlier versions stored under other names.

Weights, momentum encoders and the optimiser's state are stored by the names of the parameters. Stored names pass
`current_name` when they are read. Patterns that users write, such as a recipe's `freeze`, may use either name.
"""

from __future__ import annotations

import re

IN_BLOCKS = {
    "experts.text": "language_ffn",
    "experts.image": "vision_ffn",
    "experts.fusion": "vl_ffn",
    "experts.all": "ffn",
}
"""Parts of a VLMo block: name until version 0.1 → name."""
IN_TASKS = {"teacher": "momentum_encoder", "teacher_head": "momentum_head"}
"""Parts of a task: name until version 0.1 → name."""


def current_name(name: str) -> str:
    """Translates a stored name, of a parameter or of a part.

    >>> current_name("teacher.blocks.2.experts.fusion.fc1.weight")
    'momentum_encoder.blocks.2.vl_ffn.fc1.weight'
    """
    return _translated(name, IN_TASKS, IN_BLOCKS)


def former_name(name: str) -> str:
    """Returns the name that earlier versions stored.

    >>> former_name("model.blocks.2.vl_ffn.fc1.weight")
    'model.blocks.2.experts.fusion.fc1.weight'
    """
    return _translated(name, *({new: old for old, new in names.items()} for names in (IN_TASKS, IN_BLOCKS)))


def _translated(name: str, in_tasks: dict[str, str], in_blocks: dict[str, str]) -> str:
    """Replaces the first part of a name, and the part behind a block's number (or behind `*` in a pattern)."""
    first, dot, rest = name.partition(".")
    name = in_tasks.get(first, first) + dot + rest
    parts = "|".join(map(re.escape, in_blocks))
    return re.sub(rf"(?<=blocks\.)(\d+|\*)\.({parts})(?=\.|$)", lambda m: f"{m[1]}.{in_blocks[m[2]]}", name)
