"""Holds what the routes of a server share: models, index, limits and threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from diptych.apps.serve.batching import Batcher
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import Metrics
from diptych.apps.serve.preparing import InputPreparer
from diptych.apps.serve.requests import Inputs, ModelCall
from diptych.apps.serve.workers import Workers
from diptych.predict import ModelPool, PooledModel

Value = TypeVar("Value")
PREPARERS = 2
"""Number of threads that decode pictures and draw heat maps. Each holds one picture of full size at a time."""
READERS = 2
"""Number of threads for what takes milliseconds: JSON, and requests without pictures, which wait for no picture."""


@dataclass(eq=False)
class ServerState:
    """Holds a server's models, index, limits and threads."""

    pool: ModelPool
    limits: Limits = field(default_factory=Limits)
    index: Any = None
    """A `diptych.apps.index.Index`, or None."""
    index_of: PooledModel | None = None
    """The model that made the index."""

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.batcher = Batcher(self.limits, self.metrics)
        self.preparers = Workers(PREPARERS, "diptych-prepare", self.limits)
        self.readers = Workers(READERS, "diptych-read", self.limits)
        self.preparer = InputPreparer(self.limits)
        self.able = self.pool.abilities()
        names = [None, *(model.name for model in self.pool.models)]
        self._models = {(ability, name): self._find(ability, name) for ability in self.able for name in names}

    def find(self, ability: str, name: str | None) -> PooledModel:
        """Returns the named model, or the best one for an ability. Raises ApiError."""
        model = self._models.get((ability, name))
        if model is None:
            raise self.unknown_model(str(name))
        if isinstance(model, str):
            raise ApiError("not_trained", model)
        return model

    def unknown_model(self, name: str) -> ApiError:
        """Returns the error for a model that is not served, with the one that is meant if only one can be."""
        known = [model.name for model in self.pool.models]
        last = name.rstrip("/").rpartition("/")[2]
        meant = [one for one in known if one.rpartition("/")[2] == last]
        hint = f": did you mean '{meant[0]}'?" if len(meant) == 1 else "."
        return ApiError(
            "unknown_model", f"no model '{name[:100]}' here{hint} There are: {', '.join(known)}", param="model"
        )

    def _find(self, ability: str, name: str | None) -> PooledModel | str:
        """Returns the model, or the reason why there is none, which takes a while to compute."""
        try:
            return self.pool.find(ability, name)
        except ValueError as error:
            return str(error)

    async def prepare(self, call: Callable[..., Value], *arguments: Any, pictures: int = 1) -> Value:
        """Runs a call on a preparing thread, because the event loop must not wait for a picture.

        Without pictures it runs on a thread that does not have to finish one first.
        """
        workers = self.preparers if pictures else self.readers
        return await workers.run(call, *arguments)

    async def submit(self, request: Request, call: ModelCall, inputs: Inputs) -> Any:
        """Returns the result of a call to a model. Raises ApiError if the model refuses its inputs."""
        try:
            return await self.batcher.submit(call, inputs, request.state.expected)
        except ValueError as error:
            raise ApiError("refused", str(error)) from None

    def close(self, seconds: float = 5.0) -> None:
        self.batcher.close(seconds)
        self.preparers.close()
        self.readers.close()
