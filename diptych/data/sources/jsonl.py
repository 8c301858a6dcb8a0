"""Records of any task in a JSONL file, one a line (schemas: diptych/data/record.py)."""

from __future__ import annotations

from pathlib import Path

from diptych.data.sources.files import Found, existing, json_lines
from diptych.schema import DataConfig


def read_jsonl(path: str, config: DataConfig) -> Found:
    """All records of a file. Relative pictures start from `config.root`, or from the file's folder.

    Lines that are no record are skipped and named FILE:LINE. Raises ValueError if the file is missing.
    """
    return read_lines(Path(path), Path(config.root or Path(path).parent), config.max_words)


def read_lines(file: Path, root: Path, max_words: int) -> Found:
    """The records of a file, and what could not become one."""
    found = Found()
    for name, entry in json_lines(existing(file, "data.source=jsonl reads a JSONL file, one record a line")):
        found.add(entry, name, root, max_words)
    return found
