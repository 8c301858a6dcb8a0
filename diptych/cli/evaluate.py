"""`diptych evaluate RUN`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych evaluate", description="Measure a run's best checkpoint on its test split; writes RUN/eval.json."
    )
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    given = parser.parse_args(arguments)

    from diptych import pipeline

    print(json.dumps(pipeline.evaluate(given.run), indent=1))
