"""Decides which records belong to which split.

Where no path is set for validation or test, a share of the training data is held out. A hash of each picture's identity
(or text) decides which, so that neither the order of the files nor a seed changes a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from diptych.data.files import split_paths
from diptych.schema import DataConfig, Split

LEAST_DRAWN = 3
"""An evaluation split gets at least this many pictures, if the source has four times as many."""
PATH_SETTINGS: Mapping[Split, str] = {
    "train": "data.path",
    "validation": "data.validation_path",
    "test": "data.test_path",
}
"""The setting that names the files of each split."""


def own_path(config: DataConfig, split: Split) -> str | None:
    """Returns the path that the configuration sets for an evaluation split, or None if the split is to be drawn."""
    return {"validation": config.validation_path, "test": config.test_path}.get(split)


def named_paths(config: DataConfig) -> list[str]:
    """Returns the files and folders that the configuration names for all splits."""
    settings = (config.path, config.validation_path, config.test_path)
    return [path for setting in settings if setting for path in split_paths(setting)]


def draw_number(identity: str) -> int:
    """Hashes the identity of a picture or text to 64 bits. The smallest numbers are held out from training."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def check_held_out(share: float) -> None:
    """Raises ValueError if two splits of this share would leave nothing to train on."""
    if not 0 <= share < 0.5:
        raise ValueError(f"data.held_out is {share}: it must be at least 0 and below 0.5")


def held_out_count(groups: int, share: float) -> int:
    """Returns how many of `groups` pictures (or groups of pictures) each drawn split gets. Raises ValueError."""
    check_held_out(share)
    count = round(share * groups)
    return max(count, min(LEAST_DRAWN, groups // 4)) if share > 0 else count
