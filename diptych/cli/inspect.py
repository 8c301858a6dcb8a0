"""`diptych inspect FILE`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych inspect",
        description="Describe a checkpoint: its kind, sizes and abilities. Nothing in it is executed.",
    )
    parser.add_argument(
        "path",
        type=Path,
        help="a published file, its name, a folder in the Hugging Face layout, a run or one of its checkpoints",
    )
    options = parser.parse_args(arguments)

    from diptych import pretrained
    from diptych.printable import printable

    for path in pretrained.resolve([options.path], pretrained.Options())[0]:
        print(printable(pretrained.inspect(path), lines=True))
