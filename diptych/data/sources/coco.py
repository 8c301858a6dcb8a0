"""Reads COCO's own captions, and finds COCO's pictures.

`captions_train2017.json` is `{"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"image_id": 9,
"caption": …}]}`. Pictures lie in `train2014/COCO_train2014_000000000009.jpg` and so on, or all in one folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.entries import name_of, object_of, text_of
from diptych.data.files import json_object, list_of
from diptych.data.record import BadRecord, Record
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import TRIED, folder_of_pictures
from diptych.schema import DataConfig

LAYOUT = "data.source=coco_captions reads captions_train2017.json and the like, as COCO publishes them"
_NAME = re.compile(r"COCO_(\w+?)_\d+\.jpg")


def coco_path(root: Path, file_name: str) -> str:
    """Returns the path of a picture below `root`: in the folder of its subset, if that folder exists.

    >>> coco_path(Path("nowhere"), "COCO_train2014_000000000009.jpg")
    'COCO_train2014_000000000009.jpg'
    """
    match = _NAME.fullmatch(file_name)
    return f"{match[1]}/{file_name}" if match and (root / match[1]).is_dir() else file_name


def read_coco_captions(path: str, config: DataConfig) -> SourceListing:
    """Reads all pictures of a file with their captions.

    Picture paths start from `config.root`, or else from the file's folder or a folder in it or beside it. Captions
    that VizWiz-Captions marks as rejected are left out, with a note. Raises ValueError.
    """
    content = json_object(path, LAYOUT)
    images, annotations = (list_of(content, key, path, LAYOUT) for key in ("images", "annotations"))
    listing = SourceListing()
    captions: defaultdict[str | None, list[str]] = defaultdict(list)
    rejected = 0
    for index, annotation in enumerate(annotations):
        name = f"{path}, annotations[{index}]"
        try:
            number = name_of(object_of(annotation, name), "image_id", name)
            caption = text_of(annotation, "caption", name)
            if annotation.get("is_rejected") is True:  # in VizWiz-Captions
                rejected += 1
                continue
            captions[number].append(caption)
        except BadRecord as error:
            listing.skip(error)
    if not captions:
        raise ValueError(f"{path} has no captions among its annotations: {LAYOUT}")
    if rejected:
        listing.notes.append(f"{path}: {rejected} captions are marked as rejected by the data set, and are left out")
    root, note = _root(path, images, config)
    listing.notes += [note] if note else []
    for index, entry in enumerate(images):
        read = partial(_read, captions=captions, root=root)
        listing.add(entry, f"{path}, images[{index}]", root, config.max_words, read)
    for number in captions:  # those of known pictures have been taken out
        listing.skip(BadRecord(f"{path}, image_id {number}", "picture missing", "it is not among the `images`"))
    return listing


def _root(path: str, images: list[Any], config: DataConfig) -> tuple[Path, str]:
    """Returns the folder that picture paths start from, and a note if it had to be looked for."""
    folder = Path(path).parent
    if config.root is not None:
        return Path(config.root), ""
    names = [_file_name(image) or "" for image in images[:TRIED] if isinstance(image, dict)]
    found = folder_of_pictures(Path(path), [coco_path(folder, name) for name in names])
    return found, "" if found == folder else f"{path}: pictures are taken from {found}"


def _read(entry: Any, name: str, captions: dict[str | None, list[str]], root: Path) -> Record:
    file = _file_name(object_of(entry, name)) or text_of(entry, "file_name", name)
    number = name_of(entry, "id", name)
    if number not in captions:
        raise BadRecord(name, "caption missing", f"no annotation of image {number}")
    return Record(f"coco/{number}", coco_path(root, file), tuple(captions.pop(number)), file)


def _file_name(image: Mapping[str, Any]) -> str | None:
    """Returns the name of a picture's file. Lists derived from COCO, as LVIS, hold its address instead."""
    if isinstance(address := image.get("coco_url"), str) and "file_name" not in image:
        return PurePosixPath(address).name
    file = image.get("file_name")
    return file if isinstance(file, str) else None
