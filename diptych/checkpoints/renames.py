"""Names of parameters that earlier versions stored under other names.

Weights, momentum encoders and the optimiser's state are stored by the names of the parameters. Stored names pass
`current_name` when they are read. Patterns that users write, such as a recipe's `freeze`, may use either name.
"""

from __future__ import annotations

import re

RENAMED = {
    "experts.text": "language_ffn",
    "experts.image": "vision_ffn",
    "experts.fusion": "vl_ffn",
    "experts.all": "ffn",
}
"""Parts of a VLMo block: name until version 0.1 → name."""

_FORMER = {current: former for former, current in RENAMED.items()}
_BLOCK = r"(?<=blocks\.)(\d+|\*)\."
_STORED = re.compile(rf"{_BLOCK}({'|'.join(map(re.escape, RENAMED))})(?=\.|$)")
_CURRENT = re.compile(rf"{_BLOCK}({'|'.join(map(re.escape, _FORMER))})(?=\.|$)")


def current_name(name: str) -> str:
    """Translates a stored name, of a parameter or of a part.

    >>> current_name("exp_avg.teacher.blocks.2.experts.fusion.fc1.weight")
    'exp_avg.teacher.blocks.2.vl_ffn.fc1.weight'
    """
    return _STORED.sub(lambda match: f"{match[1]}.{RENAMED[match[2]]}", name)


def former_name(name: str) -> str:
    """Returns the name that earlier versions stored.

    >>> former_name("model.blocks.2.vl_ffn.fc1.weight")
    'model.blocks.2.experts.fusion.fc1.weight'
    """
    return _CURRENT.sub(lambda match: f"{match[1]}.{_FORMER[match[2]]}", name)
