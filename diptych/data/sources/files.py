"""Opens the splits of sources that consist of picture files, and adapts them to tasks on texts or pictures alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from PIL import Image

from diptych.data.columns import kind_of
from diptych.data.picture_kinds import PassedOver
from diptych.data.pictures import LARGEST_PIXELS, open_picture
from diptych.data.record import AnyRecord, BadRecord, PairStatement, Picture, PlainText, R, Record, Referring
from diptych.data.shards.remote import say
from diptych.data.skips import list_errors
from diptych.data.sources.listing import SourceListing, tell_apart
from diptych.data.sources.lost import where_pictures_may_lie
from diptych.data.splits import draw_number, held_out_count, own_path
from diptych.data.written_lists import note_on_several
from diptych.schema import SPLITS, DataConfig, Split

TRAINING_SIDE = 1024
"""Training decodes large JPEGs at a reduced scale, as long as no side falls below this, which no crop resolves."""


@dataclass(frozen=True)
class FileSource(Generic[R]):
    """Serves records whose images are paths of picture files."""

    records: tuple[R, ...]
    skipped: tuple[BadRecord, ...] = ()
    least_side: int | None = None
    """If set, large JPEGs are decoded at a reduced scale, as long as no side falls below this."""
    largest_pixels: int = LARGEST_PIXELS
    """Larger pictures are refused."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """The files that look like pictures and are not read as such."""
    has_test: bool = False
    """Whether the layout itself names a test split, beside these training records."""

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> R:
        return self.records[index]

    def picture(self, record: R) -> Image.Image:
        """Returns the first picture of a record. Raises BadRecord."""
        return self.pictures(record)[0]

    def pictures(self, record: R) -> tuple[Image.Image, ...]:
        return tuple(open_picture(image, record.id, self.least_side, self.largest_pixels) for image in record.images)


# --------------------------------------------------------------------------- splits


def open_layout(read: Callable[[str, DataConfig], SourceListing], config: DataConfig, split: Split) -> FileSource[Any]:
    """Opens a split of a layout. `read` reads a path of the configuration. Raises ValueError."""
    return open_split(lambda path: read(path, config), config, split)


def open_split(read: Callable[[str], SourceListing], config: DataConfig, split: Split) -> FileSource[Any]:
    """Opens a split of a source. `read` reads a path of the configuration. Raises ValueError.

    `validation_path` and `test_path` decide where they are set, and otherwise the layout's own splits if it has any.
    Such splits tolerate no bad entry. Otherwise `config.held_out` of the pictures of `path` make up each of the two
    splits. A hash of each picture's identity decides which, so all records of a picture fall into one split, whatever
    the order of the file and the seed. A layout that has splits of its own, but none for validation, gets a drawn one.
    A drawn split leaves out pictures that cannot be read and lists them in
    `skipped`.
    """
    path = own_path(config, split)
    if path is not None:
        return _complete(_checked(read(path), path, config).of_split(split), path, split, config)
    path = _training_path(config)
    listing = _checked(read(path), path, config)
    if listing.splits and split not in ("train", *_undivided(listing)):
        return _complete(listing.of_split(split), path, split, config)
    records = _divided(listing, config, split)
    if split == "train":
        for note in records.notes:
            say(note)
        boxed = bool(records.records) and isinstance(records.records[0], Referring)  # boxes count unscaled pixels
        side = None if boxed else TRAINING_SIDE
        source: FileSource[Any] = FileSource(
            tuple(records.records),
            tuple(records.skipped),
            side,
            config.largest_pixels,
            records.passed_over.without_names,
            "test" in listing.splits.values(),
        )
    else:
        source = _readable(records.records, config.largest_pixels)
    if not source.records:
        raise ValueError(_why_empty(listing, source, config, split))
    return source


def read_splits(read: Callable[[str, DataConfig], SourceListing], config: DataConfig) -> dict[Split, SourceListing]:
    """Reads all splits of a layout, divided as by `open_split`, each with its bad entries. Raises ValueError."""
    listing = _checked(read(_training_path(config), config), _training_path(config), config)
    paths = {split: own_path(config, split) for split in SPLITS}
    listings = {
        split: _divided(listing, config, split)
        if path is None
        else _checked(read(path, config), path, config).of_split(split)
        for split, path in paths.items()
    }
    if any(paths.values()):
        tell_apart(listings.values())
    if not paths["validation"] and not listings["validation"].records:
        listings["train"].notes += [note] if (note := _note_on_connected(listings["train"].records, config)) else []
    return listings


def _training_path(config: DataConfig) -> str:
    if config.path is None:
        raise ValueError(f"data.source={config.source} needs data.path: where the pictures and their captions are")
    return config.path


def _checked(listing: SourceListing, path: str, config: DataConfig) -> SourceListing:
    """Returns the listing, with a note if none of its pictures is found, or if each caption seems to be several.

    Raises ValueError if most of its captions are paths or addresses.
    """
    if hint := where_pictures_may_lie(listing, path, config):
        listing.notes.append(hint)
    captions = [text for record in listing.records if isinstance(record, Record) for text in record.captions]
    wrong = [text for text in captions if kind_of(text) in ("path", "address") and " " not in text.strip()]
    if len(wrong) > len(captions) / 2:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(captions)} captions are no texts but paths or addresses, such as"
            f" {wrong[0][:60]!r}. Its columns or keys are not those that were read"
        )
    if several := note_on_several(captions):
        listing.notes.append(f"{path}: {several}")
    return listing


def _undivided(listing: SourceListing) -> tuple[Split, ...]:
    """Returns the splits that are drawn although the layout has splits of its own: validation, if it has none."""
    return () if "validation" in listing.splits.values() else ("validation",)


def _divided(listing: SourceListing, config: DataConfig, split: Split) -> SourceListing:
    """Returns the records of `config.path` that belong to a split."""
    if listing.splits and split not in ("train", *_undivided(listing)):
        return listing.of_split(split)
    pool = listing.of_split("train")
    held_out = _held_out(pool, config, _undivided(listing) if listing.splits else SPLITS)
    records = [record for record in pool.records if held_out.get(_identities(record)[0], "train") == split]
    if split == "train":
        return SourceListing(records, pool.skipped, notes=listing.notes, passed_over=pool.passed_over)
    return SourceListing(records, drawn=True)


def _complete(listing: SourceListing, path: str, split: Split, config: DataConfig) -> FileSource[Any]:
    """Opens a published evaluation split. Raises ValueError if any of its entries cannot be used."""
    if listing.skipped:
        raise ValueError(
            f"{len(listing.skipped)} records of the {split} split in {path} cannot be used;"
            f" evaluation tolerates none:\n{list_errors(listing.skipped)}"
        )
    if not listing.records:
        raise ValueError(f"the {split} split in {path} holds no records")
    return FileSource(
        tuple(listing.records), largest_pixels=config.largest_pixels, passed_over=listing.passed_over.without_names
    )


def _held_out(listing: SourceListing, config: DataConfig, drawn: Collection[Split]) -> dict[str, Split]:
    """Draws the pictures of the splits `drawn`, which training must not see. Returns the split of each."""
    group_of = _groups(listing.records)
    groups = sorted(set(group_of.values()), key=lambda group: (draw_number(group), group))
    count = held_out_count(len(groups), config.held_out)
    split_of: dict[str, Split] = {}
    if config.validation_path is None and "validation" in drawn:
        split_of |= dict.fromkeys(groups[:count], "validation")
    if config.test_path is None and "test" in drawn:
        split_of |= dict.fromkeys(groups[count : 2 * count], "test")
    return {picture: split_of[group] for picture, group in group_of.items() if group in split_of}


def _groups(records: Iterable[AnyRecord]) -> dict[str, str]:
    """Groups pictures that records show together, which must fall into one split. Returns each picture's group.

    This is a union-find structure: `parents` leads from each picture to the name of its group.
    """
    parents: dict[str, str] = {}

    def group_of(picture: str) -> str:
        while parents.setdefault(picture, picture) != picture:
            parents[picture] = parents[parents[picture]]
            picture = parents[picture]
        return picture

    for record in records:
        identities = _identities(record)
        first, last = sorted((group_of(identities[0]), group_of(identities[-1])))
        parents[last] = first  # a group is named after its smallest member, so the order of records does not matter
    return {picture: group_of(picture) for picture in parents}


def _identities(record: AnyRecord) -> Sequence[str]:
    """Returns what must not fall into two splits: the record's pictures, or its text if it has none."""
    return record.image_ids or record.texts


