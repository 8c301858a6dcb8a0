"""Says where the pictures of a list may lie if none of them is where the list says."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from diptych.data.columns import is_path
from diptych.data.files import split_paths
from diptych.data.sources.folder import METADATA_FILES
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import TRIED, folders_with
from diptych.schema import DataConfig


def where_pictures_may_lie(listing: SourceListing, path: str, config: DataConfig) -> str:
    """Returns a sentence on where the pictures of `path` may be; empty if some are found, or others lack something."""
    missing = [error.detail for error in listing.skipped if error.reason == "picture missing" and is_path(error.detail)]
    unnamed = sum(error.reason == "picture without text" for error in listing.skipped)
    if listing.records or 2 * len(missing) <= len(listing.skipped) - unnamed:
        return ""
    place = Path(next(iter(split_paths(path)), ""))
    folder = place if place.is_dir() else place.parent
    root = Path(config.root) if config.root else folder
    pictures = [Path(detail) for detail in missing[:TRIED]]
    inside = all(picture.is_relative_to(root) for picture in pictures)
    windows = all(PureWindowsPath(detail.removeprefix(f"{root}/")).drive for detail in missing[:TRIED])
    if windows:
        pictures, inside = [Path(PureWindowsPath(detail).name) for detail in missing[:TRIED]], False
    names = [str(picture.relative_to(root)).replace("\\", "/") if inside else picture.name for picture in pictures]
    found = next(iter(folders_with(folder, names)), folder)
    here = any((found / name).is_file() for name in names)
    said = f"none of the pictures that {path} names is there, such as {missing[0]}"
    if not here and inside and (spelled := _in_other_case(root, folder, names[0])):
        return f"{said}. There is {spelled}: upper and lower case differ here, so write them as they are on the disk"
    if place.is_dir() and (metadata := _list_below_start(pictures[0])):
        start = metadata.parent.parent
        return (
            f"{said}. There is {start / pictures[0].relative_to(metadata.parent)}, but the paths in a metadata file"
            f" start from its own folder. Read it with data.source=table data.path={metadata}, or move it to {start}"
        )
    if inside and here:
        return f"{said}. They are in {found}: set data.root={found}"
    if inside:
        if bare := folders_with(folder, [picture.name for picture in pictures]):
            return (
                f"{said}. Files of these names are in {bare[0]}, but the list has {names[0]}: name that folder as the"
                " list does, or make a link to it"
            )
        return f"{said}. data.root names the folder that their paths start from"
    away = f". Files of these names are in {found}" if here else ""
    return f"{said}{away}. These paths are absolute, so data.root does not change them: write them relative to a folder"


def _list_below_start(picture: Path) -> Path | None:
    """Returns the metadata file that names a missing picture, if the picture is where the folder above has it."""
    for folder in picture.parents:
        for name in METADATA_FILES:
            if (folder / name).is_file():
                return folder / name if (folder.parent / picture.relative_to(folder)).is_file() else None
    return None


def _in_other_case(root: Path, folder: Path, name: str) -> Path | None:
    """Returns the file that has a name but for upper and lower case, below `root` or a folder in `folder`."""
    for start in (root, *_entries(folder)):
        place: Path | None = start
        for part in Path(name).parts:
            found = (entry for entry in _entries(place) if entry.name.lower() == part.lower()) if place else iter(())
            place = next(found, None)
        if place is not None and place.is_file():
            return place
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
