"""Tells which layout a file or folder has, by its content, and why it has not another one.

What each layout needs is a list of conditions in the order in which a reader would check them. A file has the layout
of which it meets all conditions. It is nearest to the layouts of which it meets the most before the first that fails.
"""

from __future__ import annotations

import json
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from diptych.data.columns import LOOKED_AT, NAMED_LINES, NoColumns, kinds_of, lines_with_names
from diptych.data.files import beginning_of, files_below, is_text, lines_of, split_paths
from diptych.data.picture_kinds import is_picture
from diptych.data.shards.index import LARGEST_TEXT
from diptych.data.shards.remote import is_remote
from diptych.data.shards.samples import TASK_KEYS
from diptych.data.sources.folder import CAPTIONS_FILE, METADATA_FILES, side_car_of, side_cars
from diptych.data.sources.snli_ve import PICTURE_KEYS
from diptych.data.sources.table import tell_columns
from diptych.data.tables import SEPARATORS, NoTable, Table, open_table
from diptych.data.tar import is_tar, tar_members
from diptych.printable import printable
from diptych.reading import ARCHIVE, disguise, parse_json
from diptych.schema import DataConfig

LARGEST = 1 << 30
"""Larger JSON files are not read only to tell what they are."""
MOST_TRIED, MOST_NAMED = 20, 5
"""Of the lists in a folder, this many are looked at and this many are named."""
LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Look:
    """Holds what is seen of a file or folder."""

    form: str
    """What it is, in words, or why it cannot be read."""
    kind: str
    """The kind of a table (`Table.kind`), or else: folder, tar, list or object (of JSON), text, unreadable, other."""
    keys: frozenset[str] = frozenset()
    """The keys of an object, the keys of the first entries of a list or of lines, the columns of a table, or what a
    folder holds."""
    inner: frozenset[str] = frozenset()
    """The keys of the first entries of the lists that an object holds."""
    why_no_columns: str = "it has no columns"
    """Why captioned pictures cannot be read from it as a table; empty if they can."""
    two_columns: bool = False
    """Whether it is a table of texts and addresses alone, separated by tabs."""
    folders: tuple[str, ...] = ()
    """The folders of a folder that hold pictures. They may be classes."""
    suffix: str = ""
    """What the name of a file ends in. Texts are told by it."""
    way: str = ""
    """What to do with a file that no layout fits."""


Condition = tuple[Callable[[Look], bool], str]


def _is(*kinds: str) -> Callable[[Look], bool]:
    return lambda look: look.kind in kinds


def _has(*keys: str) -> Callable[[Look], bool]:
    return lambda look: any(key in look.keys for key in keys)


def _inside(*keys: str) -> Callable[[Look], bool]:
    return lambda look: any(key in look.inner for key in keys)


def _is_parquet_folder(look: Look) -> bool:
    return look.kind == "folder" and ".parquet" in look.keys and "picture" not in look.keys


