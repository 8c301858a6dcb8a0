"""Reads a folder of pictures. The caption of each is the first line of the text file with the same name.

A `captions.jsonl` in the folder takes the place of the text files.
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
from diptych.schema import DataConfig

CAPTIONS_FILE = "captions.jsonl"
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
    else:
        listing = _side_cars(folder, files, config.max_words, seen)
    listing.passed_over.join(seen)
    return listing


def _captioned(folder: Path, files: list[Path], max_words: int) -> SourceListing:
    """Reads `captions.jsonl`, and skips the pictures that it does not mention."""
    listing = read_lines(folder / CAPTIONS_FILE, folder, max_words)
    named = {os.path.normpath(image) for record in listing.records for image in record.images}
    named |= {os.path.normpath(error.detail) for error in listing.skipped if error.reason.endswith(" empty")}
    for file in files:
        if is_picture(file) and os.path.normpath(folder / file) not in named:
            listing.skipped.append(BadRecord(file.as_posix(), "picture without text", f"not in {CAPTIONS_FILE}"))
    return listing


def _side_cars(folder: Path, files: list[Path], max_words: int, seen: PassedOver) -> SourceListing:
    """Reads the text file beside each picture. A text beside a picture that is passed over lacks none."""
    listing = SourceListing()
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    same_names = {_composed(file): file for file in texts.values()}
    pictures = [file for file in files if is_picture(file)]
    for picture in pictures:
        name = picture.as_posix()
        text = texts.get(picture.with_suffix("")) or same_names.get(_composed(picture))
        if text is None:
            listing.skipped.append(BadRecord(name, "picture without text", f"no {picture.with_suffix('.txt').name}"))
            continue
        try:
            caption = _first_line(folder / text, name)
        except BadRecord as error:
            listing.skipped.append(error)
            continue
        listing.add({"image": name, "caption": caption}, name, folder, max_words)
    owners = {_composed(picture) for picture in pictures}
    for stem, text in texts.items():
        if _composed(text) not in owners and str(stem) not in seen.stems:
            listing.skipped.append(BadRecord(text.as_posix(), "text without picture"))
    return listing


def _composed(file: Path) -> str:
    """Returns a file's name without its suffix, with accents as parts of their letters, however they are on disk."""
    return unicodedata.normalize("NFC", file.with_suffix("").as_posix())


def _first_line(file: Path, name: str) -> str:
    """Reads the first line of a text file. Raises BadRecord, which names the picture, if it is not UTF-8."""
    try:
        with file.open("rb") as stream:
            return decoded(stream.readline(LONGEST_LINE), name, "text")
    except OSError as error:
        raise BadRecord(name, "text unreadable", str(error)) from None
