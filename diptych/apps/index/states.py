"""Caches encoded pictures in memory, so that a picture that is re-ranked often is encoded once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diptych.data.pictures import file_of
from diptych.predict import Predictor
from diptych.search.contract import State

Key = tuple[str, int, int]
"""Path, size and modification time of a file: a changed file is encoded again."""


class ImageStateCache:
    """Keeps the image states of the most recently used files within a number of bytes. Threads may share it.

    A single call always gets all of its states, whatever the limit.
    """

    def __init__(self, predictor: Predictor, limit: int) -> None:
        """`limit`: number of bytes that are kept between calls."""
        self.predictor, self.limit, self.nbytes = predictor, limit, 0
        self.encoded = 0
        """Number of pictures encoded so far."""
        self._cache: OrderedDict[Key, State] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, files: Sequence[Path]) -> State:
        """Returns the states of files. Raises ValueError for a missing file, BadRecord for one that is no picture."""
        keys = [_key(file) for file in files]
        with self._lock:
            states: dict[Key, State] = {key: self._cache[key] for key in keys if key in self._cache}
        size = self.predictor.recipe.evaluation.batch_size
        missing = [key for key in dict.fromkeys(keys) if key not in states]
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            encoded = self.predictor.encode([path for path, _, _ in batch])
            # Indexing by a tensor copies; a view would keep the whole batch in memory.
            states |= {key: encoded[torch.tensor([row], device=self.predictor.device)] for row, key in enumerate(batch)}
        with self._lock:
            self.encoded += len(missing)
            self._keep({key: states[key] for key in dict.fromkeys(keys)})
        states_of_files: list[Any] = [states[key] for key in keys]
        return type(states_of_files[0]).cat(states_of_files)

    def portions(self, files: Sequence[Path]) -> Iterator[State]:
        """Yields the states of files in order, a batch at a time, so that many files need no more memory."""
        size = self.predictor.recipe.evaluation.batch_size
        return (self.get(files[start : start + size]) for start in range(0, len(files), size))

    def _keep(self, used: dict[Key, State]) -> None:
        """Marks states as just used, and evicts the least recently used ones beyond the limit."""
        for key, state in used.items():
            if key not in self._cache:
                self._cache[key] = state
                self.nbytes += state.nbytes
            self._cache.move_to_end(key)
        while self.nbytes > self.limit:
            _, oldest = self._cache.popitem(last=False)
            self.nbytes -= oldest.nbytes


def _key(file: Path) -> Key:
    try:
        status = os.stat(file_of(str(file)))  # noqa: PTH116 — faster than Path.stat, as in items.py
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"re-ranking looks at the pictures, and {file} is no longer there ({reason}): put it back, or "
            "search without re-ranking"
        ) from error
    return str(file), status.st_size, status.st_mtime_ns
