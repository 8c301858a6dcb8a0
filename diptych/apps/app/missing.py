"""What to train where no model has what a page needs."""

from __future__ import annotations

from collections.abc import Sequence

from diptych import catalog
from diptych.schema import Recipe


def training_hint(tasks: Sequence[type], models: Sequence[type] = (), width: int | None = None) -> str:
    """How to come by a model of such a task: the recipes, of one of `models` and of that width where there are some.

    >>> from diptych.schema import AlbefConfig, VqaClosedSetConfig
    >>> training_hint([VqaClosedSetConfig], [AlbefConfig], 128)
    'train albef_tiny_vqa_closed (diptych train albef_tiny_vqa_closed init_from=RUN, a pre-trained one)'
    """
    recipes = [make() for make in catalog.RECIPES.values()]
    fit = [one for one in recipes if type(one.task) in tasks and (not models or type(one.model) in models)]
    alike = [one for one in fit if one.model.width == width] or fit
    return f"train {' or '.join(one.name for one in alike)} ({_command(alike[0])})"


def _command(recipe: Recipe) -> str:
    pretrained = recipe.init_from is None and "Pretrain" in type(recipe.task).__name__
    return f"diptych train {recipe.name}" + ("" if pretrained else " init_from=RUN, a pre-trained one")
