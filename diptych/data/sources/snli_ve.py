"""SNLI-VE: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl`, on pictures of Flickr30k.

One object a line: `{"pairID": …, "gold_label": "neutral", "sentence2": the hypothesis, "Flickr30K_ID": …, "captionID":
"4705552913.jpg#2", …}`. The premise `sentence1`, a caption that the picture replaces, is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.data.record import BadRecord, Entailment, label_of, name_of, text_of
from diptych.data.sources.files import Found, existing, json_lines, object_of
from diptych.schema import DataConfig

LAYOUT = "data.source=snli_ve reads snli_ve_train.jsonl and the like"
PICTURE_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")
"""The published generator and the published files spell it differently."""


def read_snli_ve(path: str, config: DataConfig) -> Found:
    """All hypotheses of a file. Pictures are `NUMBER.jpg` in `config.root`, or beside the file."""
    found = Found()
    root = Path(config.root or Path(path).parent)
    for name, entry in json_lines(existing(path, LAYOUT)):
        found.add(entry, name, root, config.max_words, _read)
    return found


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
