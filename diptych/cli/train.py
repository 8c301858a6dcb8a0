"""`diptych train RECIPE [name=value …]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from diptych.launched import processes, rank

EXAMPLES = """\
examples:
  diptych train albef_tiny
  diptych train albef_tiny data.source=folder data.path=photos run.steps=500
  diptych train albef_tiny --optim.lr 3e-4 --folder runs/slow
  torchrun --nproc-per-node 8 -m diptych train albef_base --folder runs/base data.path=pairs.jsonl

`diptych recipes` lists the recipes, `diptych recipes RECIPE` all fields that can be set.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych train",
        usage="diptych train RECIPE [--folder RUN] [name=value | --name value …]",
        description="Train a recipe, with any of its fields changed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a name that `diptych recipes` lists")
    parser.add_argument("--folder", type=Path, help="folder of the run (default: a new one, runs/RECIPE)")
    options, assignments = parser.parse_known_args(arguments)

    from diptych.catalog import find_recipe
    from diptych.recipes.override import override, parse_assignments
    from diptych.run import train

    recipe = override(find_recipe(options.recipe), parse_assignments(assignments))
    if options.folder is None and processes() > 1:
        raise ValueError("several processes train one run: name its folder for all of them, with --folder RUN")
    folder = options.folder or _free(recipe.name)
    if rank() == 0:
        print(f"{recipe.name} in {folder}")
    train(recipe, folder)


def _free(name: str) -> Path:
    """Finds the first of runs/NAME, runs/NAME-2, runs/NAME-3 … that does not exist."""
    folders = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in folders if not folder.exists())
