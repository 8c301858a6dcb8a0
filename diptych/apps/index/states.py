"""Encoded pictures that are kept in memory, so that a picture that is often re-ranked is encoded once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diptych.predict import Predictor
from diptych.search.contract import State

Key = tuple[str, int, int]
"""Path, size and time of a file: a changed one is encoded anew."""


class States:
    """The image states of files, the last used ones within a number of bytes. Threads may share it.

    Those of one call are always there together, whatever the limit.
    """

    def __init__(self, predictor: Predictor, limit: int) -> None:
        """`limit`: bytes that are kept between calls."""
        self.predictor, self.limit, self.nbytes = predictor, limit, 0
        self.encoded = 0
        """Pictures encoded so far."""
        self._kept: OrderedDict[Key, State] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, files: Sequence[Path]) -> State:
        """Raises ValueError for a file that is not there, BadRecord for one that is no picture."""
        keys = [_key(file) for file in files]
        with self._lock:
            found: dict[Key, State] = {key: self._kept[key] for key in keys if key in self._kept}
        size = self.predictor.recipe.evaluation.batch_size
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            states = self.predictor.encode([path for path, _, _ in part])
            # Cut by an index, which copies: a view would keep the whole batch in memory.
            found |= {key: states[torch.tensor([row], device=self.predictor.device)] for row, key in enumerate(part)}
        with self._lock:
            self.encoded += len(missing)
            self._keep({key: found[key] for key in dict.fromkeys(keys)})
        states_of: list[Any] = [found[key] for key in keys]
        return type(states_of[0]).cat(states_of)

    def _keep(self, used: dict[Key, State]) -> None:
        for key, state in used.items():
            if key not in self._kept:
                self._kept[key] = state
                self.nbytes += state.nbytes
            self._kept.move_to_end(key)
        while self.nbytes > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes


def _key(file: Path) -> Key:
    try:
        status = os.stat(file)  # noqa: PTH116 — as items.py does
    except OSError as error:
        raise ValueError(
            f"re-ranking looks at the pictures, and {file} is no longer there ({error.strerror}): put it back, remove "
            "it with `diptych index remove`, or search without re-ranking"
        ) from error
    return str(file), status.st_size, status.st_mtime_ns
