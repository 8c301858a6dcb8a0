"""Says where the pictures of a list may lie if none of them is where the list says."""

from __future__ import annotations

from pathlib import Path

from diptych.data.columns import is_path
from diptych.data.files import split_paths
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import TRIED, folder_of_pictures
from diptych.schema import DataConfig


def where_pictures_may_lie(listing: SourceListing, path: str, config: DataConfig) -> str:
    """Returns a sentence on where the pictures of `path` may be; empty if some are found, or others lack something."""
    missing = [error.detail for error in listing.skipped if error.reason == "picture missing" and is_path(error.detail)]
    if listing.records or 2 * len(missing) <= len(listing.skipped):
        return ""
    place = Path(next(iter(split_paths(path)), ""))
    folder = place if place.is_dir() else place.parent
    root = Path(config.root) if config.root else folder
    pictures = [Path(detail) for detail in missing[:TRIED]]
    inside = all(picture.is_relative_to(root) for picture in pictures)
    names = [str(picture.relative_to(root)) if inside else picture.name for picture in pictures]
    found = folder_of_pictures(folder, names)
    here = any((found / name).is_file() for name in names)
    said = f"none of the pictures that {path} names is there, such as {missing[0]}"
    if inside and here:
        return f"{said}. They are in {found}: set data.root={found}"
    if inside:
        bare = folder_of_pictures(folder, [picture.name for picture in pictures])
        if any((bare / picture.name).is_file() for picture in pictures):
            return (
                f"{said}. Files of these names are in {bare}, but the list has {names[0]}: name that folder as the list"
                " does, or make a link to it"
            )
        return f"{said}. data.root names the folder that their paths start from"
    away = f". Files of these names are in {found}" if here else ""
    return f"{said}{away}. These paths are absolute, so data.root does not change them: write them relative to a folder"
