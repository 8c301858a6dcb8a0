"""The only tables of names: whatever a user can name is one line here, and the line leads to the code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from diptych.data.record import Source, Split
from diptych.data.sources import albef as albef_lists
from diptych.data.sources import folder, jsonl, scenes
from diptych.models import albef as albef_model
from diptych.recipes import albef as albef_recipes
from diptych.schema import AlbefConfig, AlbefPretrainConfig, DataConfig, Recipe
from diptych.task import Task

MODELS: dict[type, Callable[[Any], nn.Module]] = {
    AlbefConfig: albef_model.Albef,
}
"""What builds a model, by the type of a recipe's `model`."""

TASKS: dict[type, Callable[..., Task]] = {
    AlbefPretrainConfig: albef_model.AlbefPretraining,
}
"""What builds a task from (model, config, special ids), by the type of a recipe's `task`."""

SOURCES: dict[str, Callable[[DataConfig, Split], Source]] = {
    "scenes": scenes.open_scenes,
    "folder": folder.open_folder,
    "jsonl": jsonl.open_jsonl,
    "albef": albef_lists.open_albef,
}

RECIPES: dict[str, Callable[[], Recipe]] = {
    "albef_tiny": albef_recipes.albef_tiny,
    "albef_small": albef_recipes.albef_small,
    "albef_base": albef_recipes.albef_base,
}


def find_recipe(name: str) -> Recipe:
    """Raises ValueError listing the known recipes."""
    if name not in RECIPES:
        raise ValueError(_unknown("recipe", name, RECIPES))
    return RECIPES[name]()


def open_source(config: DataConfig, split: Split) -> Source:
    """The split of the source that `data.source` names. Raises ValueError listing the known sources."""
    if config.source not in SOURCES:
        raise ValueError(_unknown("data.source", config.source, SOURCES))
    return SOURCES[config.source](config, split)


def _unknown(what: str, name: str, table: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, table, n=1)
    return (
        f"no {what} '{name}'." + (f" Did you mean '{nearest[0]}'?" if nearest else "") + f" Known: {', '.join(table)}"
    )
