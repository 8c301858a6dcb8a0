"""Reads pictures alone from folders, tar shards and JSONL files, and ignores any texts that belong to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.data.entries import picture_from_entry
from diptych.data.files import files_below, json_lines
from diptych.data.picture_kinds import is_picture
from diptych.data.record import Picture
from diptych.data.sources.img2dataset import shard_samples
from diptych.data.sources.listing import SourceListing
from diptych.schema import DataConfig

LAYOUT = "data.source=pictures reads a folder of pictures and tar shards, a tar shard, or a JSONL file"


def read_pictures(path: str, config: DataConfig) -> SourceListing:
    """Reads all pictures below a folder and in its tar shards, those of one shard, or those that a JSONL file names.

    They come in the order of names, members or lines. Raises ValueError.
    """
    place, listing = Path(path), SourceListing()
    if place.is_dir():
        for file in files_below(place, listing.passed_over):
            if is_picture(file):
                listing.add({"image": file.as_posix()}, file.as_posix(), place, config.max_words, picture_from_entry)
            elif file.suffix == ".tar":
                _add_shard(place / file, place, listing, config)
    elif place.is_file() and place.suffix == ".tar":
        _add_shard(place, place.parent, listing, config)
    elif place.is_file():
        root = Path(config.root or place.parent)
        for name, entry in json_lines(place):
            listing.add(entry, name, root, config.max_words, picture_from_entry)
    else:
        raise ValueError(f"no folder or file {place}: {LAYOUT}")
    return listing


def _add_shard(shard: Path, root: Path, listing: SourceListing, config: DataConfig) -> None:
    for name, sample in shard_samples(shard, root, listing, config.sample_names):
        for number, picture in enumerate(sample.pictures, start=1):
            own_name = name if number == 1 else f"{name}, picture {number}"
            listing.add(picture, own_name, root, config.max_words, _of_place)


def _of_place(place: Any, name: str) -> Picture:
    return Picture(name, place, name)
