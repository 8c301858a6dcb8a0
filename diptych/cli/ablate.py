"""`diptych ablate GRID|FILE|RECIPE [--variant …] [name=value …]`"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from diptych.apps.ablate.grid import Grid, given_grid, read_grid
from diptych.apps.ablate.ready import GRIDS

EXAMPLES = """\
examples:
  diptych ablate vlmo_stages
  diptych ablate vlmo_losses --seeds 0,1 run.steps=500
  diptych ablate albef_tiny --variant full --variant "no ITC: task.itc=0 task.phrases=0 task.fuse_start=0"
  diptych ablate mine.yaml "language:run.steps=200"

mine.yaml:
  recipe: vlmo_tiny                    # recipe of every variant and stage that names no other
  set: {evaluation.rerank: 0}          # set in every variant
  stages:                              # trained once for each seed, in this order
    language: {recipe: vlmo_tiny_language, set: {init_from: null}}
  variants:                            # measured, and compared with the first
    from nothing: {set: {init_from: null}}
    after language: {after: {init_from: language}}
  tasks:                               # trained after each variant, from its run
    entailment: {recipe: vlmo_tiny_entailment}
  against: first                       # or previous: each variant is compared with the one before it
  seeds: [0, 1, 2]

`name=value` is set in every variant, `PART:name=value` in one variant, stage or task.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych ablate",
        usage="diptych ablate GRID [--seeds 0,1,2] [--jobs N] [--folder FOLDER] [--only NAME …] [--tasks NAMES] "
        "[--variant TEXT …] [name=value …]",
        description="Train variants of a recipe, side by side and for several seeds, fine-tune them for tasks if the "
        "grid has some, measure them and write one table with intervals, corrected tests and the computation behind "
        f"each. Ready grids: {', '.join(GRIDS)}. A finished run is not repeated, and a run that another ablation in "
        "a sibling folder has finished is copied. A stopped run is resumed, and a failed one does not stop the "
        "others. The table is written anew after each run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", help="a ready grid, a YAML or JSON file, or a recipe with --variant")
    parser.add_argument("--variant", action="append", default=[], metavar="TEXT", help='"NAME: name=value …"')
    parser.add_argument("--seeds", help="whole numbers with commas between them (default: the grid's, 0,1,2)")
    parser.add_argument(
        "--jobs", type=int,
        help="runs at once, which share the CPU's cores (default: one a core, which is fastest for small models; one "
        "where there is a GPU)",
    )  # fmt: skip
    parser.add_argument("--only", action="append", metavar="NAME", help="a variant that is kept (default: all)")
    parser.add_argument("--tasks", help="tasks to fine-tune for, as in retrieval,nlvr2, or none (default: the grid's)")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: runs/ablate/GRID)")
    options, assignments = parser.parse_known_args(arguments)

    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}: it must be at least 1")
    if options.variant:
        grid = given_grid(options.grid, options.variant)
    elif options.grid in GRIDS:
        grid = GRIDS[options.grid]
    elif options.grid.endswith((".yaml", ".yml", ".json")):
        grid = read_grid(Path(options.grid))
    else:
        raise ValueError(
            f"no grid '{options.grid}'. Ready: {', '.join(GRIDS)}; "
            "or name a YAML or JSON file, or a recipe with --variant"
        )
    folder = options.folder or Path("runs/ablate") / grid.name
    tasks = None if options.tasks is None else [] if options.tasks == "none" else options.tasks.split(",")
    grid = grid.only(options.only, tasks)
    _carry_out(_changed(grid, options.seeds, assignments), folder, options.jobs)


def _changed(grid: Grid, seeds: str | None, assignments: Sequence[str]) -> Grid:
    """Changes a grid as the command line says."""
    from diptych.recipes.override import parse_assignments

    if seeds is not None:
        if not all(seed.strip().isdigit() for seed in seeds.split(",")):
            raise ValueError(f"--seeds is '{seeds}': write whole numbers with commas between them, as in 0,1,2")
        grid = replace(grid, seeds=tuple(int(seed) for seed in seeds.split(",")))
    names = [part.name for part in grid.parts]
    for key, value in parse_assignments(assignments).items():
        part, sign, name = key.rpartition(":")
        if sign and part not in names:
            raise ValueError(f"no variant, stage or task '{part}'. Known: {', '.join(names)}")
        grid = grid.replaced([part] if sign else [variant.name for variant in grid.variants], {name: value})
    return grid


def _carry_out(grid: Grid, folder: Path, jobs: int | None) -> None:
    import torch

    from diptych.apps.ablate import runs, table
    from diptych.data.workers import processors

    if jobs is None:
        jobs = 1 if torch.cuda.is_available() else processors()
    planned = runs.plan(grid, folder)
    print(f"{grid.name} in {folder}: {len(planned)} runs, {sum(run.done for run in planned)} of them done", flush=True)
    failed = runs.train_all(planned, jobs, lambda failed: _write_what_is_there(grid, folder, failed))
    problems = [f"{run} failed: {why}" for run, why in failed.items()]
    try:
        result = table.table(grid, folder, failed)
    except ValueError as error:
        raise ValueError("\n".join([*problems, str(error)])) from None
    print(f"\n{table.as_markdown(result)}", flush=True)
    print("\nWritten:", *table.write(result, folder), sep="\n  ")
    if problems:
        raise ValueError("\n".join([*problems, "run the same command again to retry the failed runs only"]))


def _write_what_is_there(grid: Grid, folder: Path, failed: Mapping[Path, str]) -> None:
    """Writes the table of the runs that have ended, unless no variant has."""
    from diptych.apps.ablate import table

    with suppress(ValueError):
        table.write(table.table(grid, folder, failed), folder)
