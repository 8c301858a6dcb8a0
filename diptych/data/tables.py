"""Reads the rows of tables: text separated by tabs, commas, semicolons or bars, JSON lines, JSON lists and Parquet.

A row is a mapping from columns to values and has a name, FILE:LINE or FILE[INDEX]. What a file is, is told by its
content and never by its suffix.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from diptych.data.arrow_streams import is_compressed
from diptych.data.columns import LOOKED_AT, first_row_is_header, is_header_name, is_path, kind_of
from diptych.data.files import check_lines, decoded, json_lines, line_content
from diptych.data.parquet_pages import largest_page
from diptych.data.record import BadRecord
from diptych.reading import parse_json

Row = tuple[str, Mapping[str, Any] | BadRecord]
"""The name of a row and its values, or the reason why it cannot be read."""
SEPARATORS: Mapping[str, str] = {"\t": "tabs", "|": "bars", ";": "semicolons", ",": "commas"}
"""What may separate columns. If several fit equally well, the first is taken, because texts hold the later ones."""
LEAST_SHARE = 0.5
"""At least this share of the first lines has as many columns as most of them, or else the file is no table."""
MOST_LINES = 50
"""A text in quotation marks spans at most this many lines. A mark that is not closed until then is a mistake."""
MOST_OPEN_MARKS = 100
"""After so many marks that are not closed, no text of the file is looked for on several lines."""
MOST_COLUMNS = 4_096
"""Columns of a table. Looking at each takes time."""
_SAID = re.compile(r'"?sep=(.)"?')
"""A first line that tells Excel what separates the columns."""
PARQUET = "Parquet"
BATCH = 100
"""Rows of a Parquet file that are read at once. They may hold pictures."""
HEAD = 64
"""Bytes of a picture that are looked at to tell what a column holds."""
LONGEST_LOOKED_AT = 4_096
"""Letters of a text, and entries of a list or an object, that are looked at to tell it."""
TOGETHER = 1 << 28
"""Bytes that rows may have to be converted together. A column may hold one value of a gigabyte for all of them."""


@dataclass(frozen=True)
class Table:
    """Holds what is known of a table. Its rows are read anew each time."""

    place: Path
    kind: Literal["separated", "lines", "list", "object", "parquet", "arrow"]
    """Text with separated columns, JSON lines, a JSON list, a JSON object, Parquet, or other data of Arrow."""
    form: str
    """What the file is, in words: `a table separated by tabs, with a header row`."""
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    """Yields the rows with the values of the columns that are asked for, and possibly others."""
    stamp: str = ""
    """Identifies the state of a table that may hold pictures."""

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yields the rows, with the values of some columns or of all."""
        return self.read(self.columns if columns is None else columns)

    def first_rows(self) -> list[Mapping[str, Any]]:
        """Returns the first rows that can be read, by which the columns are judged. Of pictures, only the beginning.

        Raises NoTable for too many columns, and ValueError if there are rows, and none can be read.
        """
        if len(self.columns) > MOST_COLUMNS:
            raise NoTable(f"{self.place} is {self.form}, of more than {MOST_COLUMNS:,} columns")
        rows: list[Mapping[str, Any]] = []
        broken: list[BadRecord] = []
        for _, row in islice(self.rows(), LOOKED_AT):  # cut as they come: whole pictures of all would fill the memory
            if isinstance(row, BadRecord):
                broken.append(row)
            else:
                rows.append({name: _begun(row[name]) for name in row})
        if broken and not rows:
            raise ValueError(f"no row of {self.place} can be read; the first: {broken[0]}")
        return rows


def _begun(value: Any) -> Any:
    """Cuts what may be large. What a column holds is told by its beginning."""
    if isinstance(value, bytes):
        return value[:HEAD]
    if isinstance(value, str | list):
        return value[:LONGEST_LOOKED_AT]
    if isinstance(value, Mapping) and len(value) > LONGEST_LOOKED_AT:
        return {}
    if isinstance(value, Mapping) and isinstance(content := value.get("bytes"), bytes):
        return {**value, "bytes": content[:HEAD]}
    return value


class NoTable(ValueError):
    """Says why a file is no table."""


