"""SBU captioned photos: `sbu-captions-all.json`, or the two text files of addresses and captions, line by line.

The JSON is `{"image_urls": […], "captions": […], …}`. A picture is called as in its address, which Flickr makes unique:
`4385058960_b0f291553e.jpg`. Many of them are gone; those are skipped and counted.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from diptych.data.record import BadRecord, Record, text_of
from diptych.data.sources.files import Found, existing, json_object, list_of, parts_of
from diptych.schema import DataConfig

LAYOUT = "data.source=sbu reads sbu-captions-all.json, or the files of addresses and of captions with a comma between"


def read_sbu(paths: str, config: DataConfig) -> Found:
    """All captioned photos. Pictures lie in `config.root`, or beside the file. Raises ValueError."""
    files = parts_of(paths)
    if len(files) not in (1, 2):
        raise ValueError(f"{paths} names {len(files)} files: {LAYOUT}")
    if len(files) == 1:
        content = json_object(files[0], LAYOUT)
        columns = [list_of(content, key, files[0], LAYOUT) for key in ("image_urls", "captions")]
    else:
        columns = [_lines(existing(file, LAYOUT)) for file in files]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"{paths}: {len(columns[0])} addresses, but {len(columns[1])} captions")
    found = Found()
    root = Path(config.root or Path(files[0]).parent)
    for index, pair in enumerate(zip(*columns, strict=True)):
        found.add(pair, f"{files[0]}[{index}]", root, config.max_words, _read)
    return found


def _lines(file: Path) -> list[Any]:
    """A broken letter is left to the record that it is in."""
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
