"""Makes the checks of types at run time faster where no array is in a signature.

jaxtyping's import hook wraps every function of the package: it binds the arguments, keeps the sizes of a call apart
from those of its caller, and checks arguments and result twice. Only functions whose signatures name arrays need that.
The others are checked by beartype alone, which checks the same types in a fraction of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from jaxtyping import AbstractArray, config
from jaxtyping._decorator import _destring_annotation as resolved

with_sizes = jaxtyping.jaxtyped


def install() -> None:
    """Replaces the decorator that jaxtyping's import hook puts onto functions and classes imported from now on."""
    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]


def jaxtyped(*decorated: Any, typechecker: Any = None) -> Any:
    """Decorates as jaxtyping does, and without its memory of sizes where no array is in a signature."""
    if not decorated:
        return functools.partial(jaxtyped, typechecker=typechecker)
    (found,) = decorated
    if typechecker is not None and inspect.isclass(found) and dataclasses.is_dataclass(found):
        if "__init__" in vars(found):  # otherwise it is that of a class which is checked itself
            found.__init__ = checked(found.__init__, typechecker)
        return found
    if typechecker is not None and inspect.isfunction(found):
        return checked(found, typechecker)
    return with_sizes(found, typechecker=typechecker)


def checked(function: Any, typechecker: Callable[[Any], Any]) -> Any:
    given = function.__annotations__
    hints = {name: resolved(hint, function.__globals__) for name, hint in given.items()}
    yields = inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)
    if yields or any(map(names_an_array, hints.values())):
        return with_sizes(function, typechecker=typechecker)
    function.__annotations__ = hints  # names that cannot be resolved yet are not checked, as jaxtyping has it
    try:
        typed = typechecker(function)
    finally:
        function.__annotations__ = given
    if typed is function:
        return function

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        return (function if config.jaxtyping_disable else typed)(*arguments, **named)

    return call


def names_an_array(hint: Any) -> bool:
    """Whether an array with a shape is anywhere in a type.

    >>> from torch import Tensor
    >>> names_an_array(dict[str, jaxtyping.Float[Tensor, "B"] | None]), names_an_array(dict[str, Tensor])
    (True, False)
    """
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    parts = hint if isinstance(hint, list | tuple) else get_args(hint)  # a list: the arguments of a Callable
    return any(map(names_an_array, parts))
