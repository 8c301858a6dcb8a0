"""How `search` and `index search` show their hits: as a table, as JSON, as a page, or in the system's viewer."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.writing import spare_page

if TYPE_CHECKING:
    from diptych.apps.index import SearchResults
    from diptych.predict import SearchResult

VIEWERS = ("xdg-open", "open", "wslview")
"""Programs that open a file as a double click does: on Linux, on macOS, and in Windows' Linux."""
QUERY = 'what to look for, as in "a fox left of a red car", with wanted and unwanted words as in "a fox +snow -car^0.3"'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how hits are shown."""
    parser.add_argument("--json", action="store_true", help="print the hits as JSON instead of a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the pictures")
    parser.add_argument(
        "--open", type=int, nargs="?", const=1, default=0, metavar="N",
        help="open the best picture, or the best N, in the system's viewer (or in the program that VIEWER names)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-copies", action="store_true",
        help="show near-duplicates one by one; by default one picture at several sizes or qualities is one hit",
    )  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """Raises ValueError, before a model is loaded, for what cannot be shown."""
    if options.open < 0:
        raise ValueError(f"--open is {options.open}: name how many pictures to open")
    if options.open:
        _viewer()
    if options.html is not None and options.html.is_dir():
        raise ValueError(f"--html {options.html} is a folder: name a file, as in {options.html / 'hits.html'}")
    if options.html is not None:
        spare_page(options.html)


def show(found: SearchResult | SearchResults, options: argparse.Namespace) -> None:
    """Prints the hits, and then writes the page and opens the pictures."""
    content = found.to_json()
    print(json.dumps(content, indent=1, ensure_ascii=True) if options.json else found)
    if options.html is not None:
        from diptych.apps.report.hits import write_hits

        print(f"written: {write_hits(content, options.html)}", file=sys.stderr)
    if options.open:
        _open([hit["path"] for hit in content["hits"] if hit["path"] is not None][: options.open])


def _open(files: Sequence[str]) -> None:
    """Starts the viewer for each file and does not wait for it. Raises ValueError for one that has gone."""
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file} cannot be opened: it is not there any more")
        subprocess.Popen(
            [*_viewer(), file], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def _viewer() -> list[str]:
    """Finds the command that opens pictures. Raises ValueError if there is none."""
    if named := shlex.split(os.environ.get("VIEWER", "")):
        if shutil.which(named[0]) is None:
            raise ValueError(f"VIEWER names {named[0]}, which is no program here")
        return named
    for name in VIEWERS:
        if path := shutil.which(name):
            return [path]
    raise ValueError(f"no program opens pictures here ({', '.join(VIEWERS)}): set VIEWER to one, or use --html FILE")
