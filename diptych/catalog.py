"""The only tables of names: whatever a user can name is one line here, and the line leads to the code."""

from __future__ import annotations

from collections.abc import Callable

from diptych.recipes import albef
from diptych.schema import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "albef_tiny": albef.albef_tiny,
    "albef_small": albef.albef_small,
    "albef_base": albef.albef_base,
}
