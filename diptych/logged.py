"""Reads `metrics.jsonl`, which a run's training wrote (train/log.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads all lines, with flat names such as `losses.itc`. A last line that a kill cut short is left out."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a run's folder, with what its training logged")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [dict(_flat(json.loads(line))) for line in lines if line.endswith("\n")]


def _flat(content: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", math.nan if value is None else float(value)
