"""Pictures alone: whatever a folder, tar shards or JSONL files hold of them, with texts or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.data.pictures import SUFFIXES
from diptych.data.record import Picture, picture_from_entry
from diptych.data.sources.files import Found, json_lines
from diptych.data.sources.folder import files_below
from diptych.data.sources.img2dataset import shard_samples
from diptych.schema import DataConfig

LAYOUT = "data.source=pictures reads a folder of pictures and tar shards, a tar shard, or a JSONL file"


def read_pictures(path: str, config: DataConfig) -> Found:
    """Every picture below a folder, also inside its tar shards; of one shard; or the `image` of each line of JSONL.

    In the order of names, lines or members. Texts beside the pictures are passed over. Raises ValueError.
    """
    place, found = Path(path), Found()
    if place.is_dir():
        for file in files_below(place):
            if file.suffix.lower() in SUFFIXES:
                found.add({"image": file.as_posix()}, file.as_posix(), place, config.max_words, picture_from_entry)
            elif file.suffix == ".tar":
                _add_shard(place / file, place, found, config)
    elif place.is_file() and place.suffix == ".tar":
        _add_shard(place, place.parent, found, config)
    elif place.is_file():
        root = Path(config.root or place.parent)
        for name, entry in json_lines(place):
            found.add(entry, name, root, config.max_words, picture_from_entry)
    else:
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    return found


def _add_shard(shard: Path, root: Path, found: Found, config: DataConfig) -> None:
    for name, sample in shard_samples(shard, root, found):
        if sample.picture is not None:
            found.add(sample, name, root, config.max_words, _of_sample)


def _of_sample(sample: Any, name: str) -> Picture:
    return Picture(name, sample.picture, name)
