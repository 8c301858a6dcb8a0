"""Tells which columns of a table hold pictures and which hold captions, by looking at the values.

A column is never taken by its name or position alone: the name decides only among columns whose values fit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from diptych.data.picture_kinds import HEIF_SUFFIXES, SUFFIXES

Kind = Literal["embedded", "path", "address", "text", "conversation", "number", "empty", "other"]
"""What a value is: a picture itself, a picture's path, a web address, a text, a conversation about a picture, a number,
nothing, or anything else."""
IMAGE_NAMES = (
    "image", "file_name", "filename", "image_path", "img_path", "filepath", "file_path", "path", "image_name",
    "image_file", "img", "picture", "photo", "file", "jpg",
)  # fmt: skip
"""Names of columns of pictures. The first that is there decides among several columns of pictures."""
CAPTION_NAMES = (
    "captions", "caption", "caption_str", "text", "texts", "sentences", "sentence", "raw", "comment", "description",
    "descriptions", "alt_text", "alt", "prompt", "label_text", "title", "txt",
)  # fmt: skip
"""Names of columns of captions. The first that is there decides among several columns of texts."""
OTHER_NAMES = ("url", "urls", "image_url", "link", "address", "id", "image_id", "split", "comment_number", "index")
"""Further names that a header row has."""
OTHER_TASKS = ("question", "questions", "hypothesis", "statement", "phrase", "answer", "answers")
"""Names of columns that tell of other tasks than captions."""
TURNS = (("from", "value", ("gpt", "assistant", "model")), ("role", "content", ("assistant", "model")))
"""How the turns of a conversation are written, by LLaVA and by chat models: the key of the speaker, that of what is
said, and the speakers who describe the picture."""
SPLIT_COLUMN = "split"
MISSING = ("", "nan", "NaN", "<NA>", "None", "NULL", "null")
"""What stands in a cell without a value, as pandas, Python and databases write it."""
LOOKED_AT = 200
"""This many rows are looked at to tell what the columns hold."""
MOST = 0.9
"""A column holds what this share of its values is. The rest may be broken."""
MOST_NAMED = 0.1
"""If more than this share of the lines of a text begin with the name of a picture, it is a list of pictures."""
_NUMBERED = re.compile(r"(.*?)[ _.-]?(\d+)")
_END_OF_NAME = re.compile(r"[\s,;|=]|:(?=\s|$)")
"""What may follow a name at the beginning of a line."""
_COUNTED_PATH = re.compile(r"(.+)#\d+")

NAMED_LINES = (
    "Write the name and the caption of each picture on one line with a tab between, and read the list with"
    " data.source=table; or write each caption into a text beside its picture (17.txt beside 17.jpg), which"
    " data.source=folder reads"
)
"""What to do with a file whose lines begin with names of pictures, but are not divided into columns."""


@dataclass(frozen=True)
class Columns:
    """Names the columns that are read."""

    image: str
    captions: tuple[str, ...]
    suffix: str = ""
    """What is added to the values of the column of pictures, if they are names without a suffix."""


class NoColumns(ValueError):
    """Says why the columns of a table cannot be told, in words for the user."""


def is_address(text: str) -> bool:
    return text.lower().lstrip().startswith(("http://", "https://"))


def is_path(text: str) -> bool:
    """Returns whether a text is the path of a picture: its name has a picture's suffix, and it reads as no sentence.

    >>> is_path("photos/red fox.jpg"), is_path("a photo named fox.jpg in a folder"), is_path("1.jpg#0")
    (True, False, True)
    """
    name = PurePosixPath(uncounted(text.strip()).replace("\\", "/")).name
    return _looks_like_picture(name) and "\n" not in text and not is_address(text)


def lines_with_names(lines: Sequence[str]) -> list[str]:
    """Returns the lines that begin with the path of a picture, if they are too many for a file of texts.

    >>> lines_with_names(["1.jpg a fox", "a/2.jpg: an owl", "a fox, 1.jpg"]), lines_with_names(["a fox"])
    (['1.jpg a fox', 'a/2.jpg: an owl'], [])
    """
    named = [line for line in lines if is_path(_END_OF_NAME.split(line.strip(), maxsplit=1)[0].strip("\"'([<"))]
    return named if len(named) > MOST_NAMED * len(lines) else []


def uncounted(path: str) -> str:
    """Removes the number of the caption that Flickr30k's lists append to a picture's name.

    >>> uncounted("1000092795.jpg#0")
    '1000092795.jpg'
    """
    match = _COUNTED_PATH.fullmatch(path)
    return match[1] if match and _looks_like_picture(match[1]) else path


def _looks_like_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES | HEIF_SUFFIXES


def is_header_name(cell: str) -> bool:
    """Returns whether a cell is a usual name of a column, possibly numbered: `Image`, `caption_2`."""
    name = _plain(cell)
    match = _NUMBERED.fullmatch(name)
    return any(part in (*IMAGE_NAMES, *CAPTION_NAMES, *OTHER_NAMES) for part in (name, match[1] if match else name))


def kind_of(value: Any) -> Kind:
    """Tells what a value of a table is. A list is what its first entry is."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return kind_of(value[0]) if value else "empty"
    if isinstance(value, bytes | bytearray | memoryview):
        return "embedded"
    if isinstance(value, Mapping):  # a picture in a data set of Hugging Face
        if value.keys() <= {"bytes", "path"} and any(value.values()):
            return "embedded" if value.get("bytes") else "path"
        if any(speaker in value and said in value for speaker, said, _ in TURNS):
            return "conversation"
        return kind_of(value["raw"]) if "raw" in value else "other"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "empty"
    if not isinstance(value, str):
        return "number" if isinstance(value, int | float) else "other"
    return _kind_of_text(value.strip())


