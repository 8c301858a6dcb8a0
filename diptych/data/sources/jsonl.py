"""Reads records of any task from JSONL files, one per line (diptych/data/entries.py lists the schemas).

A key `split` divides the records, if it names more than one split.

Lines with other keys, such as `{"file_name": …, "text": …}` of Hugging Face's imagefolder, are read as a table of
captioned pictures (diptych/data/sources/table.py), and those with the keys of SNLI-VE as SNLI-VE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from diptych.data.columns import LOOKED_AT, SPLIT_COLUMN, NoColumns
from diptych.data.entries import KEYS, from_entry, has_counts, object_of, text_key
from diptych.data.files import existing, json_lines, lines_of, parsed
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.snli_ve import PICTURE_KEYS, read_snli_ve
from diptych.data.sources.table import add_table, name_splits, split_of_row, tell_columns
from diptych.data.sources.unread import note_on_choices, notes_on_unread
from diptych.data.tables import NoTable, Table, open_table
from diptych.schema import DataConfig, Split

LAYOUT = "data.source=jsonl reads a JSONL file, one record a line"
MOST_NAMED = 8
"""A note names this many keys that are not read."""


def read_jsonl(path: str, config: DataConfig) -> SourceListing:
    """Reads all records of a file. Relative picture paths start from `config.root` or else from the file's folder.

    Lines that cannot be used are skipped and named FILE:LINE. Raises ValueError if the file is missing.
    """
    file = existing(path, LAYOUT)
    if config.image_column is None and config.caption_column is None and _is_snli_ve(file):
        listing = read_snli_ve(path, config)
        listing.notes.append(f"{file}: read as SNLI-VE: hypotheses from `sentence2`, labels from `gold_label`")
        return listing
    if (table := table_of(file, config)) is None:
        return read_lines(file, Path(config.root or file.parent), config.max_words)
    listing = SourceListing()
    add_table(listing, table, config)
    return listing


def _is_snli_ve(file: Path) -> bool:
    """Returns whether the first lines have the keys of SNLI-VE, which are no captions (snli_ve.py)."""
    entries = [entry for _, entry in islice(json_lines(file), LOOKED_AT) if isinstance(entry, dict)]
    return bool(entries) and all(
        {"sentence2", "gold_label"} <= entry.keys() and not entry.keys().isdisjoint(PICTURE_KEYS) for entry in entries
    )


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
        tell_columns(table, table.first_rows(), config)
    except (NoTable, NoColumns):
        if named:
            raise
        return None
    return table


def _is_own(entry: object) -> bool:
    """Whether an entry has the keys of a record with a picture, even if their values cannot be used.

    A file with all its captions under `text` is read as a table, as Hugging Face's lists are.
    """
    try:
        from_entry(entry, "")
    except BadRecord as error:
        return isinstance(entry, dict) and text_key(entry) != "text" and error.reason != "key missing"
    return text_key(entry) != "text"


def read_lines(file: Path, root: Path, max_words: int) -> SourceListing:
    """Reads all records of a file, with picture paths that start from `root`, and splits if its lines name several."""
    listing = SourceListing()
    split_of = _split_of if name_splits(_splits_in(existing(file, LAYOUT))) else None
    listing.notes += [f"{file}: splits from `{SPLIT_COLUMN}`"] if split_of else []
    unread: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    counted = 0
    for name, entry in json_lines(file):
        listing.add(entry, name, root, max_words, split_of=split_of)
        if isinstance(entry, dict):
            told = {"sentence"} if text_key(entry) == "statement" and "statement" not in entry else set()
            unread.update(str(key) for key in entry.keys() - KEYS - told)
            first += [entry] * (len(first) < LOOKED_AT)
            counted += has_counts(entry)
    if listing.records and isinstance(listing.records[0], Record):
        listing.notes += [f"{file}: {note}" for note in notes_on_unread(first)]
    if choices := note_on_choices(first):
        listing.notes.append(f"{file}: {choices}")
    if counted:
        listing.notes.append(
            f"{file}: {counted} questions have `weights` above 1: they are divided by their sum, as counts of people"
        )
    if unread:
        named = ", ".join(f"`{key}`" for key, _ in unread.most_common(MOST_NAMED))
        listing.notes.append(f"{file}: keys that are not read: {named}{', …' * (len(unread) > MOST_NAMED)}")
    return listing


def _splits_in(file: Path) -> Iterator[Any]:
    """Yields what the lines of a file have under `split`. Lines without that word are not parsed."""
    for _, number, content in lines_of(file):
        if b'"split"' in content:
            with suppress(BadRecord):
                entry = parsed(content, f"{file}:{number}")
                yield entry.get(SPLIT_COLUMN, "") if isinstance(entry, dict) else ""


def _split_of(entry: Any, name: str) -> Split:
    return split_of_row(object_of(entry, name).get(SPLIT_COLUMN), name)
