"""Reads Karpathy's splits of COCO and Flickr30k: `dataset_coco.json` and `dataset_flickr30k.json`.

`{"images": [{"filename": …, "filepath": "val2014" (COCO only), "imgid": …, "split": "train" (restval, val, test),
"sentences": [{"raw": …}]}]}`. COCO's `restval` split is training data, as in the publications.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.entries import name_of, object_of, published_split, text_of
from diptych.data.files import json_object, list_of
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig, Split

LAYOUT = "data.source=karpathy reads dataset_coco.json or dataset_flickr30k.json"
PUBLISHED: dict[str, Split] = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def read_karpathy(path: str, config: DataConfig) -> SourceListing:
    """Reads all pictures of a file with their captions and splits.

    Picture paths start from `config.root` or else from the file's folder. Raises ValueError.
    """
    listing = SourceListing()
    root = Path(config.root or Path(path).parent)
    for index, entry in enumerate(list_of(json_object(path, LAYOUT), "images", path, LAYOUT)):
        listing.add(entry, f"{path}, images[{index}]", root, config.max_words, _read, _split)
    return listing


def _split(entry: Any, name: str) -> Split:
    return published_split(entry, name, PUBLISHED)


def _read(entry: Any, name: str) -> Record:
    entry = object_of(entry, name)
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise BadRecord(name, "wrong type", "`sentences` must be a list")
    file = text_of(entry, "filename", name)
    folder = name_of(entry, "filepath", name) or ""
    captions = tuple(text_of(object_of(sentence, name), "raw", name) for sentence in sentences)
    return Record(name_of(entry, "imgid", name) or name, str(PurePosixPath(folder, file)), captions, file)
