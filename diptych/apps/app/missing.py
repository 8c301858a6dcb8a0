"""Says what to train where no model can do what a page needs."""

from __future__ import annotations

from collections.abc import Sequence

from diptych import catalog
from diptych.schema import Recipe


def training_hint(tasks: Sequence[type], models: Sequence[type] = (), width: int | None = None) -> str:
    """Names the recipes of a task, if possible for a model type among `models` and of that width.

    >>> from diptych.schema import AlbefConfig, VqaClosedSetConfig
    >>> training_hint([VqaClosedSetConfig], [AlbefConfig], 128)
    'train albef_tiny_vqa_closed (diptych train albef_tiny_vqa_closed init_from=RUN, a pre-trained one)'
    """
    recipes = [make() for make in catalog.RECIPES.values()]
    fitting = [
        recipe for recipe in recipes if type(recipe.task) in tasks and (not models or type(recipe.model) in models)
    ]
    best = [recipe for recipe in fitting if recipe.model.width == width] or fitting
    return f"train {' or '.join(recipe.name for recipe in best)} ({_command(best[0])})"


def _command(recipe: Recipe) -> str:
    pretrained = recipe.init_from is None and "Pretrain" in type(recipe.task).__name__
    return f"diptych train {recipe.name}" + ("" if pretrained else " init_from=RUN, a pre-trained one")
