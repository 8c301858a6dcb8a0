"""`diptych resume RUN`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych resume",
        description="Continue a run from its last checkpoint. It ends with the same bits as if it had never stopped.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    folder = parser.parse_args(arguments).run

    from diptych.run import train
    from diptych.train.state import check_folder, stored_recipe

    check_folder(folder, resume=True)
    train(stored_recipe(folder), folder, resume=True)
