"""`diptych train RECIPE [name=value …]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  diptych train albef_tiny
  diptych train albef_tiny data.source=folder data.path=photos run.steps=500
  diptych train albef_tiny --optim.lr 3e-4 --folder runs/slow

`diptych recipes` lists the recipes, `diptych recipes RECIPE` all names that can be set.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych train",
        usage="diptych train RECIPE [--folder RUN] [name=value | --name value …]",
        description="Train a recipe, with any of its fields replaced.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a name that `diptych recipes` lists")
    parser.add_argument("--folder", type=Path, help="where the run goes (default: a new folder under runs/)")
    given, assignments = parser.parse_known_args(arguments)

    from diptych import pipeline
    from diptych.catalog import find_recipe
    from diptych.recipes.override import override, parse_assignments

    pipeline.train(override(find_recipe(given.recipe), parse_assignments(assignments)), given.folder)
