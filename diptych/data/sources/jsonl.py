"""Pairs in a JSONL file, one record a line (schema: diptych/data/record.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diptych.data.record import BadRecord, Split
from diptych.data.sources.files import FileSource, Found, open_split
from diptych.schema import DataConfig


def open_jsonl(config: DataConfig, split: Split) -> FileSource:
    """`config.path` is the file; relative pictures start from `config.root`, or from the file's folder.

    Lines that are no record are skipped and named FILE:LINE. Raises ValueError if the file is missing or the split
    empty.
    """
    return open_split(partial(_read, config=config), config, split)


def _read(path: str, config: DataConfig) -> Found:
    return read_lines(Path(path), Path(config.root or Path(path).parent), config.max_words)


def read_lines(file: Path, root: Path, max_words: int) -> Found:
    """The records of a file, and what could not become one."""
    if not file.is_file():
        raise ValueError(f"no file {file}: data.source=jsonl reads a JSONL file, one record a line")
    found = Found()
    for name, line in _lines(file):
        try:
            entry = json.loads(line.decode())
        except UnicodeDecodeError as error:
            found.skipped.append(BadRecord(name, "line is not UTF-8", str(error)))
        except (json.JSONDecodeError, RecursionError) as error:
            found.skipped.append(BadRecord(name, "line is not JSON", str(error)))
        else:
            found.add(entry, name, root, max_words)
    return found


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Lines that hold something, each with its FILE:LINE. Bytes, so that one broken line does not spoil the others."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if content:
                yield f"{file}:{number}", content