_A_TABLE = ("separated", "lines", "list", "object", "parquet")
_TASK_KEYS = ("caption", "captions", "hypothesis", "question", "statement", "phrase")
TEXTS: Mapping[str, Sequence[str]] = {"text": (".txt",), "lines": (".jsonl",), "tar": (".tar",)}
"""The suffixes by which files of texts are told."""
NEEDS: Mapping[str, Sequence[Condition]] = {
    "karpathy": [
        (_is("object"), "it is no JSON object"), (_has("images"), "it has no list `images`"),
        (_inside("sentences"), "its images have no `sentences`"),
    ],
    "coco_captions": [
        (_is("object"), "it is no JSON object"), (_has("annotations"), "it has no list `annotations`"),
        (_has("images"), "it has no list `images`"), (_inside("caption"), "its annotations have no `caption`"),
    ],
    "vqa": [
        (_is("object"), "it is no JSON object"),
        (_has("questions", "annotations"), "it has neither `questions` nor `annotations`"),
        (_has("data_subtype"), "it has no `data_subtype`"),
    ],
    "sbu": [
        (_is("object"), "it is no JSON object"), (_has("image_urls"), "it has no list `image_urls`"),
        (_has("captions"), "it has no list `captions`"),
    ],
    "visual_genome": [(_is("list"), "it is no JSON list"), (_has("regions", "qas"), "its entries have no `regions`")],
    "albef": [
        (_is("list"), "it is no JSON list"), (_has("image", "images"), "its entries have no `image`"),
        (_has("caption", "question", "sentence", "text"), "its entries have no `caption`"),
    ],
    "snli_ve": [
        (_is("lines"), "it does not hold JSON objects, one a line"),
        (_has("sentence2"), "its lines have no `sentence2`"), (_has(*PICTURE_KEYS), "its lines name no picture"),
    ],
    "nlvr2": [
        (_is("lines"), "it does not hold JSON objects, one a line"),
        (_has("identifier"), "its lines have no `identifier`"), (_has("sentence"), "its lines have no `sentence`"),
    ],
    "jsonl": [
        (_is("lines"), "it does not hold JSON objects, one a line"),
        (lambda look: _has("image", "images", "text")(look) or not look.why_no_columns, "its lines have no `image`"),
        (lambda look: _has(*_TASK_KEYS, "text")(look) or not look.why_no_columns, "its lines have no text"),
    ],
    "conceptual": [
        (_is("separated"), "it is no table"),
        (lambda look: look.two_columns, "it has not two columns, a text and an address, with a tab between"),
    ],
    "table": [
        (lambda look: look.kind in _A_TABLE or _is_parquet_folder(look), "it is no table"),
        (lambda look: not look.why_no_columns, ""),
    ],
    "datasets": [
        (_is("folder"), "it is no folder"),
        (_has("state.json", "dataset_dict.json"), "it has no state.json or dataset_dict.json of a saved data set"),
    ],
    "refcoco": [(_is("folder"), "it is no folder"), (_has("instances.json"), "it has no instances.json")],
    "shards": [
        (_is("tar", "folder"), "it is neither a tar file nor a folder"),
        (_has(".tar"), "it has no tar"), (_has("entries"), "its .json members are no entries of this library"),
    ],
    "img2dataset": [
        (_is("tar", "folder"), "it is neither a tar file nor a folder"),
        (_has(".tar", "JSON beside"), "it has no tar, and no JSON beside its pictures"),
    ],
    "folder": [
        (_is("folder"), "it is no folder"), (_has("picture"), "it holds no pictures"),
        (_has("side car", CAPTIONS_FILE, *METADATA_FILES), "no picture in it has a text beside it"),
    ],
    "texts": [
        (_is("text", "lines", "tar"), "it holds no lines of text"),
        (lambda look: look.kind != "lines" or "text" in look.keys, "its lines have no `text`"),
        (lambda look: look.suffix in TEXTS.get(look.kind, ("",)), "its name ends in another suffix"),
    ],
}  # fmt: skip
"""The conditions of each layout, the most particular layouts first."""
TITLES = {
    "karpathy": "Karpathy's splits", "coco_captions": "COCO's own captions", "vqa": "VQA v2", "sbu": "SBU",
    "visual_genome": "Visual Genome", "albef": "ALBEF's lists", "snli_ve": "SNLI-VE", "nlvr2": "NLVR2",
    "conceptual": "Conceptual Captions", "refcoco": "RefCOCO",
}  # fmt: skip
"""The data sets that have a layout of their own, in words."""
ALSO: Mapping[str, str] = {"shards": "img2dataset"}
"""Sources that read what another layout reads."""
SEPARATED_BY_TABS = f"a table separated by {SEPARATORS[chr(9)]}"
OF_SEVERAL_FILES = ("refcoco", "sbu")
"""Sources whose files belong together and are of several kinds."""
READS_FOLDERS_WITH: Mapping[str, Sequence[str]] = {
    "table": (".parquet",), "img2dataset": (".tar", ".json", "side car"), "shards": (".tar",),
    "texts": (".txt", ".jsonl", ".tar"),
}  # fmt: skip
"""What a folder holds that a source reads, although the folder may be of another layout."""
PICTURES = "pictures"
PICTURES_ALONE = (PICTURES, "scenes", "mix")
"""Sources about which nothing is said, since any folder will do, or none is needed."""


def look_at(path: str, config: DataConfig) -> Look | None:
    """Looks at a file or folder. Returns None if there is none."""
    place = Path(path)
    if place.is_dir():
        return _folder(place)
    return replace(_file(path, place, config), suffix=place.suffix.lower()) if place.is_file() else None


def _file(path: str, place: Path, config: DataConfig) -> Look:
    with place.open("rb") as stream:
        head = stream.read(1 << 12)
    if not head:
        return Look("an empty file", "other")
    if (kind := _kept_from_reading(head)) is not None:
        return Look(f"{path} is {kind}", "unreadable")
    if not is_text(head) and not head.startswith(b"PAR1") and not is_tar(head):
        return Look(f"no text (it begins with {head[:4]!r})", "other")
    if is_tar(head):
        return Look("a tar file", "tar", frozenset({".tar", *(["entries"] if _holds_entries(place) else [])}))
    try:
        return _table(open_table(place), config)
    except NoTable as error:
        return _other(place, head, str(error))
    except ValueError as error:
        return Look(str(error), "unreadable")


def _kept_from_reading(head: bytes) -> str | None:
    """Says what a file is by its beginning if it must be fetched or unpacked first. None for data and other files."""
    if head.startswith(ARCHIVE):
        return "a ZIP archive: unpack it first"
    return None if head.startswith(b"PAR1") or is_tar(head) else disguise(head)


