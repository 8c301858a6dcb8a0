"""The folder for files that take time to make or to download."""

from __future__ import annotations

import os
from pathlib import Path

from diptych.reading import expand_home


def cache_folder() -> Path:
    """Returns `DIPTYCH_CACHE`, or `diptych` in the user's cache folder where that is not set."""
    if folder := os.environ.get("DIPTYCH_CACHE"):
        return expand_home(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")) / "diptych"
