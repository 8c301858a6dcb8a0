"""`diptych report RUN`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych report",
        description="Measure a run on its test split and write RUN/report.html: measures, curves, examples.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    options = parser.parse_args(arguments)

    from diptych.apps.report.run import report

    print(report(options.run))
