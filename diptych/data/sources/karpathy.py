"""Karpathy's splits of COCO and Flickr30k: `dataset_coco.json`, `dataset_flickr30k.json`.

`{"images": [{"filename": …, "filepath": "val2014" (COCO only), "imgid": …, "split": "train" (restval, val, test),
"sentences": [{"raw": …}]}]}`. COCO's `restval` is training data, as published.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.record import BadRecord, Record, name_of, text_of
from diptych.data.sources.files import Found, json_object, list_of, object_of, split_named
from diptych.schema import DataConfig, Split

LAYOUT = "data.source=karpathy reads dataset_coco.json or dataset_flickr30k.json"
PUBLISHED: dict[str, Split] = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def read_karpathy(path: str, config: DataConfig) -> Found:
    """All pictures of a file with their captions and splits. Pictures start from `config.root`, or beside the file."""
    found = Found()
    root = Path(config.root or Path(path).parent)
    for index, entry in enumerate(list_of(json_object(path, LAYOUT), "images", path, LAYOUT)):
        found.add(entry, f"{path}, images[{index}]", root, config.max_words, _read, _split)
    return found


def _split(entry: Any, name: str) -> Split:
    return split_named(entry, name, PUBLISHED)


def _read(entry: Any, name: str) -> Record:
    entry = object_of(entry, name)
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise BadRecord(name, "wrong type", "`sentences` must be a list")
    file = text_of(entry, "filename", name)
    folder = name_of(entry, "filepath", name) or ""
    captions = tuple(text_of(object_of(sentence, name), "raw", name) for sentence in sentences)
    return Record(name_of(entry, "imgid", name) or name, str(PurePosixPath(folder, file)), captions, file)
