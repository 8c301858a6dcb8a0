"""Reads captioned pictures from tables whose columns may have any names: CSV, TSV, JSON lines and lists, Parquet.

Examples are `metadata.csv` and `metadata.jsonl` of Hugging Face's imagefolder, Flickr8k's `captions.txt`, Flickr30k's
`results.csv` and `results_20130124.token`, and a table of one's own. The column of pictures and the column of captions
are those that `data.image_column` and `data.caption_column` name. Otherwise they are told by their values
(diptych/data/columns.py), and a note says which they are. Rows that name the same picture become one record with
several captions. A column `split` divides the records, if it names more than one split.

Pictures that stand in the table itself are unpacked once, into a tar file in the cache folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.cache import cache_folder
from diptych.data.columns import (
    LOOKED_AT,
    SPLIT_COLUMN,
    TURNS,
    Columns,
    NoColumns,
    choose_columns,
    kind_of,
    kinds_of,
    uncounted,
)
from diptych.data.entries import from_entry
from diptych.data.files import existing, files_below
from diptych.data.picture_kinds import HEIF_SUFFIXES, SUFFIXES
from diptych.data.pictures import part_of, picture_bytes, suffix_of
from diptych.data.record import BadRecord
from diptych.data.shards.cache import locked
from diptych.data.shards.remote import say
from diptych.data.sources.listing import SourceListing
from diptych.data.sources.unread import note_on_short_answers, notes_on_unread
from diptych.data.tables import Table, open_table, parquet_table, saved_table
from diptych.data.tar import add_member, tar_members, whole_shard
from diptych.data.written_lists import written_list
from diptych.reading import read_stored
from diptych.schema import DataConfig, Split

LAYOUT = "data.source=table reads CSV, TSV, JSON lines, JSON lists and Parquet with any names of columns"
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train", "training": "train", "restval": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
"""Our names of the splits that lists, folders and data sets name."""
ROWS = "rows"
"""The member of a tar of unpacked pictures that lists the picture of each row."""
USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes that a table may leave out."""
LONGEST_NAME = 200
LIST_FOLDERS = {"annotation", "caption", "label", "list", "metadata", "split", "text"}
"""Words, without the s of the plural, in the names of folders that hold lists, whose pictures lie beside them."""
TRIED = 20
"""This many pictures are looked for to find the folder that they lie in."""


def read_table(path: str, config: DataConfig) -> SourceListing:
    """Reads all captioned pictures of a table, or of the Parquet files of a folder. Their names may begin with a split,
    or all may lie in folders that are called after one.

    Paths of pictures start from `config.root`, or else from the file's folder or a folder in it or beside it. Raises
    ValueError.
    """
    listing = SourceListing()
    if not Path(path).is_dir():
        add_table(listing, open_table(existing(path, LAYOUT)), config)
        return listing
    files = [file for file in files_below(Path(path)) if file.suffix == ".parquet"]
    if not files:
        raise ValueError(f"no Parquet file in {path}: {LAYOUT}")
    splits = {file: SPLIT_NAMES.get(file.name.split("-")[0].split(".")[0]) for file in files}
    divided = len(set(splits.values())) > 1 and None not in splits.values()
    splits = splits if divided else dict(splits_by_folder(files))
    for file in files:
        add_table(listing, parquet_table(Path(path) / file), config, splits.get(file))
    return listing


def splits_by_folder(files: Collection[Path]) -> Mapping[Path, Split]:
    """Returns the split of each file if all lie in folders that are called after splits, and after more than one.

    >>> splits_by_folder([Path("train/a.jpg"), Path("val/b.jpg")])
    {PosixPath('train/a.jpg'): 'train', PosixPath('val/b.jpg'): 'validation'}
    >>> splits_by_folder([Path("train/a.jpg"), Path("b.jpg")])
    {}
    """
    splits = {file: SPLIT_NAMES.get(file.parts[0].lower()) if len(file.parts) > 1 else None for file in files}
    named = {file: split for file, split in splits.items() if split is not None}
    return named if len(named) == len(splits) and len(set(named.values())) > 1 else {}


