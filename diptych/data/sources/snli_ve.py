"""Reads SNLI-VE: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl`, on pictures of Flickr30k.

Each line is an object `{"pairID": …, "gold_label": "neutral", "sentence2": the hypothesis, "Flickr30K_ID": …,
"captionID": "4705552913.jpg#2", …}`. The premise `sentence1` is a caption that the picture replaces; it is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.data.entries import label_of, name_of, object_of, text_of
from diptych.data.files import existing, json_lines
from diptych.data.record import BadRecord, Entailment
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=snli_ve reads snli_ve_train.jsonl and the like"
PICTURE_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")
"""The keys of a picture's number. The published generator and the published files spell them differently."""


def read_snli_ve(path: str, config: DataConfig) -> SourceListing:
    """Reads all hypotheses of a file. Pictures are `NUMBER.jpg` in `config.root` or else beside the file."""
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    for name, entry in json_lines(existing(path, LAYOUT)):
        listing.add(entry, name, root, config.max_words, _read)
    return listing


def _read(entry: Any, name: str) -> Entailment:
    entry = object_of(entry, name)
    picture = f"{_picture(entry, name)}.jpg"
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
