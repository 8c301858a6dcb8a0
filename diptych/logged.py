"""Reads what a run's training wrote: `metrics.jsonl` (train/log.py) and `data.json` (run/known_data.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DATA = "data.json"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads all lines, with flat names such as `losses.itc`. A last line that a kill cut short is left out."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a run's folder, with what its training logged")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [dict(_flat(json.loads(line))) for line in lines if line.endswith("\n")]


def read_data(folder: Path) -> list[dict[str, Any]]:
    """Reads what is known of a run's data, one entry for each time that they changed, the first one first.

    Empty for a run of an earlier version, and for a file that is damaged: a run can do without it.
    """
    try:
        content = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) and all(isinstance(entry, dict) for entry in content) else []


def _flat(content: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", math.nan if value is None else float(value)