def add_table(
    listing: SourceListing, table: Table, config: DataConfig, split: Split | None = None, root: Path | None = None
) -> None:
    """Adds the records of a table, which belong to `split` if it is given. Raises ValueError."""
    sample = table.first_rows()
    try:
        columns = tell_columns(table, sample, config, root)
    except NoColumns as error:
        raise ValueError(f"{table.place} is {table.form}: {error}") from None
    split_column = _split_column(table) if split is None else None
    files = f" with {columns.suffix} added" if columns.suffix else ""
    kinds = kinds_of(sample, columns.captions)
    captions = [f"{'the answers of ' * (kinds[name] == 'conversation')}`{name}`" for name in columns.captions]
    notes = [f"pictures from `{columns.image}`{files}, captions from {', '.join(captions)}"]
    notes += [f"splits from `{split_column}`"] if split_column else []
    pictures = _Pictures(table, columns, config, sample, root)
    groups = _grouped(listing, table, columns, split_column, pictures)
    place = f", below {pictures.root}" if pictures.guessed else ""
    listing.notes.append(f"{table.place}: {table.form}: {', '.join(notes)}{place}")
    listing.notes += [f"{table.place}: {note}" for note in _notes_on_unread(sample, columns, groups.values())]
    for (_, group_split), group in groups.items():
        entry = {**group.picture, "captions": group.captions}
        named = split or group_split
        split_of = (lambda entry, name, of=named: of) if named else None
        listing.add(entry, group.name, pictures.root, config.max_words, from_entry, split_of)


def _notes_on_unread(sample: Sequence[Mapping[str, Any]], columns: Columns, groups: Iterable[_Group]) -> Iterator[str]:
    """Yields what stands beside the captions and belongs to another task."""
    if "conversation" in (kinds := kinds_of(sample, columns.captions)).values():
        answers = [caption for group in groups for caption in group.captions]
        if note := note_on_short_answers(next(name for name in kinds if kinds[name] == "conversation"), answers):
            yield note
    read = {columns.image, *columns.captions}
    yield from notes_on_unread([{name: row[name] for name in row if name not in read} for row in sample])


def tell_columns(
    table: Table, rows: Sequence[Mapping[str, Any]], config: DataConfig, root: Path | None = None
) -> Columns:
    """Chooses the columns of pictures and captions (`choose_columns`), by looking for files where no value is a path.

    Many tables name a picture by a number: `15970` stands for `images/15970.jpg`. Raises NoColumns.
    """
    names, captions = table.columns, config.caption_column
    try:
        return choose_columns(names, rows, config.image_column, captions)
    except NoColumns:
        asked = [config.image_column] if config.image_column in names else names
        if not {"path", "embedded"}.isdisjoint(kinds_of(rows, asked).values()):
            raise  # the pictures are named, and it is the captions that cannot be told
        starts = root or (Path(config.root) if config.root else None)
        found = [(name, suffix) for name in asked if (suffix := _missing_suffix(table, rows, name, starts))]
        if len(found) != 1:
            raise
    ((name, suffix),) = found
    completed = [{**row, name: f"{row.get(name)}{suffix}"} for row in rows]
    return replace(choose_columns(names, completed, name, captions), suffix=suffix)


def _missing_suffix(table: Table, rows: Sequence[Mapping[str, Any]], column: str, root: Path | None) -> str:
    """Returns the suffix with which the values of a column are names of files; empty if there is none."""
    values = [str(row[column]) for row in rows[:TRIED] if isinstance(row.get(column), str | int)]
    if any("\n" in value or not 0 < len(value) < LONGEST_NAME for value in values):
        return ""
    for suffix in USUAL_SUFFIXES if values else ():
        paths = [value + suffix for value in values]
        folder = root or folder_of_pictures(table.place, paths)
        if 2 * sum((folder / path).is_file() for path in paths) > len(paths):
            return suffix
    return ""


@dataclass
class _Group:
    """Holds the captions of one picture."""

    name: str
    picture: dict[str, str]
    captions: list[str] = field(default_factory=list)


