"""`diptych demo`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych demo",
        description="Make pictures, train a small ALBEF on them from nothing, evaluate it and write a report.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/demo"), help="where the run goes (default: runs/demo)"
    )
    given = parser.parse_args(arguments)

    from diptych import pipeline

    pipeline.demo(given.folder)
