"""`diptych compare RUN RUN [RUN …]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych compare",
        description="Compare measured runs: the quality of each task (from their eval.json and those in their tasks), "
        "the speed of training, embedding and search, and the parameters used. Runs must be measured on the same data.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run that `diptych evaluate` has measured"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="folder for comparison.json and comparison.html (default: the first RUN)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which speed is measured (default: 5)")
    options = parser.parse_args(arguments)

    from diptych.apps.compare import as_text, compare, write

    comparison = compare(options.runs, options.rounds)
    print(as_text(comparison))
    page = write(comparison, options.to or options.runs[0])
    print("\nWritten:", f"  {page}", f"  {page.with_suffix('.json')}", sep="\n")
