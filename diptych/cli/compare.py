"""`diptych compare RUN RUN [RUN …]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych compare",
        description="Put measured runs side by side: quality of each task (their eval.json and those in their tasks), "
        "speed of training, embedding and search, parameters used. Runs measured on different data are refused.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, measured already")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where comparison.json and comparison.html go (default: the first RUN)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measuring speed (default: 5)")
    given = parser.parse_args(arguments)

    from diptych.apps.compare import as_text, compare, write

    found = compare(given.runs, given.rounds)
    print(as_text(found))
    written = write(found, given.to or given.runs[0])
    print("\nWritten:", f"  {written}", f"  {written.with_suffix('.json')}", sep="\n")