def _readable(records: Iterable[AnyRecord], largest_pixels: int) -> FileSource[Any]:
    """Opens every picture once, and leaves out the records whose pictures cannot be read."""
    kept: list[AnyRecord] = []
    skipped: list[BadRecord] = []
    sound: set[str] = set()
    for record in records:
        try:
            for image in set(record.images) - sound:
                open_picture(image, record.id, 64, largest_pixels)
                sound.add(image)
            kept.append(record)
        except BadRecord as error:
            skipped.append(error)
    return FileSource(tuple(kept), tuple(skipped), largest_pixels=largest_pixels)


def _note_on_connected(records: Sequence[AnyRecord], config: DataConfig) -> str:
    """Says that no pairs can be held out if all are connected through pictures that they share; else nothing."""
    pairs = len(records) > 1 and isinstance(records[0], PairStatement) and config.held_out > 0
    if not pairs or len(set(_groups(records).values())) > 1:
        return ""
    return (
        f"all {len(records)} pairs of {config.path} are connected through pictures that they share, which must fall"
        " into one split, so that none can be held out, whatever data.held_out is. Name other files by"
        " data.validation_path and data.test_path"
    )


def _why_empty(listing: SourceListing, source: FileSource[Any], config: DataConfig, split: Split) -> str:
    bad = [*listing.skipped, *source.skipped] if split != "train" else listing.skipped
    reasons = f"\n{len(bad)} could not be used:\n{list_errors(bad)}" if bad else ""
    if not listing.records:
        hint = where_pictures_may_lie(listing, _training_path(config), config)
        hint = f"\n{hint}" if hint else ""
        return f"{config.path} holds no usable record{listing.passed_over.after}{hint}{reasons}"
    if connected := _note_on_connected(listing.records, config):
        return f"the {split} split is empty: {connected}{reasons}"
    return (
        f"the {split} split is empty: of {len(listing.records)} records in {config.path},"
        f" data.held_out={config.held_out:g} leaves none for it. Give more pictures, another share, or"
        f" data.validation_path and data.test_path.{reasons}"
    )


# --------------------------------------------------------------------------- texts or pictures alone


def without_pictures(source: FileSource[Any]) -> FileSource[PlainText]:
    """Returns every text of a source as a record of its own. Raises ValueError if there is none."""
    texts = tuple(
        PlainText(record.id if len(record.texts) == 1 else f"{record.id}, text {number}", text)
        for record in source.records
        for number, text in enumerate(record.texts, start=1)
    )
    if not texts:
        raise ValueError("this task needs texts, and the data has none: choose a data.source that does")
    return FileSource(texts, source.skipped, passed_over=source.passed_over)


def without_texts(source: FileSource[Any]) -> FileSource[Picture]:
    """Returns every picture of a source once, without its texts. Raises ValueError if there is none."""
    pictures: dict[str, Picture] = {}
    for record in source.records:
        for image, image_id in zip(record.images, record.image_ids, strict=True):
            pictures.setdefault(image_id, Picture(record.id, image, image_id))
    if not pictures:
        raise ValueError("this task needs pictures, and the data has none: choose a data.source that does")
    return replace(source, records=tuple(pictures.values()))
