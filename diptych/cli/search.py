"""`diptych search RUN "a fox left of a red car" --images DIR`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diptych search", description="Rank the pictures in a folder by a text.")
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("text", help='what to look for, as in "a fox left of a red car"')
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder, with its subfolders")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="pictures to show (default: 10)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    options = parser.parse_args(arguments)

    from diptych import predict

    print(predict.search_folder(predict.load(options.run, options.device), options.text, options.images, k=options.top))