def _holds_entries(shard: Path) -> bool:
    """Returns whether the first .json member of a tar file is an entry of this library, which may be of any task."""
    with suppress(tarfile.TarError, OSError, EOFError, ValueError), shard.open("rb") as stream:
        for member in islice(tar_members(shard), LOOKED_AT):
            if member.name.endswith(".json") and member.size <= LARGEST_TEXT:
                stream.seek(member.offset_data)
                entry = parse_json(stream.read(member.size))
                return isinstance(entry, Mapping) and any(key in entry for key in TASK_KEYS)
    return False


def _folder(place: Path) -> Look:
    files = list(files_below(place))
    texts, _ = side_cars(files)
    metadata = {file.with_suffix("") for file in files if file.suffix.lower() == ".json"}
    pictures = [file for file in files if is_picture(file)]
    holds = {file.name for file in files} | {file.suffix for file in files}
    holds |= {"picture"} if pictures else set()
    if any(side_car_of(file, texts) for file in pictures):
        holds |= {"side car"}
    elif any(file.with_suffix("") in metadata for file in pictures):
        holds |= {"JSON beside"}
    tar = next((file for file in files if file.suffix == ".tar"), None)
    holds |= {"entries"} if tar is not None and _holds_entries(place / tar) else set()
    return Look(
        "a folder" + (f" of {len(pictures)} pictures" if pictures else ""),
        "folder",
        frozenset(holds),
        why_no_columns="",
        folders=tuple(sorted({file.parts[0] for file in pictures if len(file.parts) > 1})),
    )


def _table(table: Table, config: DataConfig) -> Look:
    rows = table.first_rows()
    kinds = kinds_of(rows, table.columns)
    keys, why = frozenset(table.columns), ""
    try:
        tell_columns(table, rows, config)
    except NoColumns as error:
        why = str(error)
    inner: frozenset[str] = frozenset()
    if table.kind == "object":
        keys, inner = frozenset(json.loads(table.place.read_bytes())), keys
    two = sorted(kinds.values()) == ["address", "text"] and table.form.startswith(SEPARATED_BY_TABS)
    columns = f" and the columns {', '.join(table.columns)}" if table.kind == "separated" else ""
    return Look(table.form + columns, table.kind, keys, inner, why, two)


def _other(place: Path, head: bytes, why_no_table: str) -> Look:
    """Looks at a file that is no table: JSON of another form, text, or anything else."""
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and place.stat().st_size <= LARGEST:
        try:
            content = json.loads(place.read_bytes())
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, Mapping):
            lists = [value for value in content.values() if isinstance(value, list)]
            inner = {key for value in lists for part in value[:LOOKED_AT] if isinstance(part, Mapping) for key in part}
            named = ", ".join(f"`{key}`" for key in islice(content, 6))
            return Look(f"a JSON object with {named}", "object", frozenset(content), frozenset(inner))
        if isinstance(content, list):
            return Look("a JSON list without objects", "list")
        if place.suffix.lower() != ".txt":
            return Look(
                f"{why_no_table}. Write it as one JSON list, or each object on a line of its own (as `jq -c .` does)",
                "unreadable",
            )
    lines = [content.decode(errors="replace") for _, _, content in islice(lines_of(place), LOOKED_AT)]
    if not lines:
        return Look("a file of blank lines", "other")
    if naming := lines_with_names(lines):
        form = f"a text file of which {len(naming)} of the first {len(lines)} lines begin with the name of a picture"
        return Look(f"{form} ({printable(naming[0][:60])!r})", "other", way=NAMED_LINES)
    return Look(
        f"a text file without columns (between {', '.join(SEPARATORS.values())})",
        "text",
        way="If each of its lines is a text without a picture, give it a name in .txt, and read it with"
        " data.source=texts",
    )


# --------------------------------------------------------------------------- answers


def layouts_of(look: Look) -> list[str]:
    """Returns the layouts of which all conditions are met, the most particular first."""
    return [name for name, needs in NEEDS.items() if all(met(look) for met, _ in needs)]


def advice(config: DataConfig) -> str:
    """Says which layout the files of a configuration have, if one of them has not the layout `config.source`.

    Returns an empty text if there is nothing to say: the files have that layout, or are not there.
    """
    if config.source in PICTURES_ALONE:
        return ""
    listed = [path for path in (config.path, config.validation_path, config.test_path) if path is not None]
    for paths in map(split_paths, listed):
        if len(paths) > 1 and config.source in OF_SEVERAL_FILES:
            continue
        for path in paths:
            look = None if is_remote(path) else look_at(path, config)
            if look is not None and not _fits(config.source, look):
                return _answer(path, look, config)
    return ""


