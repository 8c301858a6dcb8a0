"""A folder of pictures, each with a text file of the same name whose first line is its caption.

A `captions.jsonl` in the folder takes the place of the text files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from diptych.data.pictures import SUFFIXES
from diptych.data.record import BadRecord
from diptych.data.sources.files import Found
from diptych.data.sources.jsonl import read_lines
from diptych.schema import DataConfig

CAPTIONS_FILE = "captions.jsonl"
LONGEST_LINE = 1 << 16
"""Bytes that are read of a text file's first line."""


def read_folder(path: str, config: DataConfig) -> Found:
    """All pairs of a folder and of those in it, in the order of names; hidden ones are passed over.

    Pictures without a text, and texts without a picture, are skipped and named. Raises ValueError if it is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: data.source=folder reads pictures with texts of the same name")
    files = list(files_below(folder))
    if (folder / CAPTIONS_FILE).is_file():
        return _captioned(folder, files, config.max_words)
    return _side_cars(folder, files, config.max_words)


def _captioned(folder: Path, files: list[Path], max_words: int) -> Found:
    found = read_lines(folder / CAPTIONS_FILE, folder, max_words)
    named = {os.path.normpath(image) for record in found.records for image in record.images}
    named |= {os.path.normpath(error.detail) for error in found.skipped if error.reason.endswith(" empty")}
    for file in files:
        if file.suffix.lower() in SUFFIXES and os.path.normpath(folder / file) not in named:
            found.skipped.append(BadRecord(file.as_posix(), "picture without text", f"not in {CAPTIONS_FILE}"))
    return found


def _side_cars(folder: Path, files: list[Path], max_words: int) -> Found:
    found = Found()
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    for picture in pictures:
        name = picture.as_posix()
        text = texts.get(picture.with_suffix(""))
        if text is None:
            found.skipped.append(BadRecord(name, "picture without text", f"no {picture.with_suffix('.txt').name}"))
            continue
        try:
            caption = _first_line(folder / text, name)
        except BadRecord as error:
            found.skipped.append(error)
            continue
        found.add({"image": name, "caption": caption}, name, folder, max_words)
    owners = {picture.with_suffix("") for picture in pictures}
    for stem, text in texts.items():
        if stem not in owners:
            found.skipped.append(BadRecord(text.as_posix(), "text without picture"))
    return found


def _first_line(file: Path, name: str) -> str:
    """Raises BadRecord, naming the picture, if the line is not UTF-8."""
    try:
        with file.open("rb") as stream:
            return stream.readline(LONGEST_LINE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord(name, "text is not UTF-8", file.name) from None
    except OSError as error:
        raise BadRecord(name, "text unreadable", str(error)) from None


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below, relative to `folder`, in the order of names."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder)
