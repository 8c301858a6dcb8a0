"""Finds COCO's pictures, which lie in `train2014/COCO_train2014_000000000009.jpg` and so on, or all in one folder."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"COCO_(\w+?)_\d+\.jpg")


def coco_path(root: Path, file_name: str) -> str:
    """Returns the path of a picture below `root`: in the folder of its subset, if that folder exists.

    >>> coco_path(Path("nowhere"), "COCO_train2014_000000000009.jpg")
    'COCO_train2014_000000000009.jpg'
    """
    match = _NAME.fullmatch(file_name)
    return f"{match[1]}/{file_name}" if match and (root / match[1]).is_dir() else file_name
