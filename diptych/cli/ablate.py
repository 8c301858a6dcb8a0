"""`diptych ablate GRID|FILE|RECIPE [--variant …] [name=value …]`"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diptych.apps.ablate.grid import Grid, given_grid, read_grid
from diptych.apps.ablate.ready import GRIDS

EXAMPLES = """\
examples:
  diptych ablate vlmo_stages
  diptych ablate vlmo_losses --seeds 0,1 run.steps=500
  diptych ablate albef_tiny --variant full --variant "no ITC: task.itc=0 task.fuse_start=0"
  diptych ablate mine.yaml "vision stage:run.steps=300"

mine.yaml:
  recipe: vlmo_tiny                    # recipe of every variant and stage that names no other
  set: {evaluation.rerank: 0}          # set in every variant
  stages:                              # trained once for each seed, in this order
    language: {recipe: vlmo_tiny_language, set: {init_from: null}}
  variants:                            # measured, and compared with the first
    from nothing: {set: {init_from: null}}
    after language: {after: {init_from: language}}
  seeds: [0, 1, 2]

`name=value` is set in every variant, `PART:name=value` in one variant or stage.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych ablate",
        usage="diptych ablate GRID [--seeds 0,1,2] [--jobs N] [--folder FOLDER] [--variant TEXT …] [name=value …]",
        description="Train variants of a recipe, side by side and for several seeds, measure them and write one table "
        f"with intervals and the computation behind each. Ready grids: {', '.join(GRIDS)}. A finished run is not "
        "repeated, a stopped one is resumed, and a failed one does not stop the others.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", help="a ready grid, a YAML or JSON file, or a recipe with --variant")
    parser.add_argument("--variant", action="append", default=[], metavar="TEXT", help='"NAME: name=value …"')
    parser.add_argument("--seeds", help="whole numbers with commas between them (default: the grid's, 0,1,2)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1,
        help="runs at once, which share the CPU's cores (default: one a core, which is fastest for small models)",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the runs go (default: runs/ablate/GRID)")
    options, assignments = parser.parse_known_args(arguments)

    if options.jobs < 1:
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
            raise ValueError(f"no variant or stage '{part}'. Known: {', '.join(names)}")
        grid = grid.replaced([part] if sign else [variant.name for variant in grid.variants], {name: value})
    return grid


def _carry_out(grid: Grid, folder: Path, jobs: int) -> None:
    from diptych.apps.ablate import runs, table

    planned = runs.plan(grid, folder)
    print(f"{grid.name} in {folder}: {len(planned)} runs, {sum(run.done for run in planned)} of them done", flush=True)
    failed = runs.train_all(planned, jobs)
    problems = [f"{run} failed: {why}" for run, why in failed.items()]
    try:
        result = table.table(grid, folder, failed)
    except ValueError as error:
        raise ValueError("\n".join([*problems, str(error)])) from None
    print(f"\n{table.as_markdown(result)}", flush=True)
    print("\nWritten:", *table.write(result, folder), sep="\n  ")
    if problems:
        raise ValueError("\n".join([*problems, "run the same command again to retry the failed runs only"]))