def open_table(file: Path) -> Table:
    """Opens a table. Raises NoTable if the file is none, and other ValueErrors if it can be none because it is broken.

    Parquet needs pyarrow; without it the error says how to install it.
    """
    with file.open("rb") as stream:
        head = stream.read(1 << 12)
    if not head.strip():
        raise NoTable(f"{file} is empty")
    if head.startswith(b"PAR1"):
        return parquet_table(file)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{" and _is_lines_of_json(file):
        return _json_lines_table(file)
    if start in (b"[", b"{"):
        return _json_table(file)
    return _separated_table(file)


# --------------------------------------------------------------------------- JSON


def _is_lines_of_json(file: Path) -> bool:
    """Returns whether a file that begins with a brace holds an object in each line, instead of one over many lines."""
    entries = [entry for _, entry in islice(json_lines(file), 3)]
    objects = [entry for entry in entries if isinstance(entry, Mapping)]
    # The object of a file of one line is taken for a row, unless it holds others, lists alone, or paths for its keys.
    if len(entries) > 1 or not objects:
        return bool(objects)
    values = list(objects[0].values())
    columns = any(map(_holds_objects, values)) or all(isinstance(value, list) for value in values)
    return not columns and not any(map(is_path, objects[0]))


def _holds_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(part, Mapping) for part in value))


def _json_lines_table(file: Path) -> Table:
    def read(columns: Sequence[str]) -> Iterator[Row]:
        for name, entry in json_lines(file):
            yield name, _object(entry, name)

    return Table(file, "lines", "JSON lines", _keys(row for _, row in islice(read(()), LOOKED_AT)), read)


def _json_table(file: Path) -> Table:
    """Opens a JSON list of objects, an object with one such list, or one that maps paths to captions."""
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise NoTable(f"{file} is not JSON: {error}") from None
    kind: Literal["list", "object"] = "list" if isinstance(content, list) else "object"
    form, label, entries = "a JSON list", "", content
    if isinstance(content, Mapping):
        lists = {key: value for key, value in content.items() if isinstance(value, list) and _holds_objects(value)}
        if len(lists) == 1:
            ((label, entries),) = lists.items()
            form = f"a JSON object with the list `{label}`"
        elif not lists and all(isinstance(value, str | list) for value in content.values()):
            form, entries = "a JSON object of captions", [{"key": key, "value": content[key]} for key in content]
        elif not lists and all(isinstance(value, Mapping) for value in content.values()):
            form, entries = "a JSON object of objects", [{"key": key, **content[key]} for key in content]
    if not isinstance(entries, list) or not any(isinstance(entry, Mapping) for entry in entries):
        raise NoTable(f"{file} holds no list of objects")

    def read(columns: Sequence[str]) -> Iterator[Row]:
        for index, entry in enumerate(entries):
            name = f"{file}{f', {label}' * bool(label)}[{index}]"
            yield name, _object(entry, name)

    return Table(file, kind, form, _keys(row for _, row in islice(read(()), LOOKED_AT)), read)


def _object(entry: Any, name: str) -> Mapping[str, Any] | BadRecord:
    return entry if isinstance(entry, Mapping | BadRecord) else BadRecord(name, "not an object")


def _keys(rows: Iterator[Mapping[str, Any] | BadRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows if not isinstance(row, BadRecord) for key in row))


# --------------------------------------------------------------------------- separated text


def _separated_table(file: Path) -> Table:
    check_lines(file)
    separator, begin = _said_separator(file) or (_separator(file), 0)
    named = [(name, row) for name, row in islice(_cells(file, separator, begin), LOOKED_AT) if isinstance(row, list)]
    comments = _comments([row for _, row in named])
    begin = int(named[comments][0].rpartition(":")[2]) - 1 if comments else begin
    rows = [row for _, row in named[comments:]]
    if not rows:
        raise NoTable(f"{file} has no rows")
    width = len(rows[0]) if _names_fewer(rows) else _usual_width(rows)
    whole = [row for row in rows if len(row) == width]
    header = first_row_is_header(whole) if rows[0] == whole[0] else False
    columns = _column_names(whole[0]) if header else tuple(f"column {number}" for number in range(1, width + 1))

    def read(asked: Sequence[str]) -> Iterator[Row]:
        for name, row in islice(_cells(file, separator, begin), int(header), None):
            if isinstance(row, BadRecord):
                yield name, row
            elif len(row) != width:
                hint = ": a text that holds commas needs quotation marks" if separator == "," else ""
                yield name, BadRecord(name, "row wrong", f"{len(row)} columns instead of {width}{hint}")
            else:
                yield name, dict(zip(columns, row, strict=True))

    form = f"a table separated by {SEPARATORS[separator]}, with{'' if header else 'out'} a header row"
    form += f" (the comments before its line {begin + 1} are not read)" if comments else ""
    return Table(file, "separated", form, columns, read)


