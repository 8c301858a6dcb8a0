"""`diptych recipes [RECIPE [FIELD …]]`"""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych recipes",
        description="List the recipes, or all fields of one that can be set, or say what some of its fields mean.",
    )
    parser.add_argument("recipe", nargs="?", help="a recipe's name")
    parser.add_argument(
        "field", nargs="*", help="fields to explain, as in task.fused_share, or groups of them, as in optim"
    )
    options = parser.parse_args(arguments)
    name = options.recipe

    from diptych.catalog import RECIPES, find_recipe
    from diptych.recipes.describe import describe
    from diptych.schema import Released, as_released
    from diptych.serialize import to_dict

    if name is None:
        width = max(map(len, RECIPES))
        for key, build in RECIPES.items():
            print(f"{key:<{width}}  {(inspect.getdoc(build) or '').partition(chr(10))[0]}")
        return
    recipe = find_recipe(name)
    fields = to_dict(recipe)
    if options.field:
        values = dict(line.split("=", 1) for line in _lines(fields))
        for wanted in options.field:
            for dotted, text in describe(recipe, wanted):
                print(f"{dotted}={values.get(dotted, '')}", *textwrap.wrap(text, 100), sep="\n    ")
        return
    switches = _lines({"released": fields.pop("released")})
    known = {"none": Released(), "all": as_released(recipe.model)}
    short = next((word for word, value in known.items() if value == recipe.released), None)
    print(inspect.getdoc(RECIPES[name]), "", *_lines(fields), sep="\n")
    print(f"\n`diptych recipes {name} FIELD` says what a field means.")
    print("\nDefects of the released code (docs/released_code.md): released=none, released=all, or one by one.")
    print(*([f"released={short}"] if short else ()), *switches, sep="\n")


def _lines(fields: dict[str, Any], above: str = "") -> list[str]:
    """Formats a line for each field as `diptych train` takes it, such as `data.scenes.size=64`."""
    lines = []
    for key, value in fields.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{above}{key}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            lines.append(f"{above}{key}={json.dumps(value)}")
        else:
            plain = ",".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{above}{key}={str(plain).lower() if isinstance(plain, bool | None) else plain}")
    return lines
