"""`diptych recipes [RECIPE]`"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from typing import Any


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych recipes", description="List the recipes, or describe one with all fields that can be set."
    )
    parser.add_argument("recipe", nargs="?", help="a recipe's name")
    name = parser.parse_args(arguments).recipe

    from diptych.catalog import RECIPES, find_recipe
    from diptych.serialize import to_dict

    if name is None:
        width = max(map(len, RECIPES))
        for key, recipe in RECIPES.items():
            print(f"{key:<{width}}  {(inspect.getdoc(recipe) or '').partition(chr(10))[0]}")
        return
    fields = to_dict(find_recipe(name))
    print(inspect.getdoc(RECIPES[name]), "", *_lines(fields), sep="\n")


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