def _said_separator(file: Path) -> tuple[str, int] | None:
    """Returns what separates the columns if the first line says so, as in `sep=;` for Excel, and the lines before them.

    Raises NoTable if nothing is separated by it.
    """
    first = next((text for _, text in _lines(file)), "")
    match = _SAID.fullmatch(first) if isinstance(first, str) else None
    if match is None:
        return None
    if match[1] not in SEPARATORS:
        raise NoTable(
            f"the columns of {file} are separated by {match[1]!r}, as its first line says, and only"
            f" {', '.join(SEPARATORS.values())} are read"
        )
    return match[1], 1


def _comments(rows: Sequence[Sequence[str]]) -> int:
    """Returns how many first rows are comments: they begin with #, and are neither the names of the columns nor rows.

    In `# image,caption` before rows without names it is the names that begin with #.
    """
    marked = [
        row[0].lstrip().startswith("#") and not any(kind_of(cell) in ("path", "address") for cell in row)
        for row in rows
    ]
    count = marked.index(False) if False in marked else 0
    if count == 0:
        return 0
    rest = rows[count:]
    whole = [row for row in rest if len(row) == _usual_width(rest)]
    return count if len(rows[count - 1]) != len(whole[0]) or first_row_is_header(whole) else count - 1


def _separator(file: Path) -> str:
    """Returns what separates the columns of a file. Raises NoTable."""
    shares: dict[str, float] = {}
    for separator in SEPARATORS:
        rows = [row for _, row in islice(_cells(file, separator), LOOKED_AT) if not isinstance(row, BadRecord)]
        width = _usual_width(rows)
        shares[separator] = sum(len(row) == width for row in rows) / len(rows) if rows and width > 1 else 0.0
    best = max(shares, key=lambda separator: shares[separator])
    if shares[best] < LEAST_SHARE:
        raise NoTable(f"{file} is no table: its lines are not divided into columns by {', '.join(SEPARATORS.values())}")
    return best


