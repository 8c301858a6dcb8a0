"""`diptych demo [--model MODEL] [--stages] [--all-tasks]`"""

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
        "--folder",
        type=Path,
        help="folder of the run (default: runs/demo, runs/demo-vlmo or runs/demo-vlmo-stages)",
    )
    parser.add_argument(
        "--stages",
        action="store_true",
        help="train VLMo's visual tokenizer, vision stage and language stage first, and start from them",
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
    if options.stages and not system.stages:
        raise ValueError(f"{options.model} has no stages before its pre-training on pairs: leave --stages out")
    folder = system.folder.with_name(f"{system.folder.name}-stages") if options.stages else system.folder
    demonstration = Demonstration(system, options.folder or folder, options.stages)
    if options.all_tasks:
        tasks.all_tasks(demonstration, blind=not options.no_blind)
    else:
        pretraining.demo(demonstration)