def _grouped(
    listing: SourceListing, table: Table, columns: Columns, split_column: str | None, pictures: _Pictures
) -> dict[tuple[str, Split | None], _Group]:
    """Collects the captions of each picture in the order of its first row. Rows that cannot be used are skipped."""
    groups: dict[tuple[str, Split | None], _Group] = {}
    asked = [*columns.captions, *([split_column] if split_column else [])]
    asked += [] if pictures.unpacked else [columns.image]
    for number, (name, row) in enumerate(table.rows(asked)):
        try:
            if isinstance(row, BadRecord):
                raise row
            split = split_of_row(row.get(split_column), name) if split_column else None
            picture = pictures.entry(number, row, name)
            captions = [caption for column in columns.captions for caption in _captions(row.get(column), column, name)]
        except BadRecord as error:
            listing.skip(error)
            continue
        groups.setdefault((picture["image"], split), _Group(name, picture)).captions.extend(captions)
    return groups


def _captions(value: Any, column: str, name: str) -> list[str]:
    """Returns the captions of a value: a text, a list of texts or of objects with `raw`, or such a list as a text.

    The caption of a conversation is its only answer.
    """
    value = written_list(value) if isinstance(value, str) else value
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if kind_of(value) == "conversation":
        return [_only_answer(parts, name)]
    texts = [part["raw"] if isinstance(part, Mapping) and "raw" in part else part for part in parts]
    if not all(text is None or isinstance(text, str | int | float) for text in texts):
        raise BadRecord(name, "wrong type", f"`{column}` must be a text or a list of texts")
    return ["" if kind_of(text) == "empty" else str(text) for text in texts] or [""]


def _only_answer(turns: Sequence[Any], name: str) -> str:
    """Returns what is answered in a conversation. Raises BadRecord unless it is one text.

    With several questions, as in LLaVA's instructions, none of the answers describes the picture as a caption does.
    """
    answers = [
        turn.get(said)
        for turn in turns
        if isinstance(turn, Mapping)
        for speaker, said, speakers in TURNS
        if turn.get(speaker) in speakers
    ]
    if len(answers) != 1:
        raise BadRecord(name, "no caption", f"in a conversation with {len(answers)} answers none is the caption")
    (answer,) = answers
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # parts of a message, as chat models write them
        answer = " ".join(str(part["text"]) for part in answer if isinstance(part, Mapping) and "text" in part)
    if not isinstance(answer, str):
        raise BadRecord(name, "wrong type", "the answer of a conversation must be a text")
    return answer


def _split_column(table: Table) -> str | None:
    """Returns the column that names the split of each row, if there is one that names more than one known split."""
    for column in table.columns:
        if column.strip().lower() == SPLIT_COLUMN:
            rows = (row for _, row in table.rows([column]) if not isinstance(row, BadRecord))
            if name_splits(row[column] for row in rows if row.get(column) is not None):
                return column
    return None


def name_splits(values: Iterable[Any]) -> bool:
    """Returns whether values of a column or key `split` name more than one known split, and so divide the data."""
    return len({SPLIT_NAMES.get(value) for value in {str(value).strip().lower() for value in values}} - {None}) > 1


def split_of_row(value: Any, name: str) -> Split:
    """Returns the split that a row or an object names. Raises BadRecord."""
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise BadRecord(name, "split unknown", f"'{value}' is none of {', '.join(SPLIT_NAMES)}")
    return split


# --------------------------------------------------------------------------- where pictures are


class _Pictures:
    """Finds the pictures of a table: the paths in a column and where they start, or the tar of unpacked pictures."""

    def __init__(
        self, table: Table, columns: Columns, config: DataConfig, sample: Sequence[Mapping[str, Any]], root: Path | None
    ) -> None:
        self.column, self.suffix = columns.image, columns.suffix
        self.unpacked: list[tuple[str, str] | None] = []
        self.guessed = False
        if kinds_of(sample, [self.column])[self.column] == "embedded":
            self.root = Path()
            self.unpacked = _unpacked(table, self.column, config)
        elif root is not None or config.root is not None:
            self.root = root or Path(config.root or "")
        else:
            paths = [path for row in sample[:TRIED] if (path := _path(row.get(self.column), self.suffix))]
            self.root = folder_of_pictures(table.place, paths)
            self.guessed = self.root != table.place.parent

    def entry(self, number: int, row: Mapping[str, Any], name: str) -> dict[str, str]:
        """Returns the place of a row's picture, with its identity if the place is in the cache folder.

        Raises BadRecord if the row has none.
        """
        if self.unpacked and (unpacked := self.unpacked[number]):
            return {"image": unpacked[1], "image_id": unpacked[0]}
        value = row.get(self.column)
        if isinstance(value, list | tuple) and len(value) > 1:
            detail = (
                f"`{self.column}` names {len(value)} pictures, and a caption is of one. For a statement about two"
                " pictures write `images`, `statement` and `label`"
            )
            raise BadRecord(name, "several pictures", detail)
        if self.unpacked or not (path := _path(value, self.suffix)):
            raise BadRecord(name, "picture missing", f"`{self.column}` is empty")
        return {"image": path}


