"""Reads NLVR2: `train.json`, `dev.json` and `test1.json`, with one object per line.

`{"identifier": "dev-850-0-1", "sentence": …, "label": "True", "left_url": …, "right_url": …, "directory": 53 (training
only)}`. The identifier consists of split, image set, pair and sentence. The pictures `dev-850-0-img0.png` and
`dev-850-0-img1.png` lie in `images/train/53`, `dev` or `test1`, or all in one folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.entries import name_of, object_of, text_of, truth_of
from diptych.data.files import existing, json_lines
from diptych.data.record import BadRecord, PairStatement
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=nlvr2 reads train.json, dev.json or test1.json"


def read_nlvr2(path: str, config: DataConfig) -> SourceListing:
    """Reads all statements of a file. `config.root` is the folder `images`, by default the file's own folder."""
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    for name, entry in json_lines(existing(path, LAYOUT)):
        listing.add(entry, name, root, config.max_words, partial(_read, root=root))
    return listing


def _read(entry: Any, name: str, root: Path) -> PairStatement:
    entry = object_of(entry, name)
    identifier = text_of(entry, "identifier", name)
    parts = identifier.split("-")
    if len(parts) != 4:
        raise BadRecord(name, "identifier wrong", f"'{identifier}' is not split-set-pair-sentence")
    split, image_set, pair, sentence = parts
    stem = f"{split}-{image_set}-{pair}"
    folder = _folder(root, split, name_of(entry, "directory", name) or "", f"{stem}-img0.png")
    left, right = f"{stem}-img0.png", f"{stem}-img1.png"
    return PairStatement(
        id=identifier,
        images=(f"{folder}{left}", f"{folder}{right}"),
        statement=text_of(entry, "sentence", name),
        label=truth_of(entry, "label", name),
        # The same picture has several file names, so its address identifies it.
        image_ids=(name_of(entry, "left_url", name) or left, name_of(entry, "right_url", name) or right),
        group=f"{split}-{image_set}-{sentence}",
    )


def _folder(root: Path, split: str, directory: str, file: str) -> str:
    """Returns the first of the usual folders that holds the file, or else the published one."""
    published = f"{split}/{directory}/" if directory else f"{split}/"
    places = dict.fromkeys((published, f"{split}/", f"{directory}/" if directory else "", ""))
    return next((place for place in places if (root / place / file).is_file()), published)
