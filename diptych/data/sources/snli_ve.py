"""Reads SNLI-VE: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl`, on pictures of Flickr30k.

Each line is an object `{"pairID": …, "gold_label": "neutral", "sentence2": the hypothesis, "Flickr30K_ID": …,
"captionID": "4705552913.jpg#2", …}`. The premise `sentence1` is a caption that the picture replaces; it is not read.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.entries import label_of, name_of, object_of, text_of
from diptych.data.files import existing, json_lines
from diptych.data.record import BadRecord, Entailment
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LAYOUT = "data.source=snli_ve reads snli_ve_train.jsonl and the like"
PICTURE_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")
"""The keys of a picture's number. The published generator and the published files spell them differently."""


def read_snli_ve(path: str, config: DataConfig) -> SourceListing:
    """Reads all hypotheses of a file. Pictures are `NUMBER.jpg` in `config.root` or else beside the file.

    If the first is a file of another suffix, so are all.
    """
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    suffix = ""
    for name, entry in json_lines(existing(path, LAYOUT)):
        suffix = suffix or _suffix(entry, name, root)
        listing.add(entry, name, root, config.max_words, partial(_read, suffix=suffix or ".jpg"))
    return listing


def _suffix(entry: Any, name: str, root: Path) -> str:
    """Returns the suffix of the file of an entry's picture; empty if there is none."""
    try:
        picture = _picture(object_of(entry, name), name)
    except BadRecord:
        return ""
    return next((suffix for suffix in SUFFIXES if (root / f"{picture}{suffix}").is_file()), "")


def _read(entry: Any, name: str, suffix: str) -> Entailment:
    entry = object_of(entry, name)
    picture = f"{_picture(entry, name)}{suffix}"
    label = label_of(entry, "gold_label", name)
    hypothesis = text_of(entry, "sentence2", name)
    return Entailment(name_of(entry, "pairID", name) or name, picture, hypothesis, label, picture)


def _picture(entry: Any, name: str) -> str:
    for key in PICTURE_KEYS:
        if number := name_of(entry, key, name):
            return number.removesuffix(".jpg")
    if "captionID" not in entry:
        raise BadRecord(name, "key missing", PICTURE_KEYS[0])
    return text_of(entry, "captionID", name).partition("#")[0].removesuffix(".jpg")
