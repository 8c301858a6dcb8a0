"""Searches by a single noun among unseen scenes: `python -m benchmarks.nouns RUN… [--scenes 200] [--split test]`.

Prints one table of the measures that `diptych.evaluate.nouns` documents, with a column for each run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import diptych
from diptych.evaluate.nouns import evaluate_nouns
from diptych.predict import Predictor
from diptych.schema import Split

Evaluate = Callable[[Predictor, int, Split], dict[str, float]]


def main() -> None:
    compare("python -m benchmarks.nouns", "Measure search by a single noun.", evaluate_nouns, scenes=200)


def compare(program: str, purpose: str, evaluate: Evaluate, scenes: int) -> None:
    """Reads runs from the command line and prints a table of what `evaluate` measures, with a column for each run."""
    parser = argparse.ArgumentParser(program, description=purpose)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run, checkpoint or exported folder")
    parser.add_argument("--scenes", type=int, default=scenes, help=f"number of scenes ({scenes})")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run instead of the table")
    options = parser.parse_args()
    found = {run: evaluate(diptych.load(run), options.scenes, options.split) for run in options.runs}
    if options.json:
        print("\n".join(json.dumps({"run": run, **measures}) for run, measures in found.items()))
        return
    print_table(found)


def print_table(found: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the measures of each run side by side."""
    names = list(dict.fromkeys(name for measures in found.values() for name in measures))
    print(f"{'':28}" + "".join(f"{Path(run).name[-18:]:>20}" for run in found))
    for name in names:
        cells = (f"{measures[name]:20.4g}" if name in measures else f"{'—':>20}" for measures in found.values())
        print(f"{name:28}" + "".join(cells))


if __name__ == "__main__":
    main()
