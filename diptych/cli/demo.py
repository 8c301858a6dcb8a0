"""`diptych demo [--all-tasks]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych demo",
        description="Make pictures, train a small ALBEF on them from nothing, evaluate it and write a report. "
        "With --all-tasks, teach it the five tasks afterwards and print one table.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/demo"), help="where the run goes (default: runs/demo)"
    )
    parser.add_argument(
        "--all-tasks", action="store_true", help="retrieval, grounding, entailment, questions and picture pairs too"
    )
    parser.add_argument(
        "--no-blind", action="store_true", help="leave out the baselines, the same recipes on blank pictures"
    )
    given = parser.parse_args(arguments)
    if given.no_blind and not given.all_tasks:
        raise ValueError("--no-blind belongs to --all-tasks")

    from diptych import demo

    if given.all_tasks:
        demo.all_tasks(given.folder, blind=not given.no_blind)
    else:
        demo.demo(given.folder)
