"""`diptych demo [--model MODEL] [--all-tasks]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

MODELS = ("albef", "vlmo")


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych demo",
        description="Compose pictures, train a small model on them from random weights, evaluate it and write a "
        "report. With --all-tasks, then fine-tune it for the five tasks and print one table.",
    )
    parser.add_argument("--model", choices=MODELS, default="albef", help="the system (default: albef)")
    parser.add_argument(
        "--folder", type=Path, help="folder of the run (default: runs/demo, and runs/demo-vlmo for VLMo)"
    )
    parser.add_argument(
        "--all-tasks", action="store_true", help="also fine-tune for retrieval, grounding, entailment, VQA and NLVR2"
    )
    parser.add_argument(
        "--no-blind",
        action="store_true",
        help="leave out the baselines, which train the same recipes on blank pictures",
    )
    options = parser.parse_args(arguments)
    if options.no_blind and not options.all_tasks:
        raise ValueError("--no-blind leaves out baselines of --all-tasks: give both")

    from diptych.apps.demo import pretraining, tasks
    from diptych.apps.demo.systems import SYSTEMS, Demonstration

    system = SYSTEMS[options.model]
    demonstration = Demonstration(system, options.folder or system.folder)
    if options.all_tasks:
        tasks.all_tasks(demonstration, blind=not options.no_blind)
    else:
        pretraining.demo(demonstration)
