"""Reads a folder of pictures. The caption of each is the first line of the text file with its name that is not blank.

The text of `17.jpg` is `17.txt`, `17.jpg.txt` or, as trainers of diffusion models write it, `17.caption`. If all pairs
lie in folders that are called after splits, such as `train` and `val`, they belong to these.

A `captions.jsonl` in the folder takes the place of the text files. So do `metadata.csv`, `metadata.jsonl` and
`metadata.parquet`, as in Hugging Face's imagefolder: they may lie in any folder, name the pictures below it, and belong
to a split if the folder is called after one.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diptych.data.files import decoded, files_below
from diptych.data.picture_kinds import PassedOver, is_picture
from diptych.data.record import BadRecord
from diptych.data.sources.jsonl import read_jsonl
from diptych.data.sources.listing import SourceListing, tell_apart
from diptych.data.sources.table import add_table, splits_by_folder
from diptych.data.tables import open_table
from diptych.schema import DataConfig

CAPTIONS_FILE = "captions.jsonl"
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TEXT_SUFFIXES = (".txt", ".caption")
"""Suffixes of texts beside pictures. If a picture has several, the first is read."""
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
        listing = _captioned(folder, files, config)
    elif metadata := [file for file in files if file.name in METADATA_FILES]:
        listing = _with_metadata(folder, files, metadata, config)
    else:
        listing = _side_cars(folder, files, config.max_words, seen)
    listing.passed_over.join(seen)
    return listing


def _captioned(folder: Path, files: list[Path], config: DataConfig) -> SourceListing:
    """Reads `captions.jsonl`, and skips the pictures that it does not mention."""
    listing = read_jsonl(str(folder / CAPTIONS_FILE), replace(config, root=str(folder)))
    _skip_unnamed(listing, folder, files, CAPTIONS_FILE)
    return listing


def _with_metadata(folder: Path, files: list[Path], metadata: list[Path], config: DataConfig) -> SourceListing:
    """Reads imagefolder's metadata files, and skips the pictures that they do not mention."""
    listing = SourceListing()
    splits = splits_by_folder(metadata)
    for file in metadata:
        add_table(listing, open_table(folder / file), config, splits.get(file), folder / file.parent)
    if len(metadata) > 1:
        tell_apart([listing])
    _skip_unnamed(listing, folder, files, ", ".join(map(str, metadata)))
    return listing


def _skip_unnamed(listing: SourceListing, folder: Path, files: list[Path], lists: str) -> None:
    """Skips the pictures that no list mentions."""
    named = {os.path.normpath(image) for record in listing.records for image in record.images}
    named |= {os.path.normpath(error.detail) for error in listing.skipped if error.reason.endswith(" empty")}
    for file in files:
        if is_picture(file) and os.path.normpath(folder / file) not in named:
            listing.skipped.append(BadRecord(file.as_posix(), "picture without text", f"not in {lists}"))


def side_cars(files: Iterable[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Returns the texts that may stand beside pictures by their names without suffix, and those that others replace."""
    texts: dict[Path, Path] = {}
    replaced: list[Path] = []
    for suffix in TEXT_SUFFIXES:
        fitting = [file for file in files if file.suffix.lower() == suffix]
        replaced += [file for file in fitting if texts.setdefault(file.with_suffix(""), file) != file]
    return texts, replaced


def side_car_of(picture: Path, texts: Mapping[Path, Path]) -> Path | None:
    """Returns the text beside a picture, named after it with or without its suffix, or None."""
    return texts.get(picture.with_suffix("")) or texts.get(picture)


def _side_cars(folder: Path, files: list[Path], max_words: int, seen: PassedOver) -> SourceListing:
    """Reads the text file beside each picture. A text beside a picture that is passed over lacks none."""
    listing = SourceListing()
    texts, replaced = side_cars(files)
    composed = {_composed(stem): file for stem, file in texts.items()}
    text_of = {
        picture: side_car_of(picture, texts)
        or composed.get(_composed(picture.with_suffix("")))
        or composed.get(_composed(picture))
        for picture in filter(is_picture, files)
    }
    splits = splits_by_folder([picture for picture, text in text_of.items() if text])
    longer: list[str] = []
    pictures_of: defaultdict[Path, list[str]] = defaultdict(list)
    for picture, text in text_of.items():
        name, split = picture.as_posix(), splits.get(picture)
        if text is None:
            listing.skipped.append(BadRecord(name, "picture without text", f"no {picture.stem}.txt"))
            continue
        pictures_of[text].append(name)
        try:
            caption, more = _first_line(folder / text, name)
        except BadRecord as error:
            listing.skip(error, split)
            continue
        longer += [text.as_posix()] if more else []
        split_of = (lambda entry, name, of=split: of) if split else None
        listing.add({"image": name, "caption": caption}, name, folder, max_words, split_of=split_of)
    for stem, text in texts.items():
        if text not in pictures_of and str(stem) not in seen.stems:
            listing.skipped.append(BadRecord(text.as_posix(), "text without picture"))
    listing.notes += [f"{folder}: {note}" for note in _notes(longer, replaced, pictures_of)]
    return listing


def _notes(longer: Sequence[str], replaced: Sequence[Path], pictures_of: Mapping[Path, list[str]]) -> Iterator[str]:
    """Yields what could have been meant otherwise."""
    if longer:
        yield (
            f"only the first line is read of {len(longer)} texts with several, such as {longer[0]}. List"
            " several captions of an image in captions.jsonl or metadata.csv"
        )
    if replaced:
        yield (
            f"{len(replaced)} texts such as {replaced[0].as_posix()} are not read, because another stands beside the"
            " same picture"
        )
    if shared := [(text, names) for text, names in pictures_of.items() if len(names) > 1]:
        text, names = shared[0]
        yield (
            f"{len(shared)} texts stand beside several pictures of their name, and are read for each of them:"
            f" {text.as_posix()} for {' and '.join(names)}"
        )


def _composed(file: Path) -> str:
    """Returns a path with accents as parts of their letters, however they are on disk."""
    return unicodedata.normalize("NFC", file.as_posix())


def _first_line(file: Path, name: str) -> tuple[str, bool]:
    """Reads the first line of a text file that is not blank, and returns whether others follow.

    Raises BadRecord, which names the picture, if it is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            line = stream.readline(LONGEST_LINE)
            while line and not line.removeprefix(codecs.BOM_UTF8).strip() and stream.tell() < LONGEST_LINE:
                line = stream.readline(LONGEST_LINE)
            return decoded(line, name, "text"), bool(stream.read(LONGEST_LINE).strip())
    except OSError as error:
        raise BadRecord(name, "text unreadable", str(error)) from None
