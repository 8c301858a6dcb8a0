"""Where things are kept that cost time to make or to fetch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`DIPTYCH_CACHE`, else `diptych` in the user's cache folder."""
    if named := os.environ.get("DIPTYCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