def _kind_of_text(text: str) -> Kind:
    if text in MISSING:
        return "empty"
    if is_address(text):
        return "address"
    if is_path(text):
        return "path"
    try:
        float(text)
    except ValueError:
        return "text" if any(map(str.isalpha, text)) else "other"
    return "number"


def kinds_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Kind]:
    """Tells what each column holds: what MOST of its values that are not empty are, or `other` if they are mixed."""
    kinds: dict[str, Kind] = {}
    for name in names:
        counts = Counter(kind_of(row.get(name)) for row in rows)
        del counts["empty"]
        kind, count = counts.most_common(1)[0] if counts else ("empty", 0)
        kinds[name] = kind if count >= MOST * sum(counts.values()) else "other"
    return kinds


# --------------------------------------------------------------------------- header rows


def first_row_is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether the first row of a table without types names the columns.

    It does if it holds neither paths nor addresses where the other rows do. In a table without either, it does if a
    cell is a usual name. Raises NoColumns if a cell of the first row could be either.
    """
    first, rest = rows[0], rows[1 : LOOKED_AT + 1]
    if any(kind_of(cell) in ("path", "address") for cell in first):
        return False
    if any(map(is_header_name, first)):
        return True
    width = len(first)
    named = [{str(place): cell for place, cell in enumerate(row)} for row in rest if len(row) == width]
    kinds = kinds_of(named, [str(place) for place in range(width)])
    return any(kind in ("path", "address") for kind in kinds.values()) and all(map(str.strip, first))


# --------------------------------------------------------------------------- columns


def choose_columns(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], image: str | None = None, captions: str | None = None
) -> Columns:
    """Chooses the columns of pictures and captions: those that the user named, otherwise by their values.

    Raises NoColumns if a named column does not hold what it should, or if the values leave a choice.
    """
    kinds = kinds_of(rows, names)
    if captions is None:
        _check_task(names, kinds)
    return Columns(_image_column(names, rows, kinds, image), _caption_columns(names, rows, kinds, captions))


def _image_column(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind], wanted: str | None
) -> str:
    if wanted is not None:
        name = _named(wanted, names, "data.image_column")
        if kinds[name] not in ("embedded", "path"):
            raise NoColumns(
                f"data.image_column={wanted}: the column holds no pictures and no paths of pictures, but"
                f" {_shown(name, rows, kinds)}"
            )
        return name
    for kind in ("embedded", "path"):
        fitting = [name for name in names if kinds[name] == kind]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            chosen = _by_name(fitting, IMAGE_NAMES)
            if chosen is None:
                raise NoColumns(
                    f"the columns {_list(fitting)} all hold pictures: choose one, as in data.image_column={fitting[0]}"
                )
            return chosen
    if addresses := [name for name in names if kinds[name] == "address"]:
        raise NoColumns(
            f"no column holds pictures or paths of pictures; `{addresses[0]}` holds web addresses. Fetch them first"
            " (img2dataset does so), and read its output with data.source=img2dataset"
        )
    raise NoColumns(f"no column holds pictures or paths of pictures: {_all_shown(names, rows, kinds)}")


def _caption_columns(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind], wanted: str | None
) -> tuple[str, ...]:
    if wanted is not None:
        parts = [wanted] if wanted in names else [part.strip() for part in wanted.split(",")]
        chosen = tuple(_named(part, names, "data.caption_column") for part in parts)
        for name in chosen:
            if kinds[name] in ("path", "address", "embedded", "empty"):
                raise NoColumns(
                    f"data.caption_column={name}: the column holds no texts, but {_shown(name, rows, kinds)}"
                )
        return chosen
    fitting = [name for name in names if kinds[name] == "text" and _plain(name) != SPLIT_COLUMN]
    fitting = fitting or [name for name in names if kinds[name] == "conversation"]
    if len(fitting) == 1:
        return (fitting[0],)
    if not fitting:
        usual = _by_name([name for name in names if kinds[name] in ("number", "other")], CAPTION_NAMES)
        way = f". If the captions are in `{usual}`, say so: data.caption_column={usual}" if usual else ""
        raise NoColumns(f"no column holds texts: {_all_shown(names, rows, kinds)}{way}")
    if numbered := _numbered(fitting):
        return numbered
    by_name = _by_name(fitting, CAPTION_NAMES)
    if by_name is None:
        raise NoColumns(
            f"the columns {_list(fitting)} all hold texts ({_all_shown(fitting, rows, kinds)}): choose one, as in"
            f" data.caption_column={fitting[0]}, or several with commas between"
        )
    return (by_name,)


def _check_task(names: Sequence[str], kinds: Mapping[str, Kind]) -> None:
    """Raises NoColumns if the names of the columns tell of another task than captions, and none of captions."""
    texts = [name for name in names if kinds[name] == "text"]
    others = [name for name in texts if _plain(name) in OTHER_TASKS]
    if others and _by_name(texts, CAPTION_NAMES) is None:
        raise NoColumns(
            f"the columns {_list(others)} are of another task than captions, and tables are read for captions alone."
            ' Write one object a line, such as {"image": …, "question": …, "answers": […]}, and read it with'
            f" data.source=jsonl. If they are captions, say so: data.caption_column={others[0]}"
        )


def _named(wanted: str, names: Sequence[str], setting: str) -> str:
    for name in names:
        if name == wanted or _plain(name) == _plain(wanted):
            return name
    raise NoColumns(f"{setting}={wanted}: there is no such column, only {_list(names)}")


def _by_name(fitting: Sequence[str], usual: Sequence[str]) -> str | None:
    plain = {_plain(name): name for name in reversed(fitting)}
    return next((plain[name] for name in usual if name in plain), None)


def _numbered(fitting: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns `caption_1`, `caption_2` and so on, if all columns of captions are numbered."""
    stems = {name: match[1] for name in fitting if (match := _NUMBERED.fullmatch(_plain(name)))}
    for usual in CAPTION_NAMES:
        columns = tuple(name for name in fitting if stems.get(name) == usual)
        if len(columns) > 1 and usual not in map(_plain, fitting):
            return columns
    return ()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _all_shown(names: Sequence[str], rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> str:
    return "; ".join(f"`{name}` holds {_shown(name, rows, kinds)}" for name in names)


_WORDS: Mapping[Kind, str] = {
    "embedded": "pictures", "path": "paths of pictures", "address": "web addresses", "text": "texts",
    "conversation": "conversations", "number": "numbers", "empty": "nothing", "other": "values of several kinds",
}  # fmt: skip


def _shown(name: str, rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> str:
    """Says what a column holds, with the first of its values."""
    value = next((row[name] for row in rows if kind_of(row.get(name)) not in ("empty", "embedded")), None)
    return _WORDS[kinds[name]] + (f" ({str(value)[:40]!r})" if value is not None else "")
