"""`diptych resume RUN [data.path=NEW]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych resume",
        usage="diptych resume RUN [data.path=NEW …]",
        description="Continue a run from its last checkpoint. It ends with the same bits as if it had never stopped.",
        epilog="name=value says where the data lie now, if they have moved: data.path, data.root, "
        "data.validation_path, data.test_path, data.mix; or how they are loaded: data.workers, data.cache. Other data "
        "than before are named.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    options, assignments = parser.parse_known_args(arguments)
    folder = options.run

    from diptych.recipes.override import override, parse_assignments
    from diptych.run import train
    from diptych.schema import RESUMABLE
    from diptych.train.state import check_folder, stored_recipe

    check_folder(folder, resume=True)
    changes = parse_assignments(assignments)
    if settled := [name for name in changes if name not in RESUMABLE]:
        raise ValueError(
            f"{settled[0]} was settled when the run began; resuming can change {', '.join(RESUMABLE)}. For another "
            f"recipe, start a new run, from this one's weights with init_from={folder}"
        )
    train(override(stored_recipe(folder), changes), folder, resume=True)
