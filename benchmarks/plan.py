"""Compares plans with real steps on this machine, and prints the table of docs/scaling.md.

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
"""Recipes, and pairs in a step: the recipe's own number where a step takes a second or two, fewer elsewhere."""
STEPS = 3
MEMORY, TIME = 0.10, 0.25
"""By what share a plan may differ from the measurement."""


def main(arguments: list[str]) -> int:
    """Prints a row for each recipe. Returns 1 where a plan differs by more than is allowed."""
    runs = [(name, int(pairs)) for name, _, pairs in (run.partition(":") for run in arguments)] or list(RUNS)
    print("| recipe | pairs | memory planned | measured | | step planned | measured | |", "|---" * 8 + "|", sep="\n")
    differs = False
    for name, pairs in runs:
        recipe = override(find_recipe(name), {"run.batch_size": pairs})
        wish = Wish(find_fleet("this"))
        rows = check(recipe, wish, plan(recipe, wish), STEPS).rows
        cells = [name, str(pairs)]
        for quantity, in_words, allowed in (("memory", size, MEMORY), ("step", seconds, TIME)):
            planned, measured = rows[quantity]
            difference = planned / measured - 1
            differs = differs or abs(difference) > allowed
            cells += [in_words(planned), in_words(measured), f"{difference:+.0%}"]
        print("|", " | ".join(cells), "|", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
