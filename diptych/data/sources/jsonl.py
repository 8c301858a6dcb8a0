"""Reads records of any task from JSONL files, one per line (diptych/data/entries.py lists the schemas).

Lines with other keys, such as `{"file_name": …, "text": …}` of Hugging Face's imagefolder, are read as a table of
captioned pictures (diptych/data/sources/table.py).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from diptych.data.columns import LOOKED_AT, NoColumns, choose_columns
from diptych.data.entries import from_entry
from diptych.data.files import existing, json_lines
from diptych.data.record import BadRecord, PlainText
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import add_table
from diptych.data.tables import NoTable, Table, open_table
from diptych.schema import DataConfig

LAYOUT = "data.source=jsonl reads a JSONL file, one record a line"


def read_jsonl(path: str, config: DataConfig) -> SourceListing:
    """Reads all records of a file. Relative picture paths start from `config.root` or else from the file's folder.

    Lines that cannot be used are skipped and named FILE:LINE. Raises ValueError if the file is missing.
    """
    file = existing(path, LAYOUT)
    if (table := table_of(file, config)) is None:
        return read_lines(file, Path(config.root or file.parent), config.max_words)
    listing = SourceListing()
    add_table(listing, table, config)
    return listing


def table_of(file: Path, config: DataConfig) -> Table | None:
    """Returns the file as a table, unless its first lines have the keys of this library.

    `{"text": …}` has them, but is not a text without a picture if another key holds paths of pictures.
    """
    named = config.image_column is not None or config.caption_column is not None
    entries = [entry for _, entry in islice(json_lines(file), LOOKED_AT)]
    if not any(isinstance(entry, dict) for entry in entries):
        return None
    if not named and any(_is_own(entry) for entry in entries):
        return None
    try:
        table = open_table(file)
        choose_columns(table.columns, table.first_rows(), config.image_column, config.caption_column)
    except (NoTable, NoColumns):
        if named:
            raise
        return None
    return table


def _is_own(entry: object) -> bool:
    """Whether an entry has the keys of a record with a picture, even if their values cannot be used."""
    try:
        return not isinstance(from_entry(entry, ""), PlainText)
    except BadRecord as error:
        return isinstance(entry, dict) and error.reason != "key missing"


def read_lines(file: Path, root: Path, max_words: int) -> SourceListing:
    """Reads all records of a file, with picture paths that start from `root`."""
    listing = SourceListing()
    for name, entry in json_lines(existing(file, LAYOUT)):
        listing.add(entry, name, root, max_words)
    return listing
