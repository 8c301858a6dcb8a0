"""`diptych demo [--model MODEL] [--all-tasks]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

MODELS = ("albef", "vlmo")


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych demo",
        description="Make pictures, train a small model on them from nothing, evaluate it and write a report. "
        "With --all-tasks, teach it the five tasks afterwards and print one table.",
    )
    parser.add_argument("--model", choices=MODELS, default="albef", help="which system (default: albef)")
    parser.add_argument(
        "--folder", type=Path, help="where the run goes (default: runs/demo, and runs/demo-vlmo for VLMo)"
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

    from diptych.apps.demo import pretraining, tasks
    from diptych.apps.demo.systems import SYSTEMS, Demonstration

    system = SYSTEMS[given.model]
    demonstration = Demonstration(system, given.folder or system.folder)
    if given.all_tasks:
        tasks.all_tasks(demonstration, blind=not given.no_blind)
    else:
        pretraining.demo(demonstration)
