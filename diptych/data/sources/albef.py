"""ALBEF's own annotation lists: JSON files, each a list of {"image": path, "caption": text or texts, "image_id": …}.

Pre-training lists and the retrieval lists of COCO and Flickr30k have this form.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from diptych.data.record import Split
from diptych.data.sources.files import FileSource, Found, open_split
from diptych.schema import DataConfig


def open_albef(config: DataConfig, split: Split) -> FileSource:
    """`config.path` names one list, or several with commas between them, read in that order.

    Relative pictures start from `config.root`, or from their list's folder. Entries that are no record are skipped and
    named FILE[INDEX], counted from 0. Raises ValueError if a list is missing or no list, or if the split is empty.
    """
    return open_split(partial(_read, config=config), config, split)


def _read(paths: str, config: DataConfig) -> Found:
    found = Found()
    for path in (Path(part.strip()) for part in paths.split(",") if part.strip()):
        root = Path(config.root or path.parent)
        for index, entry in enumerate(_entries(path)):
            found.add(entry, f"{path}[{index}]", root, config.max_words)
    return found


def _entries(path: Path) -> list[object]:
    if not path.is_file():
        raise ValueError(f"no file {path}: data.source=albef reads JSON lists, separated by commas")
    try:
        entries = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f'{path} is not a list of {{"image": …, "caption": …}}')
    return entries
