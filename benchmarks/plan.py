"""Plans beside real steps on this machine: the table of docs/scaling.md.

python -m benchmarks plan
python -m benchmarks.plan albef_tiny:64 vlmo_base:4
"""

from __future__ import annotations

import sys

from diptych.apps.plan.cards import find_fleet
from diptych.apps.plan.check import check
from diptych.apps.plan.predict import Wish, plan
from diptych.apps.plan.text import seconds, size
from diptych.catalog import find_recipe
from diptych.recipes.override import override

RUNS = (
    ("albef_tiny", 64), ("vlmo_tiny", 64), ("albef_small", 32), ("vlmo_small", 32), ("albef_base", 4), ("vlmo_base", 2),
)  # fmt: skip
"""Recipes and pairs of a step: those of the recipe where a step takes a second or two, fewer elsewhere."""
STEPS = 3
MEMORY, TIME = 0.10, 0.25
"""How far a plan may be from what is measured."""


def main(asked: list[str]) -> int:
    """Prints a row a recipe; 1 where a plan is farther off than allowed."""
    runs = [(name, int(pairs)) for name, _, pairs in (run.partition(":") for run in asked)] or list(RUNS)
    print("| recipe | pairs | memory planned | measured | | step planned | measured | |", "|---" * 8 + "|", sep="\n")
    far = False
    for name, pairs in runs:
        recipe = override(find_recipe(name), {"run.batch_size": pairs})
        wish = Wish(find_fleet("this"))
        found = plan(recipe, wish)
        rows = check(recipe, wish, found, STEPS).rows
        cells = [name, str(pairs)]
        for what, said, allowed in (("memory", size, MEMORY), ("step", seconds, TIME)):
            planned, measured = rows[what]
            difference = planned / measured - 1
            far = far or abs(difference) > allowed
            cells += [said(planned), said(measured), f"{difference:+.0%}"]
        print("|", " | ".join(cells), "|", flush=True)
    return int(far)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