def _usual_width(rows: Sequence[Sequence[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _names_fewer(rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether the first row names fewer columns than most rows have, because texts hold separators.

    Rows that begin with a number may have one more, as R writes them.
    """
    usual = next((row for row in rows if len(row) == _usual_width(rows)), ())
    return 1 < len(rows[0]) < len(usual) and all(map(is_header_name, rows[0])) and kind_of(usual[0]) != "number"


def _column_names(cells: Sequence[str]) -> tuple[str, ...]:
    """Returns the cells of a header row as different names."""
    names: list[str] = []
    for number, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column {number}"
        names.append(name if name not in names else f"{name} {number}")
    return tuple(names)


def _cells(file: Path, separator: str, begin: int = 0) -> Iterator[tuple[str, list[str] | BadRecord]]:
    """Yields the name and the cells of each row that is not blank, behind the first `begin` lines.

    A text in quotation marks may span several lines, except between bars. If a mark is not closed, the lines behind it
    are read as rows of their own, and its line is named; between tabs, where texts are often written without enclosing
    marks, the mark belongs to the text. A row of more than MOST_COLUMNS is named, too.
    """
    lines = islice(_lines(file), begin, None)
    again: deque[tuple[str, str | BadRecord]] = deque()
    open_marks = 0

    def following() -> tuple[str, str | BadRecord] | None:
        return again.popleft() if again else next(lines, None)

    while (line := following()) is not None:
        name, text = line
        if isinstance(text, BadRecord):
            yield name, text
            continue
        cells = _split(text, separator)
        taken: list[tuple[str, str | BadRecord]] = []
        most = MOST_LINES if open_marks < MOST_OPEN_MARKS else 0
        while cells is None and len(taken) < most and (more := following()) is not None:
            taken.append(more)
            if isinstance(more[1], BadRecord):
                break
            text += "\n" + more[1]
            cells = _split(text, separator)
        if cells is None:
            again.extendleft(reversed(taken))
            open_marks += 1
            cells = text.partition("\n")[0].split("\t") if separator == "\t" else None
        if cells is None:
            yield name, BadRecord(name, "row wrong", "a quotation mark is not closed")
        elif len(cells) > MOST_COLUMNS:
            yield name, BadRecord(name, "row wrong", f"{len(cells):,} columns; at most {MOST_COLUMNS:,} are read")
        elif any(map(str.strip, cells)):
            yield name, cells


def _lines(file: Path) -> Iterator[tuple[str, str | BadRecord]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            name = f"{file}:{number}"
            try:
                yield name, decoded(line_content(line, number, b"\r\n"), name)
            except BadRecord as error:
                yield name, error


def _split(text: str, separator: str) -> list[str] | None:
    """Splits a row into cells. Returns None if a quotation mark is not closed within the text.

    Marks within a text in marks are doubled, or follow a backslash, as some programs write them.
    """
    if separator == "|":
        return [cell.strip() for cell in text.split(separator)]
    if separator == "\t":
        return _split_at_tabs(text)
    unclosed = "\n" in text
    for written in dict.fromkeys((text, text.replace('\\"', '""'))):
        try:
            return next(csv.reader([written], delimiter=separator, strict=True, skipinitialspace=True), [])
        except csv.Error as error:
            unclosed = unclosed or "unexpected end" in str(error)
    if unclosed:
        return None
    try:
        return next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:  # a cell of more than 128 kB
        return text.split(separator)


_ENCLOSED = re.compile(r'"((?:\\"|""|\\(?!")|[^"\\\n])*|(?:\\"|""|\\(?!")|[^"\\\t])*)"(?=\t|\Z)')
"""A cell in quotation marks between tabs. If it spans lines it holds no tabs, for then they would be rows."""
_OPEN = re.compile(r'"(?:\\"|""|\\(?!")|[^"\\\t])*\Z')
"""A cell that begins with a quotation mark which may be closed on another line."""


def _split_at_tabs(text: str) -> list[str] | None:
    """Splits a row at tabs, except within marks that enclose a whole cell, as pandas writes them.

    Other marks belong to the text, as in `a 5" screen`. Returns None if a mark may be closed on another line.

    >>> _split_at_tabs('1.jpg\\t"a 5"" screen"\\t"old" and new'), _split_at_tabs('1.jpg\\t"a screen')
    (['1.jpg', 'a 5" screen', '"old" and new'], None)
    """
    cells: list[str] = []
    place = 0
    while place <= len(text):
        if enclosed := _ENCLOSED.match(text, place):
            cells.append(re.sub(r'\\"|""', '"', enclosed[1]))
            place = enclosed.end() + 1
            continue
        if _OPEN.match(text, place):
            return None
        end = text.find("\t", place)
        cells.append(text[place : end if end >= 0 else None])
        place += len(cells[-1]) + 1
        if "\n" in cells[-1]:
            return None
    return cells


# --------------------------------------------------------------------------- Parquet and Arrow


def parquet_table(file: Path) -> Table:
    """Opens a Parquet file. Raises ValueError if pyarrow is missing or the file is broken."""
    arrow = import_pyarrow(f"{file} is Parquet")
    parquet = arrow.parquet
    try:
        reader = parquet.ParquetFile(file)
        columns = tuple(reader.schema_arrow.names)
        nested = {field.name for field in reader.schema_arrow if arrow.types.is_nested(field.type)}
        leaves = [reader.schema.column(number) for number in range(len(reader.schema))]
        lists = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level > 0]
    except Exception as error:  # pyarrow's errors derive from many classes
        raise ValueError(f"{file} is broken Parquet: {error}") from None
    # No value is larger than the page that it stands in, or that holds it once for many rows.
    most = max(1, min(BATCH, TOGETHER // 2 // max(1, largest_page(file, reader.metadata))))

    def batches(asked: Sequence[str]) -> Iterator[Any]:
        # A row of a list may hold a value many times, which is kept once and not copied. Arrow keeps such values until
        # the end of what it is asked for, hence one row group after another.
        at_once = 1 if nested.intersection(asked) else most
        opened = parquet.ParquetFile(file, read_dictionary=lists)
        for group in range(opened.num_row_groups):
            yield from opened.iter_batches(at_once, [group], list(asked))

    state = file.stat()
    return arrow_table(file, PARQUET, columns, batches, f"{file.resolve()}\n{state.st_size}\n{state.st_mtime_ns}")


def arrow_table(
    place: Path, form: str, columns: Sequence[str], batches: Callable[[Sequence[str]], Iterator[Any]], stamp: str
) -> Table:
    """Returns a table of Arrow's record batches. `batches` yields them with the columns that are asked for.

    Reading it raises ValueError for whatever Arrow does on broken data.
    """

    def read(asked: Sequence[str]) -> Iterator[Row]:
        rows = _unbroken(place, (row for batch in batches(asked) for row in _rows(batch)))
        for number, row in enumerate(rows):
            name = f"{place}[{number}]"
            yield name, BadRecord(name, "row wrong", row) if isinstance(row, str) else row

    kind: Literal["parquet", "arrow"] = "parquet" if form == PARQUET else "arrow"
    return Table(place, kind, form, tuple(columns), read, stamp)


def _rows(batch: Any) -> Iterator[Mapping[str, Any] | str]:
    """Yields the rows of a batch, and the reason for one that cannot be read.

    If all of them hold more than is good to have in memory, they are converted one at a time.
    """
    if sum(map(_converted_bytes, batch.columns)) < TOGETHER:
        with suppress(UnicodeDecodeError):
            yield from batch.to_pylist()
            return
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            large = sum(map(_converted_bytes, row.columns)) > TOGETHER
            yield f"it holds more than {TOGETHER:,} bytes" if large else row.to_pylist()[0]
        except UnicodeDecodeError:
            yield "a text is not UTF-8"


def _converted_bytes(array: Any) -> int:
    """Returns the bytes of an Arrow array's values in Python, where a value that is held once stands for each place."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        if types.is_primitive(kind.value_type):
            return int(array.nbytes)
        lengths = compute.binary_length(array.dictionary).cast("int64")
        return int(compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(_converted_bytes, array.flatten()))
    if types.is_map(kind):
        return _converted_bytes(array.keys) + _converted_bytes(array.items)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _converted_bytes(array.flatten())
    return int(array.nbytes)


def _unbroken(place: Path, rows: Iterator[Any]) -> Iterator[Any]:
    """Yields what `rows` yields. Raises ValueError for its errors, which derive from many classes of pyarrow."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{place} is broken, or too large to be read ({reason})") from None
        yield row


def saved_table(folder: Path) -> Table:
    """Opens a data set of one split that `datasets.Dataset.save_to_disk` wrote. Raises ValueError."""
    arrow = import_pyarrow(f"{folder} is a data set of Arrow files")
    files = sorted(folder.glob("[!.]*.arrow"))
    if not files:
        raise ValueError(f"{folder} is a data set of Hugging Face without its .arrow files")

    def opened(file: Path) -> Any:
        return arrow.ipc.open_stream(arrow.memory_map(str(file)))

    def batches(asked: Sequence[str]) -> Iterator[Any]:
        for file in files:
            for batch in opened(file):
                yield batch.select(list(asked))

    states = "\n".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    names: list[str] = []
    for file in files:
        try:
            names = names or opened(file).schema.names
            compressed = is_compressed(arrow, file)
        except Exception as error:
            raise ValueError(f"{file} is no whole file of Arrow ({error})") from None
        if compressed:
            raise ValueError(
                f"{file} is compressed, so that nothing tells how much it holds: write it by "
                "datasets.Dataset.save_to_disk, which does not compress, or as Parquet"
            )
    return arrow_table(folder, "a data set of Hugging Face", names, batches, f"{folder.resolve()}\n{states}")


def import_pyarrow(what: str, extra: str = "datasets") -> Any:
    """Returns pyarrow with its readers. Raises ValueError, which begins with `what`, if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{what}, which needs pyarrow: pip install 'diptych[{extra}]'") from None
    with suppress(Exception):  # at its first array it looks for pandas, which is not needed and may be broken
        pyarrow.array([])
    return pyarrow