def folder_of_pictures(file: Path, paths: Sequence[str]) -> Path:
    """Returns the folder that the paths in a list start from: its own, one in it or beside it, or the one above it.

    Any picture in its own folder decides for that; the others must have most of the pictures. A folder beside it needs
    a sign that the list means it (`_may_mean`), and so does the one above it unless the paths name folders there. Of
    several, the one is meant after which the list is named. Raises ValueError if the choice is open, because equal
    names may be of different pictures.
    """
    own = file.parent
    found = folders_with(own, paths)
    if own in found:
        return own
    with_folders = all("/" in path.replace("\\", "/") for path in paths)
    fitting = [
        place
        for place in found
        if place.parent == own or _may_mean(file, place) or (with_folders and place == own.parent)
    ]
    here = [path for path in paths if (own / path.replace("\\", "/")).is_file()]
    named = [place for place in fitting if _is_named_after(file, place)]
    if not fitting:
        return own
    if here or (len(fitting) > 1 and not named):
        places = " and in ".join(map(str, [own, *fitting[:3]] if here else fitting[:3]))
        raise ValueError(
            f"pictures of the names in {file}, such as {(here or paths)[0]}, are in {places}: say by data.root which"
            " are meant"
        )
    return max(named or fitting, key=lambda place: len(place.name))


def _may_mean(file: Path, beside: Path) -> bool:
    """Returns whether a list may mean the pictures of a folder beside its own, where others may have the same names.

    It does if it is named after that folder, as `captions_val2017.json` is after `val2017`, or if its own folder is
    called after lists, as COCO's `annotations` is.
    """
    words = {word.removesuffix("s") for word in re.split("[^a-z]+", file.parent.name.lower())}
    return _is_named_after(file, beside) or not words.isdisjoint(LIST_FOLDERS)


def _is_named_after(file: Path, folder: Path) -> bool:
    return bool(re.search(rf"(?<![^\W_]){re.escape(folder.name.lower())}(?![^\W_])", file.stem.lower()))


def folders_with(folder: Path, paths: Sequence[str]) -> list[Path]:
    """Returns the folders in which most of the paths are files: `folder`, those in and beside it, and its parent."""
    candidates = [folder]
    for parent in (folder, folder.parent):
        try:
            candidates += sorted(place for place in parent.iterdir() if place.is_dir() and place not in candidates)
        except OSError:
            continue
    candidates += [folder.parent] if folder.parent not in candidates else []
    return [
        candidate
        for candidate in candidates
        if 2 * sum((candidate / path.replace("\\", "/")).is_file() for path in paths) > len(paths)
    ]


def _path(value: Any, suffix: str) -> str | None:
    """Returns the path that a value of a column of pictures is, without the number of a caption (`1.jpg#0`)."""
    if suffix:
        return f"{value}{suffix}" if isinstance(value, str | int) and value != "" else None
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("path")
    return uncounted(value.strip()) if isinstance(value, str) and value.strip() else None


def _unpacked(table: Table, column: str, config: DataConfig) -> list[tuple[str, str] | None]:
    """Returns the name and the place of each row's picture in a tar file of the cache folder, which is written once.

    Its members are named after a hash of their content, and equal pictures are one member. The member ROWS lists the
    picture of each row.
    """
    folder = (Path(config.cache) if config.cache else cache_folder()) / "pictures"
    key = hashlib.blake2b(f"{table.stamp}\n{column}".encode(), digest_size=16).hexdigest()
    file = folder / f"{key}.tar"
    try:
        with locked(folder / f"{key}.lock"):
            if not file.is_file():
                say(f"the pictures of {table.place} are unpacked into {file}")
                _unpack(table, column, file)
    except OSError as error:
        raise ValueError(
            f"the pictures of {table.place} are unpacked into {folder}, which failed ({error.strerror or error}): name"
            " another folder by data.cache or DIPTYCH_CACHE"
        ) from None
    members = {member.name: part_of(file.resolve(), member.offset_data, member.size) for member in tar_members(file)}
    listed = picture_bytes(members[ROWS]).decode().split("\n")
    return [(name, members[name]) if name else None for name in listed]


