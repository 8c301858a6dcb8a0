"""Reads SBU captioned photos from `sbu-captions-all.json`, or from the two text files of addresses and captions.

The JSON is `{"image_urls": […], "captions": […], …}`. A picture file has the name that ends its address, which Flickr
makes unique: `4385058960_b0f291553e.jpg`. Many pictures are gone; those are skipped and counted.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from diptych.data.columns import is_address
from diptych.data.entries import text_of
from diptych.data.files import existing, json_object, list_of, split_paths
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=sbu reads sbu-captions-all.json, or the files of addresses and of captions with a comma between"


def read_sbu(paths: str, config: DataConfig) -> SourceListing:
    """Reads all captioned photos. Pictures lie in `config.root` or else beside the file. Raises ValueError."""
    files = split_paths(paths)
    if len(files) not in (1, 2):
        raise ValueError(f"{paths} names {len(files)} files: {LAYOUT}")
    if len(files) == 1:
        content = json_object(files[0], LAYOUT)
        columns = [list_of(content, key, files[0], LAYOUT) for key in ("image_urls", "captions")]
    else:
        columns = [_lines(existing(file, LAYOUT)) for file in files]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"{paths}: {len(columns[0])} addresses, but {len(columns[1])} captions")
    _check_columns(columns[0], columns[1], paths)
    listing = SourceListing()
    root = Path(config.root or Path(files[0]).parent)
    for index, pair in enumerate(zip(*columns, strict=True)):
        listing.add(pair, f"{files[0]}[{index}]", root, config.max_words, _read)
    return listing


def _check_columns(addresses: list[Any], captions: list[Any], paths: str) -> None:
    """Raises ValueError unless one column holds addresses and the other texts. They are paired by position alone."""
    for column, right, what in ((addresses, True, "addresses"), (captions, False, "captions")):
        fitting = sum(isinstance(value, str) and is_address(value) == right for value in column)
        if fitting < len(column) / 2:
            raise ValueError(f"{paths}: only {fitting} of {len(column)} {what} are {what}: {LAYOUT}")


def _lines(file: Path) -> list[Any]:
    """Reads the lines of a file. Bytes that are not UTF-8 are reported later, with the record that holds them."""
    return list(file.read_bytes().decode(errors="surrogateescape").removesuffix("\n").split("\n"))


def _read(pair: Any, name: str) -> Record:
    entry = dict(zip(("address", "caption"), pair, strict=True))
    url, caption = text_of(entry, "address", name), text_of(entry, "caption", name)
    try:
        file = PurePosixPath(urlsplit(url.strip()).path).name
    except ValueError:  # brackets that do not belong there
        file = ""
    if not file:
        raise BadRecord(name, "address wrong", url)
    return Record(name, file, (caption,), file)
