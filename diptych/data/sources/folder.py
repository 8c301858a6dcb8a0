"""Reads a folder of pictures. The caption of each is the first line of the text file with the same name.

A `captions.jsonl` in the folder takes the place of the text files. So do `metadata.csv`, `metadata.jsonl` and
`metadata.parquet`, as in Hugging Face's imagefolder: they may lie in any folder, name the pictures below it, and belong
to a split if the folder is called after one.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from diptych.data.files import decoded, files_below
from diptych.data.picture_kinds import PassedOver, is_picture
from diptych.data.record import BadRecord
from diptych.data.sources.jsonl import read_lines
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.table import SPLIT_NAMES, add_table
from diptych.data.tables import open_table
from diptych.schema import DataConfig

CAPTIONS_FILE = "captions.jsonl"
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
LONGEST_LINE = 1 << 16
"""At most this many bytes of a text file's first line are read."""


def read_folder(path: str, config: DataConfig) -> SourceListing:
    """Reads all captioned pictures of a folder and its subfolders in the order of names, except hidden ones.

    Pictures without a text and texts without a picture are skipped and named. Raises ValueError if the folder is
    missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: data.source=folder reads pictures with texts of the same name")
    seen = PassedOver()
    files = list(files_below(folder, seen))
    if (folder / CAPTIONS_FILE).is_file():
        listing = _captioned(folder, files, config.max_words)
    elif metadata := [file for file in files if file.name in METADATA_FILES]:
        listing = _with_metadata(folder, files, metadata, config)
    else:
        listing = _side_cars(folder, files, config.max_words, seen)
    listing.passed_over.join(seen)
    return listing


def _captioned(folder: Path, files: list[Path], max_words: int) -> SourceListing:
    """Reads `captions.jsonl`, and skips the pictures that it does not mention."""
    listing = read_lines(folder / CAPTIONS_FILE, folder, max_words)
    _skip_unnamed(listing, folder, files, CAPTIONS_FILE)
    return listing


def _with_metadata(folder: Path, files: list[Path], metadata: list[Path], config: DataConfig) -> SourceListing:
    """Reads imagefolder's metadata files, and skips the pictures that they do not mention."""
    listing = SourceListing()
    splits = {file: SPLIT_NAMES.get(file.parts[0].lower()) if len(file.parts) > 1 else None for file in metadata}
    divided = len(set(splits.values())) > 1 and None not in splits.values()
    for file in metadata:
        split = splits[file] if divided else None
        add_table(listing, open_table(folder / file), config, split, folder / file.parent)
    _skip_unnamed(listing, folder, files, ", ".join(map(str, metadata)))
    return listing


def _skip_unnamed(listing: SourceListing, folder: Path, files: list[Path], lists: str) -> None:
    """Skips the pictures that no list mentions."""
    named = {os.path.normpath(image) for record in listing.records for image in record.images}
    named |= {os.path.normpath(error.detail) for error in listing.skipped if error.reason.endswith(" empty")}
    for file in files:
        if is_picture(file) and os.path.normpath(folder / file) not in named:
            listing.skipped.append(BadRecord(file.as_posix(), "picture without text", f"not in {lists}"))


def _side_cars(folder: Path, files: list[Path], max_words: int, seen: PassedOver) -> SourceListing:
    """Reads the text file beside each picture. A text beside a picture that is passed over lacks none."""
    listing = SourceListing()
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    same_names = {_composed(file): file for file in texts.values()}
    pictures = [file for file in files if is_picture(file)]
    longer: list[str] = []
    for picture in pictures:
        name = picture.as_posix()
        text = texts.get(picture.with_suffix("")) or same_names.get(_composed(picture))
        if text is None:
            listing.skipped.append(BadRecord(name, "picture without text", f"no {picture.with_suffix('.txt').name}"))
            continue
        try:
            caption, more = _first_line(folder / text, name)
        except BadRecord as error:
            listing.skipped.append(error)
            continue
        longer += [text.as_posix()] if more else []
        listing.add({"image": name, "caption": caption}, name, folder, max_words)
    if longer:
        listing.notes.append(
            f"{folder}: only the first line is read of {len(longer)} texts with several, such as {longer[0]}. List"
            " several captions of an image in captions.jsonl or metadata.csv"
        )
    owners = {_composed(picture) for picture in pictures}
    for stem, text in texts.items():
        if _composed(text) not in owners and str(stem) not in seen.stems:
            listing.skipped.append(BadRecord(text.as_posix(), "text without picture"))
    return listing


def _composed(file: Path) -> str:
    """Returns a file's name without its suffix, with accents as parts of their letters, however they are on disk."""
    return unicodedata.normalize("NFC", file.with_suffix("").as_posix())


def _first_line(file: Path, name: str) -> tuple[str, bool]:
    """Reads the first line of a text file, and returns whether others follow.

    Raises BadRecord, which names the picture, if it is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            line = decoded(stream.readline(LONGEST_LINE), name, "text")
            return line, bool(stream.read(LONGEST_LINE).strip())
    except OSError as error:
        raise BadRecord(name, "text unreadable", str(error)) from None
