"""Pictures with captions that pages offer at a click."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.data.files import files_below
from diptych.data.pictures import SUFFIXES
from diptych.data.sources.folder import CAPTIONS_FILE

FOLDER = "pictures"
"""Below a run: the pictures that its demonstration saved."""


@dataclass(frozen=True)
class Captioned:
    """A picture file, with the caption that its folder gives it."""

    picture: Path
    caption: str | None


@dataclass(frozen=True)
class Album:
    """The pictures of a folder, those with a caption first."""

    folder: Path | None
    pictures: tuple[Captioned, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(one.caption for one in self.pictures if one.caption))

    @classmethod
    def open(cls, folder: Path) -> Album:
        """Raises ValueError for no folder, and for one without pictures."""
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: name one that holds pictures")
        captions = _captions(folder)
        files = [file for file in files_below(folder) if file.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"no pictures in {folder}: looked for {', '.join(sorted(SUFFIXES))}")
        found = [Captioned(folder / file, captions.get(file.as_posix())) for file in files]
        return cls(folder, tuple(sorted(found, key=lambda one: one.caption is None)))


THING = re.compile(
    r"\b(?:an?|the|two|three) (?!picture|photo|image)((?:\w+ ){0,2}?\w+)"
    r"(?= (?:to|is|are|left|right|above|below|and|on|with|in|of|near|next|at)\b|[^\w ]|$)"
)


def thing_of(caption: str) -> str | None:
    """The first thing that a caption names, with its article; None where that cannot be told.

    >>> thing_of("a large whale to the left of a crab"), thing_of("a picture of a phone"), thing_of("sunset")
    ('a large whale', 'a phone', None)
    """
    found = THING.search(caption)
    return None if found is None else found[0]


def album_of(runs: Sequence[Path], images: Path | None) -> Album:
    """The pictures in `images`, else those that the first of the runs with some has; none where there are none."""
    if images is not None:
        return Album.open(images)
    found = next((run / FOLDER for run in runs if (run / FOLDER).is_dir()), None)
    return Album(None) if found is None else Album.open(found)


def _captions(folder: Path) -> dict[str, str]:
    """By the picture's name. Raises ValueError for a captions file that does not hold them."""
    file = folder / CAPTIONS_FILE
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            caption = record["caption"]
            found.setdefault(str(record["image"]), str(caption if isinstance(caption, str) else caption[0]))
        except (json.JSONDecodeError, KeyError, TypeError, IndexError):
            raise ValueError(f'{file}, line {number}: not {{"image": …, "caption": …}}') from None
    return found
