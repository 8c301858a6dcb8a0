"""Benchmarks need torch, numpy, pillow, tokenizers and safetensors, and nothing else that the library depends on."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Shape:
    """Stands in for jaxtyping's `Float`, `Int` and so on, where jaxtyping is not installed: shapes are not checked."""

    def __class_getitem__(cls, array_and_shape: tuple[type, str]) -> type:
        return array_and_shape[0]


class Jaxtyping(ModuleType):
    """A module in which every name is a `Shape`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Shape


if find_spec("jaxtyping") is None:
    sys.modules["jaxtyping"] = Jaxtyping("jaxtyping")
