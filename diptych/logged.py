"""Reads what training and evaluation wrote into a run's folder, which somebody else may have made.

metrics.jsonl    train/log.py
data.json        run/known_data.py
eval.json        run/evaluation.py
compute.json     apps/compare/compute.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diptych.reading import parse_json, read_bounded, read_stored

DATA = "data.json"
EVALUATION = "eval.json"
COMPUTE = "compute.json"
"""File with the operations of a training, where they were counted."""
LARGEST_LOG = 1 << 30
"""Largest `metrics.jsonl` in bytes: a million lines."""
DEEPEST = 8
"""Levels of names within names in a line of the log."""
COUNTED = ("step", "epoch", "pairs", "seconds")
"""Numbers of a line that are finite. Every line has `step`."""
TEXTS = ("checkpoint", "split", "unit", "task")
"""Entries of `eval.json` that are texts."""
OTHERS = ("classes.", "calibration.", "changed")
"""Beginnings of entries of `eval.json` that are no single numbers, or not always."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads all lines, with flat names such as `losses.itc`. A last line that a kill cut short is left out.

    Raises ValueError for a missing log, and naming the first line that is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a run's folder, with what its training logged")
    lines = []
    for number, line in enumerate(read_bounded(path, LARGEST_LOG).split(b"\n")[:-1], 1):
        try:
            entry = dict(_flat(parse_json(line)))
            whole = "step" in entry and all(math.isfinite(entry.get(name, 0.0)) for name in COUNTED)
        except (ValueError, TypeError, AttributeError, OverflowError):
            whole = False
        if not whole:
            raise ValueError(f"{path}, line {number} is damaged: it holds no step with numbers")
        lines.append(entry)
    return lines


def read_data(folder: Path) -> list[dict[str, Any]]:
    """Reads what is known of a run's data, one entry for each time that they changed, the first one first.

    Empty for a run of an earlier version, and for a file that is damaged: a run can do without it.
    """
    try:
        content = parse_json(read_bounded(folder / DATA))
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) and all(isinstance(entry, dict) for entry in content) else []


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """Reads a run's `eval.json`; None if it was never measured.

    Raises ValueError for one that is damaged, or in which an entry is not of the kind that its name says.
    """
    file = folder / EVALUATION
    if not file.is_file():
        return None
    content = read_stored(file)
    for name, value in content.items():
        if not _fits(name, value):
            raise ValueError(f"{file} is damaged (`{name}` has no such value): evaluate the run again")
    return content


def read_compute(folder: Path) -> dict[str, Any] | None:
    """Reads what a run's training cost; None if that was not counted. Raises ValueError for a damaged file."""
    file = folder / COMPUTE
    if not file.is_file():
        return None
    content = read_stored(file)
    if not all(_is_number(content.get(name)) for name in ("steps", "records", "flops", "seconds")):
        raise ValueError(f"{file} is damaged (a number is missing): remove it, and it is counted anew")
    return content


def _fits(name: str, value: Any) -> bool:
    if name.endswith(".interval"):
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if name in TEXTS:
        return isinstance(value, str)
    return value is None or _is_number(value) or name.startswith(OTHERS)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _flat(content: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterable[tuple[str, float]]:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.", depth + 1)
        else:
            yield f"{above}{name}", math.nan if value is None else float(value)
