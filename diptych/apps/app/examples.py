"""Finds pictures with captions that pages offer as examples."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diptych.data.files import files_below
from diptych.data.picture_kinds import SUFFIXES, PassedOver, is_picture
from diptych.data.sources.folder import CAPTIONS_FILE

FOLDER = "pictures"
"""Folder in a run with the pictures that the demonstration saved."""


@dataclass(frozen=True)
class Captioned:
    """A picture file with its caption, if it has one."""

    picture: Path
    caption: str | None


@dataclass(frozen=True)
class Album:
    """The pictures of a folder, those with a caption first."""

    folder: Path | None
    pictures: tuple[Captioned, ...] = ()
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The files that look like pictures and are not read as such."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions."""
        return tuple(dict.fromkeys(entry.caption for entry in self.pictures if entry.caption))

    @classmethod
    def open(cls, folder: Path) -> Album:
        """Raises ValueError for a missing folder, and for one without pictures."""
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: name one that holds pictures")
        captions = _captions(folder)
        seen = PassedOver()
        files = [file for file in files_below(folder, seen) if is_picture(file)]
        if not files:
            raise ValueError(f"no pictures in {folder}: looked for {', '.join(sorted(SUFFIXES))}{seen.after}")
        pictures = [Captioned(folder / file, captions.get(file.as_posix())) for file in files]
        return cls(folder, tuple(sorted(pictures, key=lambda entry: entry.caption is None)), seen)


THING = re.compile(
    r"\b(?:an?|the|two|three) (?!picture|photo|image)((?:\w+ ){0,2}?\w+)"
    r"(?= (?:to|is|are|left|right|above|below|and|on|with|in|of|near|next|at)\b|[^\w ]|$)"
)


def thing_of(caption: str) -> str | None:
    """Extracts the first thing that a caption names, with its article. None if there is none.

    >>> thing_of("a large whale to the left of a crab"), thing_of("a picture of a phone"), thing_of("sunset")
    ('a large whale', 'a phone', None)
    """
    match = THING.search(caption)
    return None if match is None else match[0]


def album_of(runs: Sequence[Path], images: Path | None) -> Album:
    """Opens the folder `images`, else the pictures of the first run that has some, else an empty album."""
    if images is not None:
        return Album.open(images)
    folder = next((run / FOLDER for run in runs if (run / FOLDER).is_dir()), None)
    return Album(None) if folder is None else Album.open(folder)


def _captions(folder: Path) -> dict[str, str]:
    """Reads captions by the picture's name. Raises ValueError for an invalid captions file."""
    file = folder / CAPTIONS_FILE
    if not file.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            caption = record["caption"]
            captions.setdefault(str(record["image"]), str(caption if isinstance(caption, str) else caption[0]))
        except (json.JSONDecodeError, KeyError, TypeError, IndexError):
            raise ValueError(f'{file}, line {number}: not {{"image": …, "caption": …}}') from None
    return captions