def _unpack(table: Table, column: str, file: Path) -> None:
    """Writes the pictures of a column into a tar file."""
    with whole_shard(file) as archive:
        rows: list[str] = []
        names: set[str] = set()
        for content in _embedded(table, column):
            rows.append(_content_name(content) if content else "")
            if content and rows[-1] not in names:
                add_member(archive, rows[-1], content)
                names.add(rows[-1])
        add_member(archive, ROWS, "\n".join(rows).encode())


def _embedded(table: Table, column: str) -> Iterator[bytes | None]:
    for name, row in table.rows([column]):
        value = None if isinstance(row, BadRecord) else row.get(column)
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise ValueError(
                    f"{name}: `{column}` holds {len(value)} pictures, and nothing says which of them the text"
                    " describes. Name another column with data.image_column, or keep one picture in each row"
                )
            value = value[0] if value else None
        value = value.get("bytes") if isinstance(value, Mapping) else value
        yield bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


def _content_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + _suffix(content)


def _suffix(content: bytes) -> str:
    try:
        suffix = suffix_of(content)
    except (OSError, ValueError):
        return ""
    return suffix if suffix in SUFFIXES | HEIF_SUFFIXES else ""


# --------------------------------------------------------------------------- data sets of Hugging Face

DATASETS_LAYOUT = (
    "data.source=datasets reads a folder that `save_to_disk` wrote, or the name of a data set of Hugging Face, as in"
    " nlphuji/flickr30k or NAME:CONFIGURATION"
)


def read_datasets(path: str, config: DataConfig) -> SourceListing:
    """Reads a data set of Hugging Face with its splits: a folder that was saved to disk, or one by its name.

    Saved folders need pyarrow, names need `datasets`, which fetches what its cache does not hold. Raises ValueError.
    """
    folder, listing = Path(path), SourceListing()
    if (folder / "dataset_dict.json").is_file():
        names = read_stored(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{folder / 'dataset_dict.json'} is damaged (it does not list the splits)")
        tables = {name: saved_table(folder / name) for name in names}
    elif (folder / "state.json").is_file():
        tables = {"train": saved_table(folder)}
    elif folder.exists() or folder.is_absolute() or path.startswith("."):
        raise ValueError(f"no saved data set {path}: {DATASETS_LAYOUT}")
    else:
        tables = _named_tables(path)
    splits = {name: SPLIT_NAMES.get(name.lower()) for name in tables}
    divided = len(set(splits.values()) - {None}) > 1
    for name, table in tables.items():
        if divided and splits[name] is None:
            listing.notes.append(
                f"{path}: the split {name} is not read, because it is none of {', '.join(SPLIT_NAMES)}"
            )
            continue
        add_table(listing, table, config, splits[name] if divided else None)
    return listing


def _named_tables(path: str) -> dict[str, Table]:
    """Opens the splits of a data set by its name, possibly with a configuration behind a colon. Raises ValueError."""
    try:
        import datasets
    except ImportError:
        message = f"no folder {path}. To read a data set by its name, install datasets: pip install 'diptych[datasets]'"
        raise ValueError(f"{message}. {DATASETS_LAYOUT}") from None
    from diptych.data.tables import arrow_table

    name, _, configuration = path.partition(":")
    try:
        splits = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever the network and the data set's files may do
        raise ValueError(f"the data set {path} cannot be opened: {error}") from None

    def table(split: str) -> Table:
        data = splits[split]

        def batches(asked: Sequence[str]) -> Iterator[Any]:
            for part in data.select_columns(list(asked)).with_format("arrow").iter(LOOKED_AT):
                yield from part.to_batches()

        return arrow_table(
            Path(f"{path}/{split}"), "a data set of Hugging Face", data.column_names, batches, data._fingerprint
        )

    return {split: table(split) for split in splits}
