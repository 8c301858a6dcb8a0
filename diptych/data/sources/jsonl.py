"""Reads records of any task from JSONL files, one per line (diptych/data/entries.py lists the schemas)."""

from __future__ import annotations

from pathlib import Path

from diptych.data.files import existing, json_lines
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig


def read_jsonl(path: str, config: DataConfig) -> SourceListing:
    """Reads all records of a file. Relative picture paths start from `config.root` or else from the file's folder.

    Lines that cannot be used are skipped and named FILE:LINE. Raises ValueError if the file is missing.
    """
    return read_lines(Path(path), Path(config.root or Path(path).parent), config.max_words)


def read_lines(file: Path, root: Path, max_words: int) -> SourceListing:
    """Reads all records of a file, with picture paths that start from `root`."""
    listing = SourceListing()
    for name, entry in json_lines(existing(file, "data.source=jsonl reads a JSONL file, one record a line")):
        listing.add(entry, name, root, max_words)
    return listing