def _fits(source: str, look: Look) -> bool:
    """Returns whether a source can read what is seen. Some read folders that are of another layout above all."""
    if look.kind == "folder" and not look.keys.isdisjoint(READS_FOLDERS_WITH.get(source, ())):
        return True
    return ALSO.get(source, source) in layouts_of(look)


def recognised(config: DataConfig, bare: bool = False) -> str:
    """Returns the layout of `config.path`, or `pictures` if they may be `bare` of texts and it holds nothing else.

    Raises ValueError with the nearest layouts if it is unknown.
    """
    if config.path is None:
        raise ValueError("data.source=auto needs data.path: where the pictures and their captions are")
    path = next(iter(split_paths(config.path)), "")
    look = look_at(path, config)
    if look is None:
        raise ValueError(f"no file or folder {path}: data.source=auto looks at what data.path names")
    if fitting := layouts_of(look):
        return fitting[0]
    if bare and "picture" in look.keys:
        return PICTURES
    raise ValueError(_answer(path, look, config))


def _answer(path: str, look: Look, config: DataConfig) -> str:
    """Says what a file or folder is, and how it or the lists in it can be read."""
    if look.kind == "unreadable":
        return look.form
    if fitting := layouts_of(look):
        title = f", as of {TITLES[fitting[0]]}" if fitting[0] in TITLES else ""
        return f"{path} is {look.form}{title}. Read it with {_ways(fitting)}"
    lists = list(islice(_lists_in(Path(path), config), MOST_NAMED)) if look.kind == "folder" else []
    held = "".join(f"\n  it holds {file}, {form}: {ways} data.path={file}" for file, form, ways in lists)
    held = held or "".join(f"\n  it holds {file}, which is {kind}" for file, kind in _packed_in(path, look))
    if not held and "picture" in look.keys:
        return f"{path} is {look.form} without texts. {_without_texts(path, look)}"
    if look.way:
        return f"{path} is {look.form}, which no layout fits. {look.way}"
    return f"{path} is {look.form}, which no layout fits. Nearest are {_nearest(look)}{held}"


def _without_texts(path: str, look: Look) -> str:
    """Says what pictures without texts are good for, and how they get texts."""
    ways = (
        "To train on pictures and texts, give each a text of its name (17.txt beside 17.jpg), or list them in"
        " metadata.csv with the columns file_name and text. Without texts they can be searched and indexed, and"
        " data.source=pictures reads them for the vision stage"
    )
    if len(look.folders) < 2:
        return ways
    names = ", ".join(look.folders[:3]) + (", …" if len(look.folders) > 3 else "")
    return (
        f"If its {len(look.folders)} folders ({names}) are classes,"
        f" `diptych evaluate RUN --classes {shlex.quote(path)}` measures a model on them; their names are not read as"
        f" captions. {ways}"
    )


def _ways(layouts: Sequence[str]) -> str:
    return " or ".join(f"data.source={name}" for name in layouts[:2])


def _lists_in(folder: Path, config: DataConfig) -> Iterator[tuple[Path, str, str]]:
    """Yields the lists of captioned pictures in a folder, with what they are and how they are read."""
    files = list(files_below(folder))
    pictures = {file.with_suffix("") for file in files if is_picture(file)}
    lists = [file for file in files if file.suffix.lower() in LIST_SUFFIXES and file.with_suffix("") not in pictures]
    for file in lists[:MOST_TRIED]:
        look = look_at(str(folder / file), config)
        fitting = [name for name in layouts_of(look) if name != "texts"] if look is not None else []
        if look is not None and fitting:
            yield folder / file, look.form, _ways(fitting)


def _packed_in(path: str, look: Look) -> Iterator[tuple[Path, str]]:
    """Yields the first files in a folder that are archives, compressed or not fetched, with what they are."""
    files = islice(files_below(Path(path)), MOST_TRIED) if look.kind == "folder" else ()
    others = [Path(path) / file for file in files if not is_picture(file)]
    kinds = ((file, _kept_from_reading(head)) for file in others if (head := beginning_of(file)))
    yield from islice(((file, kind) for file, kind in kinds if kind is not None), MOST_NAMED)


def _nearest(look: Look) -> str:
    """Names the two layouts of which the most conditions are met, and why each does not fit."""
    failures: list[tuple[float, str, str]] = []
    for name, needs in NEEDS.items():
        met = [condition(look) for condition, _ in needs]
        first = met.index(False)
        reason = needs[first][1] or look.why_no_columns
        failures.append((first / len(needs), name, reason))
    # Of those that are as near, people's own lists come first, then the more particular layout.
    best = sorted(failures, key=lambda failure: (-failure[0], failure[1] not in ("table", "jsonl")))[:2]
    return " and ".join(f"{name} ({reason})" for _, name, reason in best)
