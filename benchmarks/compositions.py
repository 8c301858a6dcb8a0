"""Measure how models read combinations of words: `python -m benchmarks.compositions RUN… [--items FILE --images DIR]`.

Without `--items` it scores foils and quadruples of generated scenes. With it, it scores a published test (Winoground,
SugarCrepe, ARO, VALSE), whose pictures lie in `--images`. `diptych.evaluate.compositions` documents the measures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import diptych
from benchmarks.nouns import print_table
from diptych.data.compositions import read_items
from diptych.evaluate.compositions import evaluate_compositions, evaluate_items


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.compositions", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run, checkpoint or exported folder")
    parser.add_argument("--number", type=int, default=1000, help="foils of each kind, and quadruples (1000)")
    parser.add_argument("--items", type=Path, help="file of a published test")
    parser.add_argument("--images", type=Path, help="folder of its pictures")
    parser.add_argument("--to", type=Path, help="JSON file for the measures of each run")
    options = parser.parse_args()
    if (options.items is None) != (options.images is None):
        parser.error("--items and --images belong together")
    if options.number < 1:
        parser.error(f"--number is {options.number}: it is at least 1")
    items = read_items(options.items, options.images) if options.items else ()
    found = {}
    for run in options.runs:
        predictor = diptych.load(run)
        found[run] = evaluate_items(predictor, items) if items else evaluate_compositions(predictor, options.number)
    print_table(found)
    if options.to:
        options.to.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
